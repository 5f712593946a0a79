"""The network that a config asks for: the U-Net, or the classifier of noisy images."""

import jax.numpy as jnp

from ddpm_jax.config import ModelConfig
from ddpm_jax.errors import UserError, look_up, unknown
from ddpm_jax.models import Classifier, Model, UNet, as_model

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def model(config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int) -> Model:
    """Build the network of `config.model` for images (H, W, C) of `num_classes` classes."""
    _check_name(config, "unet", "a denoiser is wanted here (classifiers: --classifier)")
    if config.class_conditional and not num_classes:
        raise UserError(
            "model.class_conditional is True, but the data have no labels; put the images into one "
            "sub-folder per class, or set it to False"
        )
    unet = UNet(
        out_channels=image_shape[-1] * (2 if config.learn_variance else 1),
        num_classes=num_classes if config.class_conditional else 0,
        image_channels=image_shape[-1] if config.super_resolution else 0,
        fourier_features=config.fourier_features,
        embedding_dim=config.embedding_dim,
        context_dim=config.context_dim,
        **_sizes(config),
    )
    unet.check_sizes(image_shape[:2])
    return as_model(unet, image_shape)


def classifier(config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int) -> Model:
    """Build the classifier of `config.model`: its `apply` returns logits [B, num_classes]."""
    _check_name(config, "classifier", "a classifier is wanted here (denoisers: experiments.train)")
    if not num_classes:
        raise UserError(
            "a classifier needs labels, but the data have none; one sub-folder per class gives them"
        )
    UNet(**_sizes(config)).check_sizes(image_shape[:2])
    return as_model(Classifier(num_classes=num_classes, **_sizes(config)), image_shape)


def _check_name(config: ModelConfig, wanted: str, why: str) -> None:
    """Refuse a network of the other sort."""
    if config.name not in ("unet", "classifier"):
        raise unknown("model.name", config.name, ["unet", "classifier"])
    if config.name != wanted:
        raise UserError(f"model.name is {config.name!r}, but {why}")


def _sizes(config: ModelConfig) -> dict:
    """Return what the U-Net and the classifier have in common."""
    return dict(
        channels=config.channels,
        channel_multipliers=config.channel_multipliers,
        num_res_blocks=config.num_res_blocks,
        attention_resolutions=config.attention_resolutions,
        num_heads=config.num_heads,
        dropout=config.dropout,
        num_groups=config.num_groups,
        scale_shift=config.scale_shift,
        dtype=look_up(DTYPES, "model.dtype", config.dtype),
        remat=config.remat,
        remat_keep=config.remat_keep,
    )
