"""diffusers' AutoencoderKL: its folder, read into our autoencoder's parameters and written from it.

Stable Diffusion's VAE has this layout (the folder `vae` of a pipeline). The layers correspond one
to one (`diffusers_layout`).
"""

import json
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

from ddpm_jax.config import ModelConfig
from ddpm_jax.errors import UserError
from ddpm_jax.pretrained import diffusers_layout, torch_weights
from ddpm_jax.pretrained.torch_weights import Place
from ddpm_jax.types import Params

NAME = "AutoencoderKL"
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
        others = {
            "block_out_channels": "each must be a multiple of the first",
            "out_channels": "it must be in_channels",
        }
        allowed = others.get(name) or f"only {FIXED.get(name) or BLOCKS.get(name)!r} can"
        raise diffusers_layout.refuse(file, name, value, allowed)
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
    state, file = diffusers_layout.read_state(path)
    pairs = _pairs(abstract, len(model.channel_multipliers))
    return torch_weights.to_params(abstract, pairs, state, file)


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
    levels = len(model.channel_multipliers)
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
    diffusers_layout.write(path, config, torch_weights.to_state(params, _pairs(params, levels)))


def _pairs(params: Params, levels: int) -> Iterator[tuple[Place, str]]:
    """Yield the place and diffusers' name of each weight of both halves."""
    for half, modules in params.items():
        for place, name in diffusers_layout.pairs(modules, levels, f"{half}."):
            yield (half, *place), name
