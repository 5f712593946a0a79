"""diffusers' AutoencoderKL: its folder, read into our autoencoder's parameters and written from it.

    folder/config.json                            the sizes
    folder/diffusion_pytorch_model.safetensors    the weights; .bin is read too, without its code

Stable Diffusion's VAE has this layout (the folder `vae` of a pipeline). The layers correspond one
to one. Only the layout of a weight differs: diffusers has [out, in, h, w] and [out, in].
"""

import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.config import ModelConfig
from ddpm_jax.errors import UserError
from ddpm_jax.pretrained.torch_file import read_tensors
from ddpm_jax.runtime.files import replacing
from ddpm_jax.types import Params

NAME = "AutoencoderKL"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
RESIDUAL = {"norm_1": "norm1", "conv_1": "conv1", "norm_2": "norm2", "conv_2": "conv2"}
SHORTCUT = {"shortcut": "conv_shortcut"}
ATTENTION = {"norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v",
             "out": "to_out.0"}  # fmt: skip
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
FIXED = {  # fields of their config -> the value that our autoencoder has
    "act_fn": "silu",
    "mid_block_add_attention": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
}
BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}


class Sizes(NamedTuple):
    """What a folder's config says.

    Attributes:
      model: the section `model` of a config.
      image_channels: C.
      scaling_factor, shift_factor: diffusers' latents are (z - shift) * scaling. Here each data set
        has a scale of its own (`ddpm_jax.codec`), so nothing uses these two.
    """

    model: ModelConfig
    image_channels: int
    scaling_factor: float
    shift_factor: float


def is_folder(path: str | os.PathLike) -> bool:
    """Return whether a directory has diffusers' layout of an AutoencoderKL."""
    config = pathlib.Path(path) / "config.json"
    try:
        return json.loads(config.read_text()).get("_class_name") == NAME
    except (OSError, ValueError, AttributeError):
        return False


def read_sizes(path: str | os.PathLike) -> Sizes:
    """Read config.json.

    Raises:
      UserError: the file cannot be read, or an option is set that our autoencoder does not have.
    """
    file = pathlib.Path(path) / "config.json"
    try:
        config = json.loads(file.read_text())
        widths = config["block_out_channels"]
        fields = {
            "channels": widths[0],
            "channel_multipliers": tuple(width // widths[0] for width in widths),
            "num_res_blocks": config.get("layers_per_block", 1),
            "num_groups": config.get("norm_num_groups", 32),
            "latent_channels": config.get("latent_channels", 4),
        }
        channels = config.get("in_channels", 3), config.get("out_channels", 3)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} cannot be read as the config of an {NAME}: {error!r}") from error
    wrong = {name: config[name] for name in FIXED if config.get(name, FIXED[name]) != FIXED[name]}
    for name, block in BLOCKS.items():
        if set(config.get(name, [block])) != {block}:
            wrong[name] = config[name]
    if any(width % widths[0] for width in widths):
        wrong["block_out_channels"] = widths
    if channels[0] != channels[1]:
        wrong["out_channels"] = channels[1]
    if wrong:
        name, value = next(iter(wrong.items()))
        wanted = FIXED.get(name) or BLOCKS.get(name)
        allowed = f"; only {wanted!r} can be" if wanted else ""
        raise UserError(f"{file}: {name} = {value!r} cannot be represented{allowed}")
    model = ModelConfig(name="autoencoder", dropout=0.0, attention_resolutions=(), **fields)
    scaling, shift = config.get("scaling_factor") or 1.0, config.get("shift_factor") or 0.0
    return Sizes(model, channels[0], float(scaling), float(shift))


def read_params(path: str | os.PathLike, abstract: Params, model: ModelConfig) -> Params:
    """Read the weights as our autoencoder's parameters.

    Args:
      path: the folder.
      abstract: the shapes of our parameters, {"encoder": ..., "decoder": ...}.
      model: the sizes, from `read_sizes`.

    Raises:
      UserError: a file is missing or cannot be read; a weight is missing, left over, or of another
        shape.
    """
    folder = pathlib.Path(path)
    found = {name: folder / name for name in WEIGHTS if (folder / name).exists()}
    if not found:
        raise UserError(f"{folder} has no weights; it must contain {' or '.join(WEIGHTS)}")
    file = next(iter(found.values()))
    state = _load_safetensors(file) if file.suffix == ".safetensors" else read_tensors(file)
    levels, params = len(model.channel_multipliers), _copy(abstract)
    for place, key in _keys(abstract, levels):
        old = _old(key)
        tensor = state.pop(key, None) if key in state else state.pop(old, None)
        if tensor is None:
            raise UserError(f"{file} has no weight {key!r}, which an {NAME} of this config has")
        parent, leaf = _parent(params, place)
        wanted = parent[leaf].shape
        if tensor.size != int(np.prod(wanted)):
            raise UserError(f"{file}: {key} has shape {list(tensor.shape)}, which is not {wanted}")
        parent[leaf] = _to_ours(tensor.astype(np.float32)).reshape(wanted)
    if state:
        raise UserError(f"{file} has a weight that nothing uses: {next(iter(state))!r}")
    return params


def write(
    path: str | os.PathLike,
    params: Params,
    model: ModelConfig,
    image_shape: tuple[int, int, int],
    *,
    scaling_factor: float = 1.0,
    shift_factor: float = 0.0,
) -> None:
    """Write a folder that `diffusers.AutoencoderKL.from_pretrained` loads.

    Args:
      path: the folder; it is created.
      params: the autoencoder's parameters.
      model: the section `model` of the run's config.
      image_shape: (H, W, C).
      scaling_factor, shift_factor: what the config says: a pipeline uses (z - shift) * scaling.

    Raises:
      UserError: the autoencoder has what diffusers does not: patches, attention outside of the
        middle, or several heads.
    """
    for name, wanted in (("patch_size", 1), ("attention_resolutions", ()), ("num_heads", 1)):
        if (value := getattr(model, name)) != wanted:
            raise UserError(
                f"model.{name} is {value!r}, but diffusers' {NAME} only has {wanted!r}; train an "
                "autoencoder with this value"
            )
    import safetensors.numpy  # optional: only other libraries' weights need it

    levels = len(model.channel_multipliers)
    state = {}
    for place, key in _keys(params, levels):
        parent, leaf = _parent(params, place)
        state[key] = np.ascontiguousarray(_to_theirs(place, np.asarray(parent[leaf], np.float32)))
    config = {
        "_class_name": NAME,
        "act_fn": "silu",
        "block_out_channels": [model.channels * m for m in model.channel_multipliers],
        "down_block_types": [BLOCKS["down_block_types"]] * levels,
        "in_channels": image_shape[2],
        "latent_channels": model.latent_channels,
        "layers_per_block": model.num_res_blocks,
        "norm_num_groups": model.num_groups,
        "out_channels": image_shape[2],
        "sample_size": image_shape[0],
        "scaling_factor": scaling_factor,
        "shift_factor": shift_factor,
        "up_block_types": [BLOCKS["up_block_types"]] * levels,
    }
    folder = pathlib.Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS[0]) as part:
        safetensors.numpy.save_file(state, part, metadata={"format": "pt"})
    with replacing(folder / "config.json") as part:
        part.write_text(json.dumps(config, indent=2) + "\n")


def _load_safetensors(file: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import safetensors.numpy  # optional: only other libraries' weights need it
    except ImportError as error:
        raise UserError(f"{file} needs the package safetensors: pip install safetensors") from error
    try:
        return safetensors.numpy.load_file(file)
    except Exception as error:  # the library has exceptions of its own in Rust
        raise UserError(f"{file} cannot be read: {error}") from error


def _keys(params: Params, levels: int) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the place of each of our weights, and diffusers' name of it."""
    for half, modules in params.items():
        for module, content in modules.items():
            theirs, names = _module(half, module, levels)
            if names is None:  # a layer
                for leaf in content:
                    yield (half, module, leaf), f"{theirs}.{_leaf(leaf)}"
                continue
            for layer, leaves in content.items():
                for leaf in leaves:
                    yield (half, module, layer, leaf), f"{theirs}.{names[layer]}.{_leaf(leaf)}"


def _module(half: str, module: str, levels: int) -> tuple[str, dict[str, str] | None]:
    """Return diffusers' name of one of our modules, and those of its layers; None for a layer."""
    if module in ("quant", "post_quant"):
        return f"{module}_conv", None
    if module in ("conv_in", "conv_out"):
        return f"{half}.{module}", None
    if module == "norm_out":
        return f"{half}.conv_norm_out", None
    if module.endswith("_attention"):
        return f"{half}.mid_block.attentions.0", ATTENTION
    kind, *rest = module.split("_")
    if kind == "middle":
        return f"{half}.mid_block.resnets.{rest[0]}", RESIDUAL | SHORTCUT
    level = int(rest[0]) if kind == "down" else levels - 1 - int(rest[0])
    place = f"{half}.{kind}_blocks.{level}"
    if rest[1] == "conv":
        return f"{place}.{'downsamplers' if kind == 'down' else 'upsamplers'}.0.conv", None
    return f"{place}.resnets.{rest[1]}", RESIDUAL | SHORTCUT


def _leaf(name: str) -> str:
    return "bias" if name == "bias" else "weight"


def _old(key: str) -> str:
    """Return the name that a weight of the attention had in old versions of diffusers."""
    for new, old in OLD_ATTENTION.items():
        key = key.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
    return key


def _to_ours(tensor: np.ndarray) -> np.ndarray:
    """Return a weight in our order of axes: [h, w, in, out] or [in, out]."""
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T


def _to_theirs(place: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    """Return a weight in diffusers' order of axes."""
    *_, layer, leaf = place
    if leaf != "kernel":
        return value.reshape(-1)
    if layer in ("query", "key", "value"):  # [C, heads, d]
        value = value.reshape(len(value), -1)
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    pointwise = layer in ("shortcut", "quant", "post_quant")  # our Dense, their convolution
    return value.T[:, :, None, None] if pointwise else value.T


def _parent(params: Params, place: tuple[str, ...]) -> tuple[Any, str]:
    """Return the mapping that holds a weight, and the weight's name in it."""
    for name in place[:-1]:
        params = params[name]
    return params, place[-1]


def _copy(params: Params) -> Params:
    return {k: _copy(v) if isinstance(v, dict) else v for k, v in params.items()}
