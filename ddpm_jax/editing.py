"""Editing: add noise to images up to some t, and denoise them with any sampler.

  sdedit        x_t ~ q(x_t | x_0), and the reverse chain from t        (Meng et al. 2022, alg. 1)
  interpolate   (1-λ) x_t + λ x'_t, both noised by q with one ε, and the reverse chain from t
                                                                  (Ho et al. 2020, section 4.4)
  inpaint       x_s = m q_sample(x_0, s) + (1-m) p_step(x_t), then up by q(x_t | x_s) and down
                again, several times                              (Lugmayr et al. 2022, alg. 1)

The functions are pure. They take a sampler, a denoiser (guided or not) and one key per image. The
noise of image i depends on `key[i]` only. The depth of sdedit and interpolate is the first timestep
of the grid (`from_depth`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UserError, unknown
from ddpm_jax.pixels import check_x_0
from ddpm_jax.process import GaussianProcess, expand, jump, q_sample
from ddpm_jax.randomness import draw_x_T, fold_in
from ddpm_jax.samplers.base import Noise, Sampler, on_process, sample_loop
from ddpm_jax.timesteps import check_grid
from ddpm_jax.types import Array, DenoiseFn, Prediction, PRNGKey, Timesteps


def from_depth(timesteps: Timesteps, depth: int) -> Timesteps:
    """Return a sampling grid from depth to 0: depth, then the timesteps below it, int32.

    Args:
      timesteps: [K+1] int, strictly descending from T to 0.
      depth: t in 1..T. A larger depth keeps less of the image.

    Raises:
      UserError: depth is not in 1..T, or the grid does not descend.
    """
    timesteps = check_grid(timesteps)
    T = int(timesteps[0])
    if not 1 <= depth <= T:
        raise UserError(f"depth must be in 1..{T} (T), found {depth}")
    return np.append(depth, timesteps[timesteps < depth]).astype(np.int32)


def sdedit(
    process: GaussianProcess,
    sampler: Sampler,
    denoise_fn: DenoiseFn,
    key: PRNGKey,
    x_0: Array,
    timesteps: Timesteps,
) -> Array:
    """Return x_0 noised to timesteps[0] and denoised again: [B, ...] (SDEdit).

    Limits: a small depth redraws only the finest detail of x_0. With the whole grid and alpha_T = 0
    the result is a plain sample with the same key.

    Args:
      process: the chain.
      sampler: any sampler that is built on the same process.
      denoise_fn: the denoiser.
      key: [B] keys.
      x_0: [B, ...] float, the images.
      timesteps: [K+1] int, strictly descending from the depth to 0 (`from_depth`).

    Raises:
      UserError: x_0 is not float; the sampler was built on another process, or the grid is wrong.
    """
    check_x_0(x_0)
    sampler = on_process(sampler, process)
    timesteps = check_grid(timesteps, process.num_timesteps)
    x_t = q_sample(process, x_0, jnp.int32(timesteps[0]), draw_x_T(key, x_0.shape[1:]))
    return sample_loop(sampler, denoise_fn, key, timesteps, x_t)


def interpolate(
    process: GaussianProcess,
    sampler: Sampler,
    denoise_fn: DenoiseFn,
    key: PRNGKey,
    x_0: Array,
    other: Array,
    weight: Array,
    timesteps: Timesteps,
    mix: str = "lerp",
) -> Array:
    """Return images between x_0 and other, mixed at depth timesteps[0]: [B, ...].

    Both images get the same noise, so that `lerp` keeps the noise whole at any weight. Give all
    images of one series the same key; they then share all noise.

    Limits: weight 0 is `sdedit` of x_0, weight 1 is `sdedit` of other.

    Args:
      process, sampler, denoise_fn, key, timesteps: as in `sdedit`.
      x_0: [B, ...] float, the images at weight 0.
      other: [B, ...] float, the images at weight 1.
      weight: λ in [0, 1], scalar or [B].
      mix: "lerp" is (1-λ) x_t + λ x'_t; "slerp" follows the arc between x_t and x'_t.

    Raises:
      UserError: x_0 is not float; unknown mix; the images have two shapes; the sampler was built on
        another process; the grid is wrong.
    """
    check_x_0(x_0)
    check_x_0(other)
    if mix not in MIXES:
        raise unknown("mix", mix, MIXES)
    if x_0.shape != other.shape:
        raise UserError(
            f"x_0 and other must have the same shape, found {x_0.shape} and {other.shape}; "
            "resize one of them"
        )
    sampler = on_process(sampler, process)
    timesteps = check_grid(timesteps, process.num_timesteps)
    t = jnp.int32(timesteps[0])
    eps = draw_x_T(key, x_0.shape[1:])
    x_t, other_t = (q_sample(process, x, t, eps) for x in (x_0, other))
    weight = expand(jnp.asarray(weight, x_t.dtype), x_t)
    return sample_loop(sampler, denoise_fn, key, timesteps, MIXES[mix](x_t, other_t, weight))


def lerp(x: Array, y: Array, weight: Array) -> Array:
    """Return (1-λ) x + λ y: [B, ...], for x and y [B, ...] and a λ that broadcasts to them."""
    return (1.0 - weight) * x + weight * y


def slerp(x: Array, y: Array, weight: Array) -> Array:
    """Return (sin((1-λ)θ) x + sin(λθ) y) / sin θ, where θ is the angle between the images x and y.

    Limits: if x and y are parallel, it is `lerp`.

    Args:
      x, y: [B, ...] float; the angle is over all axes but the first.
      weight: λ in [0, 1], broadcastable to x.
    """
    pixels = tuple(range(1, x.ndim))
    norms = [jnp.sqrt(jnp.square(v).sum(axis=pixels, keepdims=True)) for v in (x, y)]
    cosine = (x * y).sum(axis=pixels, keepdims=True) / jnp.maximum(norms[0] * norms[1], 1e-12)
    cosine = jnp.clip(cosine, -1.0, 1.0)
    parallel = jnp.abs(cosine) > 1.0 - 1e-6
    theta = jnp.arccos(jnp.where(parallel, 0.0, cosine))
    arc = (jnp.sin((1.0 - weight) * theta) * x + jnp.sin(weight * theta) * y) / jnp.sin(theta)
    return jnp.where(parallel, lerp(x, y, weight), arc)


MIXES: dict[str, Callable[[Array, Array, Array], Array]] = {"lerp": lerp, "slerp": slerp}


def inpaint(
    process: GaussianProcess,
    sampler: Sampler,
    denoise_fn: DenoiseFn,
    key: PRNGKey,
    x_0: Array,
    mask: Array,
    timesteps: Timesteps,
    *,
    num_resamples: int = 10,
    jump_length: int = 1,
) -> Array:
    """Return x_0 with new pixels where the mask is 0: [B, ...] (RePaint).

    num_resamples = 1 only pastes the known pixels in at every step. The new pixels then do not fit
    the known ones well. Resampling makes them fit, at num_resamples network calls a step.

    An example with two correlated pixels (T = 100, fixed_large): the mean of the hidden pixel
    should be 0.44. It is 0.151 at num_resamples = 1, 0.395 at 10 and 0.434 at 200. Resampling also
    repeats the error of a step. fixed_small is a little too narrow each time: its variance ends at
    0.18 instead of 0.28 (at 200).

    Args:
      process: the chain.
      sampler: a sampler without memory between steps, such as `samplers.ancestral(process)`.
      denoise_fn: the denoiser.
      key: [B] keys.
      x_0: [B, ...] float, the images. Their hidden pixels do not affect the result.
      mask: broadcastable to x_0, e.g. [B, H, W, 1]. 1 keeps the pixel; 0 hides it and draws it.
      timesteps: [K+1] int, strictly descending from T to 0.
      num_resamples: U, at least 1, how often the walk goes down each stretch of the grid.
      jump_length: number of steps in a stretch, at least 1. For images the paper uses 10 for both.

    Raises:
      UserError: x_0 is not float; num_resamples or jump_length is below 1; the mask does not fit
        x_0; the sampler was built on another process; the grid is wrong.
    """
    check_x_0(x_0)
    try:
        mask = jnp.broadcast_to(jnp.asarray(mask), x_0.shape).astype(bool)
    except ValueError:
        raise UserError(
            f"the mask of shape {np.shape(mask)} does not fit images of shape {x_0.shape}; give a "
            f"mask that broadcasts to them, such as {(*x_0.shape[:-1], 1)}"
        ) from None
    sampler = on_process(sampler, process)
    timesteps = check_grid(timesteps, process.num_timesteps, whole=True)
    grid = resampling_grid(timesteps, num_resamples, jump_length)
    x_T = draw_x_T(key, x_0.shape[1:])
    return sample_loop(repaint(sampler, x_0, mask), denoise_fn, key, grid, x_T)


def resampling_grid(timesteps: Timesteps, num_resamples: int, jump_length: int) -> np.ndarray:
    """Return the walk of RePaint, which goes down each stretch of the grid num_resamples times.

    Between two descents the walk goes up the stretch again. It takes the step to clean data once
    (the t > 1 of algorithm 1). The stretches are counted from there; the first one, at T, may be
    shorter.

    Limits: jump_length = 1 on the full grid is algorithm 1. num_resamples = 1 is the grid itself.

    Args:
      timesteps, num_resamples, jump_length: as in `inpaint`.

    Returns:
      [M] int, a walk from T to 0 that goes up and down.

    Raises:
      UserError: num_resamples or jump_length is below 1, or the grid is wrong.
    """
    if num_resamples < 1 or jump_length < 1:
        raise UserError(
            "num_resamples and jump_length must be at least 1, found "
            f"{num_resamples} and {jump_length}"
        )
    timesteps = check_grid(timesteps)
    noisy = len(timesteps) - 2  # index of the last timestep that is not clean
    ends = np.arange(noisy, 0, -jump_length)[::-1]
    walk, start = [timesteps[:1]], 0
    for end in ends:
        stretch = timesteps[start : end + 1]
        walk += [stretch[1:], *[stretch[-2::-1], stretch[1:]] * (num_resamples - 1)]
        start = end
    return np.concatenate([*walk, timesteps[-1:]])


class RepaintState(NamedTuple):
    """The sample, the last prediction, and the number of steps taken.

    `count` goes into every key, because the walk leaves the same timestep several times.
    """

    x: Array
    prediction: Prediction
    count: Array


def repaint(sampler: Sampler, x_0: Array, mask: Array) -> Sampler:
    """Build the sampler of RePaint: a step down pastes in the known pixels, a step up adds noise.

    Args:
      sampler, x_0: as in `inpaint`.
      mask: bool, with the shape of x_0; True is known.
    """

    def init(x_T: Array) -> RepaintState:
        return RepaintState(x_T, Prediction(x_T, x_T), jnp.int32(0))

    def advance(
        process: GaussianProcess,
        denoise_fn: DenoiseFn,
        noise: Noise,
        key: PRNGKey,
        state: RepaintState,
        t: Array,
        s: Array,
    ) -> tuple[RepaintState, Prediction]:
        key = fold_in(key, state.count)

        def down() -> tuple[Array, Prediction]:
            keys = jax.vmap(jax.random.split)(key)  #                              [B, 2]
            inner = sampler.init(state.x)
            drawn, prediction = sampler.advance(process, denoise_fn, noise, keys[:, 0], inner, t, s)
            known = q_sample(process, x_0, s, noise(keys[:, 1], t, x_0.shape))
            prediction = prediction._replace(log_variance_fraction=None)  # as on the way up
            return jnp.where(mask, known, drawn.x), prediction

        def up() -> tuple[Array, Prediction]:
            ratio, beta = jump(process, s, t)  # from t to the noisier s
            x = ratio * state.x + jnp.sqrt(beta) * noise(key, t, x_0.shape)
            return x, state.prediction

        x, prediction = jax.lax.cond(s < t, down, up)
        return RepaintState(x, prediction, state.count + 1), prediction

    return Sampler(sampler.process, init, advance, sampler.noise, direction="both")
