"""From a network to a denoiser (x_t, t) -> Prediction with fixed params, conditioning and clipping.

Clipping maps a denoiser to a denoiser, so that it can come after guidance (`ddpm_jax.guidance`).
Static clipping is to [-b, b], where b = 1 for pixels. Dynamic clipping is (Saharia et al. 2022,
section 2.3)

    x_0 ← clip(x_0, -s, s) b / s,   s = max(b, the percentile p of |x_0| over one image)

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
    clip_x_0: bool | float = True,
) -> DenoiseFn:
    """Build the denoiser (x_t, t) -> Prediction that samplers call.

    For every kind, with or without clipping, x_t = alpha_t x_0 + sigma_t eps holds.

    Args:
      process: the chain.
      apply_fn: the network (`types.ApplyFn`).
      params: the network's parameters.
      cond: None, or arrays with leading axis B.
      kind: the kind of the network's prediction: "eps", "x_0" or "v".
      clip_x_0: clip x_0 to [-b, b] and recompute eps. True is b = 1, False does not clip.

    Raises:
      UserError: from the denoiser: unknown kind, or a network's output of another shape.
    """

    def denoise_fn(x_t: Array, t: Array) -> Prediction:
        output = apply_network(process, apply_fn, params, x_t, t, cond, train=False, key=None)
        return to_prediction(process, output, x_t, t, kind)

    return clipped(process, denoise_fn, clip_x_0)


def clipped(
    process: GaussianProcess,
    denoise_fn: DenoiseFn,
    clip_x_0: bool | float,
    percentile: float = 0.0,
) -> DenoiseFn:
    """Return the denoiser with the clipping that two options name.

    Args:
      process: the chain.
      denoise_fn: the denoiser, unclipped.
      clip_x_0: b, the bound of |x_0|. True is 1, False does not clip.
      percentile: in [0, 1]; above 0 it is that of `dynamic_threshold`.

    Raises:
      UserError: as `check_threshold`.
    """
    check_threshold(clip_x_0, percentile)
    if not clip_x_0:
        return denoise_fn
    if percentile:
        return dynamic_threshold(process, denoise_fn, percentile, float(clip_x_0))
    return static_threshold(process, denoise_fn, float(clip_x_0))


def static_threshold(
    process: GaussianProcess, denoise_fn: DenoiseFn, bound: float = 1.0
) -> DenoiseFn:
    """Return a denoiser that clips the predicted x_0 to [-b, b] and recomputes eps.

    Limits: an x_0 inside [-b, b] does not change.

    Args:
      process: the chain.
      denoise_fn: the denoiser, unclipped.
      bound: b, above 0.
    """

    def clip(x_0: Array) -> Array:
        return jnp.clip(x_0, -bound, bound)

    return lambda x_t, t: with_x_0(process, denoise_fn(x_t, t), clip, x_t, t)


def dynamic_threshold(
    process: GaussianProcess, denoise_fn: DenoiseFn, percentile: float, bound: float = 1.0
) -> DenoiseFn:
    """Clip each image's x_0 to its own percentile s of |x_0| and scale it by b/s, if s > b.

    Strong guidance drives x_0 out of [-1, 1]. Static clipping then saturates x_0; dynamic clipping
    scales it back (Imagen: Saharia et al. 2022, section 2.3).

    Limits: with percentile = 1 nothing is clipped, only scaled. If |x_0| <= b, nothing changes.

    Args:
      process: the chain.
      denoise_fn: the denoiser, unclipped.
      percentile: in (0, 1], for instance 0.995.
      bound: b, above 0.

    Raises:
      UserError: percentile is outside (0, 1].
    """
    if not 0.0 < percentile <= 1.0:
        raise UserError(
            f"the percentile of dynamic_threshold must be in (0, 1], found {percentile}"
        )

    def scaled(x_0: Array) -> Array:
        pixels = tuple(range(1, x_0.ndim))
        s = jnp.quantile(jnp.abs(x_0), percentile, axis=pixels, keepdims=True) / bound
        s = jnp.maximum(s, 1.0)
        return jnp.clip(x_0, -s * bound, s * bound) / s

    return lambda x_t, t: with_x_0(process, denoise_fn(x_t, t), scaled, x_t, t)


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


def check_threshold(clip_x_0: bool | float, percentile: float) -> None:
    """Check that the percentile fits `clip_x_0`; 0 is no dynamic clipping.

    Raises:
      UserError: a percentile outside [0, 1], or above 0 while nothing is clipped.
    """
    if not 0.0 <= percentile <= 1.0:
        raise UserError(
            f"the percentile of dynamic_threshold must be in [0, 1], found {percentile}"
        )
    if percentile and not clip_x_0:
        raise UserError(
            f"the percentile of dynamic_threshold is {percentile}, but clip_x_0 is {clip_x_0}; "
            "set clip_x_0=True, or the percentile to 0"
        )
