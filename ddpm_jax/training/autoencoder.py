"""The parts of a run that trains an autoencoder (`ddpm_jax.autoencoding` has its loss).

One gradient trains all parameters of the run (`build.autoencoders.init_fn`): the autoencoder, the
scale of the reconstruction and the discriminator. The discriminator's loss sees the autoencoder as
constant, and the other way round.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax import autoencoding, build, codec, data
from ddpm_jax.config import Config, DataConfig
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import references, small_classifier
from ddpm_jax.models.autoencoder import Autoencoder
from ddpm_jax.pixels import psnr, to_x_0
from ddpm_jax.runtime import rows
from ddpm_jax.training.objectives import Batch, EvalStep, Objective
from ddpm_jax.types import Array, Params, PRNGKey

FIGURES = ("held_out_error", "held_out_psnr", "held_out_kl")
LAST_LAYER = ("decoder", "conv_out")  # of the autoencoder's parameters, for the adaptive weight

Features = Callable[[Array], Array]  # images [B, H, W, C] in [-1, 1] -> [B, D]


def objective(
    config: Config,
    network: Autoencoder,
    gather: Callable[[Params], Params],
    features: Features | None = None,
) -> Objective:
    """Return the objective of an autoencoder.

    Args:
      config: the config of the run.
      network: the autoencoder.
      gather: sharded parameters -> whole parameters.
      features: what the perceptual term compares; None if its weight is 0.
    """
    c, judge = config.autoencoder, build.discriminator(config.autoencoder, config.model)

    def draw(state: Any, step: Array, keys: Sequence[PRNGKey], batch: Batch) -> tuple[Any, Array]:
        x = to_x_0(batch["image"])
        eps = jax.random.normal(keys[0], (len(x), *network.latent_shape))
        started = jnp.full(len(x), step >= c.discriminator_start, jnp.float32)
        return (x, eps, started), jnp.ones(len(x))

    def error(params: Params, x: Array, reconstructed: Array) -> Array:
        if c.reconstruction == "gaussian":
            return autoencoding.gaussian(x, reconstructed, params["log_variance"])
        return autoencoding.l1(x, reconstructed)

    def judged(params: Params, x: Array) -> Array:
        return judge.apply({"params": params["discriminator"]}, x)  # pyright: ignore[reportReturnType]

    def loss(params: Params, inputs: Any, key: PRNGKey) -> tuple[Array, dict[str, Array]]:
        params, (x, eps, started) = gather(params), inputs
        own, (encoder_key, decoder_key) = params["autoencoder"], jax.random.split(key)
        mean, log_variance = network.encode(own, x, train=True, key=encoder_key)
        z = codec.latent(mean, log_variance, eps)
        decode = functools.partial(network.decode, train=True, key=decoder_key)
        reconstructed = decode(own, z)
        parts = {
            "reconstruction": error(params, x, reconstructed),
            "kl": codec.kl(mean, log_variance),
        }
        total = parts["reconstruction"] + c.kl_weight * parts["kl"] / x[0].size
        if features is not None:
            difference = features(x) - features(reconstructed)
            parts["perceptual"] = jnp.square(difference).mean(axis=-1)
            total = total + c.perceptual_weight * parts["perceptual"]
        if c.discriminator_weight:
            frozen = jax.lax.stop_gradient(params)

            def of_last_layer(layer: Params) -> tuple[Array, Array]:
                x_hat = decode(_with_last_layer(frozen["autoencoder"], layer), frozen_z)
                return error(frozen, x, x_hat).mean(), -judged(frozen, x_hat).mean()

            frozen_z, layer = jax.lax.stop_gradient(z), _last_layer(frozen["autoencoder"])
            pulls = jax.jacrev(of_last_layer)(layer)
            weight = c.discriminator_weight * autoencoding.adaptive_weight(*pulls)
            pixels = tuple(range(1, x.ndim))
            parts["adversarial"] = -judged(frozen, reconstructed).mean(axis=pixels)
            parts["discriminator"] = autoencoding.hinge(
                judged(params, x), judged(params, jax.lax.stop_gradient(reconstructed))
            )
            parts["adversarial_weight"] = started * weight
            total = total + started * (weight * parts["adversarial"] + parts["discriminator"])
        return total, parts

    return Objective(tuple, draw, loss, lambda *_: {}, lambda state, *_: state)


def perceptual_features(config: DataConfig, dataset: data.Dataset) -> Features:
    """Return the hidden layer of the small classifier of the data as a function of images.

    Args:
      config: the section `data` of the config.
      dataset: the data; they need labels.

    Raises:
      UserError: the data have no labels of at least two classes.
    """
    if dataset.num_classes < 2:
        raise UserError(
            "autoencoder.perceptual_weight needs features of a classifier, which is trained on "
            "labels, but the data have none; set it to 0"
        )
    network, _ = references.classifier(config, dataset)
    return functools.partial(small_classifier.hidden, network.params)


def _last_layer(params: Params) -> Params:
    for name in LAST_LAYER:
        params = params[name]
    return params


def _with_last_layer(params: Params, layer: Params) -> Params:
    half, name = LAST_LAYER
    return params | {half: params[half] | {name: layer}}


def make_reconstruction_step(network: Autoencoder, gather: Callable[[Params], Params]) -> EvalStep:
    """Return eval_step(params, batch, index) -> the FIGURES of each image, from the mean latents.

    `held_out_error` is the mean absolute error on the scale of [-1, 1], `held_out_psnr` is in dB,
    and `held_out_kl` in nats per image.

    Args:
      network: the autoencoder.
      gather: sharded parameters -> whole parameters.
    """

    def step(params: Params, batch: Batch, index: Array) -> dict[str, Array]:
        own, x = gather(params)["autoencoder"], to_x_0(batch["image"])
        mean, log_variance = network.encode(own, x)
        reconstructed = network.decode(own, mean)
        found = (
            autoencoding.l1(x, reconstructed),
            psnr(x, reconstructed),
            codec.kl(mean, log_variance),
        )
        return dict(zip(FIGURES, found, strict=True))

    return step


def make_reconstruct(network: Autoencoder) -> Callable[..., Array]:
    """Return draw(params, key, n, cond) -> each image beside its reconstruction: [n, H, 2W, C].

    The images are cond["image"], [n, H, W, C] in [-1, 1]. Nothing is drawn with the key.

    Args:
      network: the autoencoder.
    """

    def pairs(params: Params, x: Array) -> Array:
        mean, _ = network.encode(params["autoencoder"], x)
        return jnp.concatenate([x, network.decode(params["autoencoder"], mean)], axis=2)

    spread = rows.over_local_devices(pairs)

    def draw(
        params: Params, key: PRNGKey, n: int, cond: dict[str, Array], *, start: int = 0
    ) -> Array:
        return spread(params, cond["image"])

    return draw
