"""Guidance: functions from denoiser to denoiser, towards a condition or away from a worse model.

  classifier-free   eps = (1+w) eps_cond - w eps_uncond           (Ho & Salimans 2022, eq. 6)
  autoguidance      D = D_1 + w (D_1 - D_0)                       (Karras et al. 2024)
  classifier        eps = eps - σ_t γ ∇_{x_t} log p(y | x_t)      (Dhariwal & Nichol 2021, alg. 2)

w = 0 is off. The other convention is scale = 1 + w (Imagen, Stable Diffusion, Karras's w): there
scale = 1 is off, and scale = 7.5 is our w = 6.5.

The weights sum to 1, which keeps x_t = alpha_t x_0 + sigma_t eps. The same combination therefore
applies to x_0 and to eps, whatever the network predicts.

The functions compose. They need unclipped predictions; apply a threshold (`ddpm_jax.denoise`) last:
    pair = make_denoise_fn(process, apply_fn, params, with_null(cond), clip_x_0=False)
    denoise_fn = static_threshold(process, classifier_free(process, pair, w=1.5))

`make_sample(..., guidance=1.5)` does exactly this. Its `guidance` may also be a `Guide`: a function
(process, denoiser, params, cond) -> the guided DenoiseFn. The guide calls `denoiser(params, cond)`
to build an unguided, unclipped denoiser. The process may be traced (an argument of `jax.jit`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from ddpm_jax.conditioning import with_null
from ddpm_jax.denoise import check_threshold, clipped, make_denoise_fn, with_x_0
from ddpm_jax.errors import UserError
from ddpm_jax.process import GaussianProcess, alpha_sigma, expand
from ddpm_jax.types import ApplyFn, Array, Conditioning, DenoiseFn, Params, Prediction

Denoiser = Callable[[Params, Conditioning | None], DenoiseFn]
Guide = Callable[[GaussianProcess, Denoiser, Params, Conditioning | None], DenoiseFn]
Interval = tuple[int, int]  # timesteps t, both ends included


def classifier_free(
    process: GaussianProcess,
    pair_fn: DenoiseFn,
    w: ArrayLike,
    *,
    interval: Interval | None = None,
    rescale: float = 0.0,
) -> DenoiseFn:
    """Guide by (1+w) D_cond - w D_uncond; one call of the network predicts both.

    Limits: w = 0 is the conditional model, w = -1 the unconditional one. If t is outside the
    interval, w is 0, but the network still predicts both.

    Deviates from Lin et al. 2023 (section 3.4), who rescale the network's output. Here x_0 is
    rescaled, so the result does not depend on what the network predicts.

    Args:
      process: the chain.
      pair_fn: the unclipped denoiser of 2B images, with `with_null(cond)` as its conditioning.
      w: guidance weight, at least -1; usually 0.5..6. A traced weight is not checked.
      interval: (low, high), the timesteps at which to guide, both included (Kynkaanniemi et al.
        2024). None is all.
      rescale: φ in [0, 1]. 1 gives each guided x_0 the standard deviation of the conditional x_0,
        0 is off (Lin et al. 2023 use 0.7).

    Raises:
      UserError: w, interval or rescale is out of its range.
    """
    check(w, interval, rescale, process.num_timesteps)

    def guided(x_t: Array, t: Array) -> Prediction:
        twice = jnp.repeat(jnp.asarray(t), 2, axis=0) if jnp.ndim(t) else t
        both = pair_fn(jnp.repeat(x_t, 2, axis=0), twice)
        conditional, null = (jax.tree.map(lambda v, i=i: v[i::2], both) for i in (0, 1))
        prediction = _away(conditional, null, w, t, interval)
        if not rescale:
            return prediction
        pixels = tuple(range(1, x_t.ndim))
        wanted, found = (p.x_0.std(axis=pixels, keepdims=True) for p in (conditional, prediction))
        ratio = jnp.where(found > 0.0, wanted / jnp.where(found > 0.0, found, 1.0), 1.0)
        factor = 1.0 + rescale * (ratio - 1.0)
        rescaled = with_x_0(process, prediction, lambda x_0: factor * x_0, x_t, t)
        on = _within(t, interval, x_t)
        return jax.tree.map(lambda r, p: jnp.where(on, r, p), rescaled, prediction)

    return guided


def autoguidance(
    denoise_fn: DenoiseFn, worse_fn: DenoiseFn, w: float, *, interval: Interval | None = None
) -> DenoiseFn:
    """Guide away from a worse model: D_1 + w (D_1 - D_0) (Karras et al. 2024).

    Args:
      denoise_fn: D_1, the unclipped denoiser of the model.
      worse_fn: D_0, the unclipped denoiser of a worse model: an earlier checkpoint or a smaller
        network, with the same conditioning.
      w: guidance weight, at least -1. w = 0 is D_1, w = -1 is D_0. Karras's w is 1 + our w.
      interval: (low, high), the timesteps at which to guide, both included. None is all.

    Raises:
      UserError: w or interval is out of its range.
    """
    check(w, interval)

    def guided(x_t: Array, t: Array) -> Prediction:
        return _away(denoise_fn(x_t, t), worse_fn(x_t, t), w, t, interval)

    return guided


def classifier(
    process: GaussianProcess,
    denoise_fn: DenoiseFn,
    log_prob: Callable[[Array, Array], Array],
    scale: float = 1.0,
    *,
    interval: Interval | None = None,
) -> DenoiseFn:
    """Guide by the gradient of a classifier of noisy images (Dhariwal & Nichol 2021, alg. 2).

    Limits: with the exact p(y | x_t) and scale 1 the unconditional Bayes-optimal denoiser becomes
    the conditional one. If alpha_t = 0, x_t does not depend on y, and the guidance is off.

    Args:
      process: the chain.
      denoise_fn: the unclipped denoiser.
      log_prob: (x_t: [B, ...], t) -> [B], log p(y | x_t) of the wanted y, or any other reward.
      scale: γ, at least 0.
      interval: (low, high), the timesteps at which to guide, both included. None is all.

    Raises:
      UserError: scale is negative, or interval is out of its range.
    """
    check_scale(scale)
    check(0.0, interval, T=process.num_timesteps)

    def guided(x_t: Array, t: Array) -> Prediction:
        prediction = denoise_fn(x_t, t)
        gradient = jax.grad(lambda x: log_prob(x, t).sum())(x_t)
        alpha_t, sigma_t = alpha_sigma(process, jnp.asarray(t), x_t)
        on = _within(t, interval, x_t) & (alpha_t > 0.0)
        shift = jnp.where(on, scale * sigma_t, 0.0) * gradient  # eps decreases by it
        ratio = sigma_t / jnp.where(alpha_t > 0.0, alpha_t, 1.0)
        return prediction._replace(x_0=prediction.x_0 + ratio * shift, eps=prediction.eps - shift)

    return guided


def make_guided_denoise_fn(
    process: GaussianProcess,
    apply_fn: ApplyFn,
    params: Params,
    cond: Conditioning | None = None,
    *,
    kind: str = "eps",
    guidance: float | Guide = 0.0,
    clip_x_0: bool | float = True,
    percentile: float = 0.0,
) -> DenoiseFn:
    """Build the denoiser of a network: guide it first and clip x_0 last.

    Args:
      process, apply_fn, params, cond, kind: as in `make_denoise_fn`.
      guidance: the weight w of classifier-free guidance (0 is off), or a `Guide`.
      clip_x_0: clip x_0 to [-b, b]. True is b = 1, False does not clip.
      percentile: in [0, 1], the percentile of `dynamic_threshold`, which then replaces the
        clipping. 0 is off.

    Raises:
      UserError: there is guidance but no condition, or a number is out of its range.
    """
    check_threshold(clip_x_0, percentile)

    def denoiser(params: Params, cond: Conditioning | None) -> DenoiseFn:
        return make_denoise_fn(process, apply_fn, params, cond, kind=kind, clip_x_0=False)

    if callable(guidance):
        denoise_fn = guidance(process, denoiser, params, cond)
    elif guidance:
        denoise_fn = classifier_free(process, denoiser(params, with_null(cond)), guidance)
    else:
        denoise_fn = denoiser(params, cond)
    return clipped(process, denoise_fn, clip_x_0, percentile)


def check(
    w: ArrayLike, interval: Interval | None = None, rescale: float = 0.0, T: int | None = None
) -> None:
    """Raise `UserError` if w < -1, rescale is not in [0, 1], or interval is not in 1..T."""
    if not isinstance(w, Tracer) and not np.asarray(w) >= -1.0:
        raise UserError(f"guidance w must be at least -1 (0 is off), found {w}")
    if not 0.0 <= rescale <= 1.0:
        raise UserError(f"guidance rescale must be in [0, 1], found {rescale}")
    if interval is None:
        return
    low, high = interval
    last = "T" if T is None else f"{T} (T)"
    if not 1 <= low <= high or (T is not None and high > T):
        allowed = f"(low, high) with 1 <= low <= high <= {last}"
        raise UserError(f"guidance interval must be {allowed}, found {tuple(interval)}")


def check_scale(scale: float) -> None:
    """Raise `UserError` if the scale of classifier guidance is negative."""
    if not scale >= 0.0:
        raise UserError(f"the scale of classifier guidance must be at least 0, found {scale}")


def _away(
    better: Prediction, worse: Prediction, w: ArrayLike, t: Array, interval: Interval | None
) -> Prediction:
    """Return better + w (better - worse) if t is in the interval; keep the variance of `better`."""
    w_t = jnp.where(_within(t, interval, better.x_0), w, 0.0).astype(better.x_0.dtype)
    x_0, eps = (b + w_t * (b - o) for b, o in zip(better[:2], worse[:2], strict=True))
    return better._replace(x_0=x_0, eps=eps)


def _within(t: Array, interval: Interval | None, like: Array) -> Array:
    """Return whether t is in the interval: bool, in a shape that broadcasts to `like`."""
    t = expand(jnp.asarray(t), like)
    if interval is None:
        return jnp.ones_like(t, bool)
    return (t >= interval[0]) & (t <= interval[1])
