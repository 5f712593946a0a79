"""The autoencoder of a config, and its discriminator."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.build.network import DTYPES, check_name, sizes
from ddpm_jax.config import AutoencoderConfig, Config, ModelConfig
from ddpm_jax.config_checks import check_unused
from ddpm_jax.errors import look_up
from ddpm_jax.models import Discriminator, UNet
from ddpm_jax.models.autoencoder import Autoencoder, make_autoencoder
from ddpm_jax.types import Params, PRNGKey

RECONSTRUCTIONS = ("l1", "gaussian")
ONLY_DENOISERS = (  # fields of the section `model`
    "head_dim",
    "middle_attention",
    "norm_eps",
    "scale_shift",
    "freq_shift",
    "time_channels",
    "time_scale",
    "pool",
    "resample",
    "class_conditional",
    "null_class",
    "embedding_dim",
    "context_dim",
    "super_resolution",
    "fourier_features",
    "learn_variance",
)


def autoencoder(config: ModelConfig, image_shape: tuple[int, int, int]) -> Autoencoder:
    """Build the autoencoder of `config.model`.

    Args:
      config: the section `model`.
      image_shape: (H, W, C).

    Raises:
      UserError: model.name or model.dtype is unknown or wrong; an option is set that an
        autoencoder does not have; the sizes do not fit the images.
    """
    check_name(config, "autoencoder")
    check_unused(config, ONLY_DENOISERS, "model.name=autoencoder", " (unet: yes)")
    shared = sizes(config)
    UNet(**shared).check_sizes(image_shape[:2])
    return make_autoencoder(image_shape, config.latent_channels, **shared)


def discriminator(config: AutoencoderConfig, model: ModelConfig) -> Discriminator:
    """Build the discriminator of an autoencoder.

    Args:
      config: the section `autoencoder`.
      model: the section `model`; the dtype is used.
    """
    dtype = look_up(DTYPES, "model.dtype", model.dtype)
    return Discriminator(config.discriminator_channels, config.discriminator_layers, dtype)


def init_fn(config: Config, image_shape: tuple[int, int, int]) -> Callable[[PRNGKey], Params]:
    """Return key -> the parameters of a run that trains an autoencoder.

    These are {"autoencoder": {"encoder", "decoder"}}, with "log_variance" if the scale of the
    reconstruction is learned, and "discriminator" if there is one.

    Args:
      config: the config of the run.
      image_shape: (H, W, C).

    Raises:
      UserError: as `autoencoder`, an unknown name, or an option that an autoencoder ignores.
    """
    network, c = autoencoder(config.model, image_shape), config.autoencoder
    look_up(dict.fromkeys(RECONSTRUCTIONS), "autoencoder.reconstruction", c.reconstruction)
    fields = [field for field in vars(config.loss)]
    check_unused(config.loss, fields, "model.name=autoencoder", " (unet: yes)")
    check_unused(config.data, ["codec", "text"], "model.name=autoencoder", " (unet: yes)")
    if not c.discriminator_weight:
        fields = ["discriminator_start", "discriminator_channels", "discriminator_layers"]
        check_unused(c, fields, "autoencoder.discriminator_weight=0", " (above 0: yes)")
    judge = discriminator(c, config.model)

    def init(key: PRNGKey) -> Params:
        own_key, judge_key = jax.random.split(key)
        params: dict[str, Any] = {"autoencoder": network.init(own_key)}
        if c.reconstruction == "gaussian":
            params["log_variance"] = jnp.zeros(())
        if c.discriminator_weight:
            x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
            params["discriminator"] = judge.lazy_init(judge_key, x)["params"]
        return params

    return init
