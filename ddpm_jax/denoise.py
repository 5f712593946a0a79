"""From a network to a denoiser (x_t, t) -> Prediction with fixed params, conditioning and clipping.

Clipping maps a denoiser to a denoiser, so that it can come after guidance (`ddpm_jax.guidance`).
Static clipping is to [-1, 1]. Dynamic clipping is (Saharia et al. 2022, section 2.3)

    x_0 ← clip(x_0, -s, s) / s,   s = max(1, the percentile p of |x_0| over one image)

Both recompute eps, so that x_t = alpha_t x_0 + sigma_t eps holds.
"""

from collections.abc import Callable

import jax.numpy as jnp

from ddpm_jax.errors import UserError
from ddpm_jax.predictions import to_prediction
from ddpm_jax.process import GaussianProcess
from ddpm_jax.types import ApplyFn, Array, Conditioning, DenoiseFn, Params, Prediction, PRNGKey


def apply_network(
    process: GaussianProcess,
    apply_fn: ApplyFn,
    params: Params,
    x_t: Array,
    t: Array,
    cond: Conditioning | None,
    *,
    train: bool,
    key: PRNGKey | None,
) -> Array:
    """Return the network's output at x_t, in the type of x_t.

    Only here the network receives a time: the index of t in the chain of its training, minus 1. So
    weights trained by Ho et al. and by diffusers fit.

    Args:
      process: the chain, perhaps respaced.
      apply_fn: the network (`types.ApplyFn`).
      params: the network's parameters.
      x_t: [B, ...] float.
      t: int32 in 1..T, scalar or [B].
      cond: None, or arrays with leading axis B.
      train: whether the network is in training mode, with dropout for instance.
      key: the key of a training step; None if `train` is False.
    """
    t = jnp.broadcast_to(jnp.asarray(process.timesteps)[t] - 1, x_t.shape[:1])
    return apply_fn(params, x_t, t, cond, train=train, key=key).astype(x_t.dtype)


def make_denoise_fn(
    process: GaussianProcess,
    apply_fn: ApplyFn,
    params: Params,
    cond: Conditioning | None = None,
    *,
    kind: str = "eps",
    clip_x_0: bool = True,
) -> DenoiseFn:
    """Build the denoiser (x_t, t) -> Prediction that samplers call.

    For every kind, with or without clipping, x_t = alpha_t x_0 + sigma_t eps holds.

    Args:
      process: the chain.
      apply_fn: the network (`types.ApplyFn`).
      params: the network's parameters.
      cond: None, or arrays with leading axis B.
      kind: the kind of the network's prediction: "eps", "x_0" or "v".
      clip_x_0: clip x_0 to [-1, 1] and recompute eps.
    """

    def denoise_fn(x_t: Array, t: Array) -> Prediction:
        output = apply_network(process, apply_fn, params, x_t, t, cond, train=False, key=None)
        return to_prediction(process, output, x_t, t, kind)

    return static_threshold(process, denoise_fn) if clip_x_0 else denoise_fn


def static_threshold(process: GaussianProcess, denoise_fn: DenoiseFn) -> DenoiseFn:
    """Return a denoiser that clips the predicted x_0 to [-1, 1] and recomputes eps.

    Limits: an x_0 inside [-1, 1] does not change.

    Args:
      process: the chain.
      denoise_fn: the denoiser, unclipped.
    """

    def clipped(x_t: Array, t: Array) -> Prediction:
        return with_x_0(process, denoise_fn(x_t, t), lambda x_0: jnp.clip(x_0, -1.0, 1.0), x_t, t)

    return clipped


def dynamic_threshold(
    process: GaussianProcess, denoise_fn: DenoiseFn, percentile: float
) -> DenoiseFn:
    """Clip each image's x_0 to its own percentile s of |x_0| and divide by s, if s > 1.

    Strong guidance drives x_0 out of [-1, 1]. Static clipping then saturates x_0; dynamic clipping
    scales it back (Imagen: Saharia et al. 2022, section 2.3).

    Limits: with percentile = 1 nothing is clipped, only scaled. If |x_0| <= 1, nothing changes.

    Args:
      process: the chain.
      denoise_fn: the denoiser, unclipped.
      percentile: in (0, 1], for instance 0.995.

    Raises:
      UserError: percentile is outside (0, 1].
    """
    if not 0.0 < percentile <= 1.0:
        raise UserError(
            f"the percentile of dynamic_threshold must be in (0, 1], found {percentile}"
        )

    def clipped(x_t: Array, t: Array) -> Prediction:
        def scaled(x_0: Array) -> Array:
            pixels = tuple(range(1, x_0.ndim))
            s = jnp.quantile(jnp.abs(x_0), percentile, axis=pixels, keepdims=True)
            s = jnp.maximum(s, 1.0)
            return jnp.clip(x_0, -s, s) / s

        return with_x_0(process, denoise_fn(x_t, t), scaled, x_t, t)

    return clipped


def with_x_0(
    process: GaussianProcess,
    prediction: Prediction,
    change: Callable[[Array], Array],
    x_t: Array,
    t: Array,
) -> Prediction:
    """Return the prediction with a changed x_0 and a recomputed eps; its variance does not change.

    Args:
      process: the chain.
      prediction: the prediction at x_t.
      change: x_0 -> the new x_0, of the same shape.
      x_t: [B, ...] float.
      t: int32 in 1..T, scalar or [B].
    """
    changed = to_prediction(process, change(prediction.x_0), x_t, t, "x_0")
    return changed._replace(log_variance_fraction=prediction.log_variance_fraction)


def check_threshold(clip_x_0: bool, percentile: float) -> None:
    """Check that the percentile fits `clip_x_0`; 0 is no dynamic clipping.

    Raises:
      UserError: a percentile outside [0, 1], or above 0 while `clip_x_0` is False.
    """
    if not 0.0 <= percentile <= 1.0:
        raise UserError(
            f"the percentile of dynamic_threshold must be in [0, 1], found {percentile}"
        )
    if percentile and not clip_x_0:
        raise UserError(
            f"the percentile of dynamic_threshold is {percentile}, but clip_x_0 is False; set "
            "clip_x_0=True, or the percentile to 0"
        )
