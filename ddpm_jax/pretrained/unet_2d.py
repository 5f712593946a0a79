"""diffusers' UNet2DModel as our U-Net, and ours as theirs.

The layers correspond one to one (`diffusers_layout`). Two things differ. The time is embedded as
[sin, cos] here; with flip_sin_to_cos it is [cos, sin] there, so the rows of the first Dense are
swapped. And the attention of a level is an option of its blocks there, and of its height here.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.config import ModelConfig
from ddpm_jax.errors import UserError, unknown
from ddpm_jax.pretrained import diffusers_layout, torch_weights
from ddpm_jax.pretrained.diffusers_layout import refuse
from ddpm_jax.pretrained.torch_weights import State
from ddpm_jax.types import Params

NAME = "UNet2DModel"
DEFAULTS: Mapping[str, Any] = {  # of diffusers 0.42
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", *["AttnDownBlock2D"] * 3],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": [*["AttnUpBlock2D"] * 3, "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,  # only for time_embedding_type="learned"
}
ALLOWED: Mapping[str, tuple] = {  # options that only some values can be represented of
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "freq_shift": (0, 1),
    "flip_sin_to_cos": (True, False),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_padding": (0, 1),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "add_attention": (True, False),
    "class_embed_type": (None,),
}
# The kind of block -> whether it has attention, and how it resizes. None: the option says so
DOWN = {
    "DownBlock2D": (False, "conv"),
    "AttnDownBlock2D": (True, None),
    "ResnetDownsampleBlock2D": (False, "resnet"),
}
UP = {
    "UpBlock2D": (False, "conv"),
    "AttnUpBlock2D": (True, None),
    "ResnetUpsampleBlock2D": (False, "resnet"),
}


class Network(NamedTuple):
    """A network of another library in our terms.

    Attributes:
      model: the section `model` of a config.
      image_shape: (H, W, C).
      num_classes: number of classes; 0 is none.
    """

    model: ModelConfig
    image_shape: tuple[int, int, int]
    num_classes: int


def read_network(folder: str | os.PathLike) -> Network:
    """Read config.json.

    Raises:
      UserError: the file cannot be read, or an option is unknown or cannot be represented; the
        message names the option and its value.
    """
    path = pathlib.Path(folder) / "config.json"
    found = diffusers_layout.read_options(folder, NAME)
    found = {name: value for name, value in found.items() if not name.startswith("_")}
    for name in found:
        if name not in DEFAULTS:
            raise unknown(f"option in {path}:", name, DEFAULTS)
    options = {**DEFAULTS, **found}
    for name, allowed in ALLOWED.items():
        if options[name] not in allowed:
            raise refuse(path, name, options[name], f"only {' or '.join(map(repr, allowed))} can")
    widths = _numbers(path, options, "block_out_channels")
    if any(width % widths[0] for width in widths):
        raise refuse(path, "block_out_channels", widths, "each must be a multiple of the first")
    if options["time_embedding_dim"] not in (None, 4 * widths[0]):
        value = options["time_embedding_dim"]
        raise refuse(path, "time_embedding_dim", value, f"only None or {4 * widths[0]} can")
    height, width, channels, learn_variance = _shape(path, options)
    attends, resizes = _levels(path, options, len(widths))
    symmetric = "conv_symmetric" if options["downsample_padding"] else "conv"
    num_classes = _number(path, options, "num_class_embeds", optional=True)
    dropout, norm_eps = (_fraction(path, options, name) for name in ("dropout", "norm_eps"))
    model = ModelConfig(
        channels=widths[0],
        channel_multipliers=tuple(width // widths[0] for width in widths),
        num_res_blocks=_number(path, options, "layers_per_block"),
        attention_resolutions=tuple(height >> i for i, attend in enumerate(attends) if attend),
        head_dim=_number(path, options, "attention_head_dim", optional=True),
        middle_attention=_middle(path, options),
        dropout=dropout,
        num_groups=_number(path, options, "norm_num_groups"),
        norm_eps=norm_eps,
        scale_shift=options["resnet_time_scale_shift"] == "scale_shift",
        freq_shift=int(options["freq_shift"]),
        resample="residual" if resizes == "resnet" else symmetric,
        class_conditional=num_classes > 0,
        null_class=num_classes == 0,
        learn_variance=learn_variance,
    )
    return Network(model, (height, width, channels), num_classes)


def read_params(folder: str | os.PathLike, abstract: Params) -> Params:
    """Read the weights as our parameters, float32.

    Args:
      folder: the folder; `read_network` accepts its config.json.
      abstract: the shapes of our parameters.

    Raises:
      UserError: a file cannot be read; a weight is missing, left over, or of another shape.
    """
    options = {**DEFAULTS, **diffusers_layout.read_options(folder, NAME)}
    state, file = diffusers_layout.read_state(folder)
    levels = len(options["block_out_channels"])
    pairs = diffusers_layout.pairs(abstract, levels)
    params = torch_weights.to_params(abstract, pairs, state, file)
    return _swapped(params) if options["flip_sin_to_cos"] else params


def options_of(network: Network) -> dict[str, Any]:
    """Return the options of the UNet2DModel that computes the same as our U-Net.

    Raises:
      UserError: the U-Net has what diffusers' UNet2DModel does not; the message names the option.
    """
    model, (height, width, channels) = network.model, network.image_shape
    for name, wanted in (
        ("name", "unet"),
        ("patch_size", 1),
        ("embedding_dim", 0),
        ("context_dim", 0),
        ("super_resolution", 0),
        ("fourier_features", ()),
        ("time_channels", 0),
        ("time_scale", 1.0),
    ):
        if (value := getattr(model, name)) != wanted:
            raise _not_theirs(f"model.{name}", value, repr(wanted))
    attends = [height >> i in model.attention_resolutions for i in range(_levels_of(model))]
    residual = model.resample == "residual"
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
    down, up = plain if residual else ("DownBlock2D", "UpBlock2D")
    kind = "resnet" if residual else "conv"
    return {
        "_class_name": NAME,
        "act_fn": "silu",
        "add_attention": model.middle_attention != "none",
        "attention_head_dim": _head_dim(model, attends),
        "attn_norm_num_groups": _middle_groups(model),
        "block_out_channels": [model.channels * m for m in model.channel_multipliers],
        "down_block_types": ["AttnDownBlock2D" if attend else down for attend in attends],
        "downsample_padding": 0 if model.resample == "conv" else 1,
        "downsample_type": kind,
        "dropout": model.dropout,
        "flip_sin_to_cos": _flips(model),
        "freq_shift": model.freq_shift,
        "in_channels": channels,
        "layers_per_block": model.num_res_blocks,
        "norm_eps": model.norm_eps,
        "norm_num_groups": model.num_groups,
        "num_class_embeds": _rows_of_classes(network),
        "out_channels": channels * (2 if model.learn_variance else 1),
        "resnet_time_scale_shift": "scale_shift" if model.scale_shift else "default",
        "sample_size": height if height == width else [height, width],
        "up_block_types": ["AttnUpBlock2D" if attend else up for attend in reversed(attends)],
        "upsample_type": kind,
    }


def state_of(params: Params, model: ModelConfig) -> State:
    """Return our parameters as the state_dict of the UNet2DModel of `options_of`."""
    params = _swapped(params) if _flips(model) else params
    return torch_weights.to_state(params, diffusers_layout.pairs(params, _levels_of(model)))


def _levels_of(model: ModelConfig) -> int:
    return len(model.channel_multipliers)


def _flips(model: ModelConfig) -> bool:
    """Return the flip_sin_to_cos that we write: that of diffusers' default, or of Ho's weights."""
    return model.freq_shift == 0


def _swapped(params: Params) -> Params:
    """Return the parameters with the sines and cosines of the time in the other order."""
    kernel = np.asarray(params["time_1"]["kernel"])
    rows = np.roll(kernel, len(kernel) // 2, axis=0)
    return {**params, "time_1": {**params["time_1"], "kernel": rows}}


def _shape(path: pathlib.Path, options: Mapping[str, Any]) -> tuple[int, int, int, bool]:
    """Return H, W, C, and whether the network predicts its variance too."""
    size = options["sample_size"]
    size = [size, size] if _is_count(size) else size
    if not (isinstance(size, list) and len(size) == 2 and all(map(_is_count, size))):
        raise refuse(path, "sample_size", size, "set it to the height and width of the images")
    channels = _number(path, options, "in_channels")
    out = options["out_channels"]
    if out not in (channels, 2 * channels):
        raise refuse(path, "out_channels", out, f"only {channels} or {2 * channels} can")
    return size[0], size[1], channels, out == 2 * channels


def _levels(
    path: pathlib.Path, options: Mapping[str, Any], levels: int
) -> tuple[list[bool], str | None]:
    """Return for each level whether it has attention, and how all levels resize: conv or resnet."""
    resizes, attends = set(), {}
    for name, kinds, option in (
        ("down_block_types", DOWN, "downsample_type"),
        ("up_block_types", UP, "upsample_type"),
    ):
        found = options[name]
        if not isinstance(found, list) or len(found) != levels:
            raise refuse(path, name, found, f"it must have {levels} names, as block_out_channels")
        blocks = [str(kind).removeprefix("UNetRes") for kind in found]
        if unknown_kinds := [kind for kind in blocks if kind not in kinds]:
            raise refuse(path, name, unknown_kinds[0], f"only {', '.join(kinds)} can")
        if options[option] not in ("conv", "resnet"):
            raise refuse(path, option, options[option], "only 'conv' or 'resnet' can")
        attends[name] = [kinds[kind][0] for kind in blocks]
        resizes |= {kinds[kind][1] or options[option] for kind in blocks[:-1]}  # the last does not
    if attends["down_block_types"] != attends["up_block_types"][::-1]:
        value = options["up_block_types"]
        raise refuse(
            path, "up_block_types", value, "both halves of a level must have attention, or none"
        )
    if len(resizes) > 1:
        what = f"{options['downsample_type']!r}, upsample_type = {options['upsample_type']!r}"
        raise UserError(
            f"{path}: downsample_type = {what} with these blocks cannot be represented: some "
            "levels are resized by a convolution and others by a residual block"
        )
    return attends["down_block_types"], next(iter(resizes), "conv")


def _middle(path: pathlib.Path, options: Mapping[str, Any]) -> str:
    """Return our model.middle_attention."""
    if not options["add_attention"]:
        return "none"
    groups = options["attn_norm_num_groups"]
    if groups is None:
        return "normalised" if options["resnet_time_scale_shift"] == "default" else "plain"
    if groups != options["norm_num_groups"]:
        allowed = f"only None or {options['norm_num_groups']!r} (norm_num_groups) can"
        raise refuse(path, "attn_norm_num_groups", groups, allowed)
    return "normalised"


def _middle_groups(model: ModelConfig) -> int | None:
    """Return their attn_norm_num_groups; None is a norm unless there is scale-shift."""
    if model.middle_attention == "none" or model.scale_shift == (model.middle_attention == "plain"):
        return None
    if model.middle_attention == "plain":
        raise _not_theirs("model.middle_attention", "plain", "'normalised' without scale_shift")
    return model.num_groups


def _head_dim(model: ModelConfig, attends: list[bool]) -> int | None:
    """Return their attention_head_dim; None is one head at every level."""
    if model.head_dim:
        return model.head_dim
    if model.num_heads == 1:
        return None
    attends = [*attends[:-1], attends[-1] or model.middle_attention != "none"]
    widths = {
        model.channels * multiplier
        for multiplier, attend in zip(model.channel_multipliers, attends, strict=True)
        if attend
    }
    if len(widths) > 1:
        allowed = "heads of the same width at all levels with attention (model.head_dim)"
        raise _not_theirs("model.num_heads", model.num_heads, allowed)
    return widths.pop() // model.num_heads if widths else None


def _rows_of_classes(network: Network) -> int | None:
    """Return the number of rows of the table of classes; the last one is our null class."""
    if not network.model.class_conditional:
        return None
    return network.num_classes + network.model.null_class


def _not_theirs(name: str, value: Any, allowed: str) -> UserError:
    return UserError(f"{name} is {value!r}, but diffusers' {NAME} can only hold {allowed}")


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _number(
    path: pathlib.Path, options: Mapping[str, Any], name: str, optional: bool = False
) -> int:
    """Return an option that is a whole number of at least 1; None is 0 if it is optional."""
    value = 0 if options[name] is None and optional else options[name]
    if not (_is_count(value) or (optional and value == 0)):
        raise refuse(path, name, value, "it must be a whole number of at least 1")
    return int(value)


def _numbers(path: pathlib.Path, options: Mapping[str, Any], name: str) -> list[int]:
    value = options[name]
    if not (isinstance(value, list) and value and all(map(_is_count, value))):
        raise refuse(path, name, value, "it must be a list of whole numbers of at least 1")
    return value


def _fraction(path: pathlib.Path, options: Mapping[str, Any], name: str) -> float:
    value = options[name]
    if type(value) not in (int, float) or not 0 <= value < 1 or (name == "norm_eps" and not value):
        raise refuse(path, name, value, "it must be a number in [0, 1), and norm_eps above 0")
    return float(value)
