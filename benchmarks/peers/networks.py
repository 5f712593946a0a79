"""Our U-Net in the options of other libraries."""

import dataclasses
from typing import Any

from ddpm_jax.config import ModelConfig
from ddpm_jax.pretrained import unet_2d
from ddpm_jax.pretrained.unet_2d import Network


def diffusers_unet(model: ModelConfig, height: int) -> dict[str, Any]:
    """Return the options of diffusers' UNet2DModel that has the same layers as our U-Net.

    Args:
      model: the config of our network, without conditioning.
      height: height in pixels of what the network receives.
    """
    network = Network(dataclasses.replace(model, patch_size=1), (height, height, 1), 0)
    of_images = ("_class_name", "sample_size", "in_channels", "out_channels")
    options = unet_2d.options_of(network)
    return {name: value for name, value in options.items() if name not in of_images}


def ddpm_pytorch_unet(model: ModelConfig, height: int) -> dict[str, Any]:
    """Return the options of denoising-diffusion-pytorch's Unet that are nearest to our U-Net.

    It always has two residual blocks per level, and linear attention where ours has none.

    Args:
      model: the config of our network, without conditioning.
      height: height in pixels of what the network receives.
    """
    channels = [model.channels * m for m in model.channel_multipliers]
    return dict(
        dim=model.channels,
        dim_mults=model.channel_multipliers,
        full_attn=_attends(model, height),
        attn_heads=model.num_heads,
        attn_dim_head=tuple(c // model.num_heads for c in channels),
        dropout=model.dropout,
    )


def _attends(model: ModelConfig, height: int) -> tuple[bool, ...]:
    """Return for each level whether it has self-attention."""
    levels = range(len(model.channel_multipliers))
    return tuple(height >> level in model.attention_resolutions for level in levels)
