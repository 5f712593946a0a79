"""Guidance: from denoiser to denoiser, towards a condition or away from a worse model.

  classifier-free   eps = (1+w) eps_cond - w eps_uncond           (Ho & Salimans 2022, eq. 6)
  autoguidance      D = D_1 + w (D_1 - D_0)                       (Karras et al. 2024)
  classifier        eps = eps - σ_t γ ∇_{x_t} log p(y | x_t)      (Dhariwal & Nichol 2021, alg. 2)

w = 0 is off. The other convention is scale = 1 + w (Imagen, Stable Diffusion, Karras's w): there
scale = 1 is off, and scale = 7.5 is our w = 6.5. Weights that sum to 1 keep x_t = alpha_t x_0 +
sigma_t eps, so the combinations are taken on x_0 and eps alike, whatever the network predicts.

They compose, and act on unclipped predictions; a threshold (`ddpm_jax.denoise`) comes last:
    pair = make_denoise_fn(process, apply_fn, params, with_null(cond), clip_x_0=False)
    denoise_fn = static_threshold(process, classifier_free(process, pair, w=1.5))

`make_sample(..., guidance=1.5)` does just that. Its `guidance` may also be any `Guide`, a function
(process, denoiser, params, cond) -> the guided DenoiseFn. There `denoiser(params, cond)` builds
unguided, unclipped denoisers, and the process may be traced (an argument of `jax.jit`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ddpm_jax.conditioning import with_null
from ddpm_jax.denoise import (
    check_threshold,
    dynamic_threshold,
    make_denoise_fn,
    static_threshold,
    with_x_0,
)
from ddpm_jax.errors import UserError
from ddpm_jax.process import GaussianProcess, alpha_sigma, expand
from ddpm_jax.types import ApplyFn, Array, Conditioning, DenoiseFn, Params, Prediction

Denoiser = Callable[[Params, Conditioning | None], DenoiseFn]
Guide = Callable[[GaussianProcess, Denoiser, Params, Conditioning | None], DenoiseFn]
Interval = tuple[int, int]  # timesteps t, both ends included


def classifier_free(
    process: GaussianProcess,
    pair_fn: DenoiseFn,
    w: float,
    *,
    interval: Interval | None = None,
    rescale: float = 0.0,
) -> DenoiseFn:
    """Guide by (1+w) D_cond - w D_uncond, both from one call of the network.

    w = 0 is the conditional model, w = -1 the unconditional one. Where t is outside the interval w
    is 0, but the network is still called on both. Deviates from Lin et al. 2023 (section 3.4), who
    rescale the network's output: here x_0 is rescaled, which is the same for every kind.

    Args:
      process: the chain.
      pair_fn: the denoiser, unclipped, of 2B images whose conditioning is `with_null(cond)`.
      w: guidance weight, at least -1; the usual 0.5..6.
      interval: (low, high), the timesteps at which to guide (Kynkaanniemi et al. 2024); None is
        all.
      rescale: φ in [0, 1]: how far the standard deviation of each guided x_0 is brought back to
        that of the conditional one (Lin et al. 2023; they take 0.7).

    Raises:
      UserError: w, interval or rescale out of range.
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
      denoise_fn: D_1, the model, unclipped.
      worse_fn: D_0, the same at an earlier step or of smaller size, with the same conditioning.
      w: guidance weight, at least -1; w = 0 is D_1, w = -1 is D_0. Karras's w is 1 + ours.
      interval: (low, high), the timesteps at which to guide; None is all.

    Raises:
      UserError: w or interval out of range.
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

    With the exact p(y | x_t) and scale 1 the unconditional Bayes-optimal denoiser becomes the
    conditional one. Where alpha_t = 0, x_t says nothing of y and nothing is guided.

    Args:
      process: the chain.
      denoise_fn: the denoiser, unclipped.
      log_prob: (x_t: [B, ...], t) -> [B], log p(y | x_t) of the wanted y, or any other reward.
      scale: γ, at least 0.
      interval: (low, high), the timesteps at which to guide; None is all.

    Raises:
      UserError: scale is negative, or interval out of range.
    """
    check_scale(scale)
    check(0.0, interval, T=process.num_timesteps)

    def guided(x_t: Array, t: Array) -> Prediction:
        prediction = denoise_fn(x_t, t)
        gradient = jax.grad(lambda x: log_prob(x, t).sum())(x_t)
        alpha_t, sigma_t = alpha_sigma(process, jnp.asarray(t), x_t)
        on = _within(t, interval, x_t) & (alpha_t > 0.0)
        shift = jnp.where(on, scale * sigma_t, 0.0) * gradient  # of eps, and of x_0 by -σ_t/alpha_t
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
    clip_x_0: bool = True,
    percentile: float = 0.0,
) -> DenoiseFn:
    """Build the denoiser of a network, guided first and clipped last.

    Args:
      process, apply_fn, params, cond, kind: as in `make_denoise_fn`.
      guidance: the weight w of classifier-free guidance, 0 is off; or a `Guide`.
      clip_x_0: clip x_0 to [-1, 1].
      percentile: of `dynamic_threshold`, in place of clipping; 0 is off.

    Raises:
      UserError: guidance without a condition, or numbers out of range.
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
    if percentile:
        return dynamic_threshold(process, denoise_fn, percentile)
    return static_threshold(process, denoise_fn) if clip_x_0 else denoise_fn


def check(
    w: float, interval: Interval | None = None, rescale: float = 0.0, T: int | None = None
) -> None:
    """Raise `UserError` where w < -1, rescale is outside [0, 1], or interval is not in 1..T."""
    if not w >= -1.0:
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
    """Raise `UserError` where the scale of classifier guidance is negative."""
    if not scale >= 0.0:
        raise UserError(f"the scale of classifier guidance must be at least 0, found {scale}")


def _away(
    better: Prediction, worse: Prediction, w: float, t: Array, interval: Interval | None
) -> Prediction:
    """Return better + w (better - worse), inside the interval; the variance stays better's."""
    w_t = jnp.where(_within(t, interval, better.x_0), w, 0.0).astype(better.x_0.dtype)
    x_0, eps = (b + w_t * (b - o) for b, o in zip(better[:2], worse[:2], strict=True))
    return better._replace(x_0=x_0, eps=eps)


def _within(t: Array, interval: Interval | None, like: Array) -> Array:
    """Return whether t is in the interval, shaped to broadcast against like: [B, ...]."""
    t = expand(jnp.asarray(t), like)
    if interval is None:
        return jnp.ones_like(t, bool)
    return (t >= interval[0]) & (t <= interval[1])
