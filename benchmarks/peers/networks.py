"""Our U-Net in the options of other libraries."""

from typing import Any

from ddpm_jax.config import ModelConfig


def diffusers_unet(model: ModelConfig, height: int) -> dict[str, Any]:
    """Return the options of diffusers' UNet2DModel that has the same layers as our U-Net.

    Args:
      model: the config of our network, without conditioning.
      height: height in pixels of what the network receives.
    """
    attends = _attends(model, height)
    return dict(
        block_out_channels=tuple(model.channels * m for m in model.channel_multipliers),
        layers_per_block=model.num_res_blocks,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]),
        attention_head_dim=None,  # one head
        norm_num_groups=model.num_groups,
        norm_eps=1e-6,
        dropout=model.dropout,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
    )


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
