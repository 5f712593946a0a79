"""The variational bound of images, estimated from some of its T terms: rate and distortion.

  L = L_T + Σ_t L_{t-1} ≈ L_T + Σ_j n_j L_{t_j - 1},  t_j uniform in the j-th part of {1..T}, which
                                                      has n_j timesteps    (Ho et al. 2020, eq. 5)

The parts lie denser towards t = 1, where the terms are large, and t = 1 is a part of its own. The
estimate is unbiased for any number of parts; with T of them every term is there.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import timesteps
from ddpm_jax.denoise import make_denoise_fn
from ddpm_jax.errors import UserError
from ddpm_jax.likelihood.terms import bound_terms, prior_term
from ddpm_jax.pixels import SCALE, to_x_0
from ddpm_jax.process import GaussianProcess
from ddpm_jax.randomness import fold_in, image_keys
from ddpm_jax.runtime import rows
from ddpm_jax.sampling import check_cond
from ddpm_jax.types import ApplyFn, Array, Conditioning, Params, PRNGKey


class Bound(NamedTuple):
    """The terms of n images, in bits/dim.

    Attributes:
      edges: [K+1] int, 0 = edges[0] < ... < edges[K] = T; part j is edges[j] < t <= edges[j+1].
      prior: [n] float64, L_T.
      terms: [K, n] float64, L_{t-1} at the t that was drawn of each part.
      squared_error: [K, n] float64, mean over pixels of (x_0 - x̂_0)² there, x_0 in [-1, 1].
    """

    edges: np.ndarray
    prior: np.ndarray
    terms: np.ndarray
    squared_error: np.ndarray


class Part(NamedTuple):
    """The terms of the timesteps low..high, a point of the rate-distortion curve.

    Attributes:
      low, high: timesteps.
      bits, error: bits/dim of all these terms together, and the standard error over images.
      rate: bits/dim that a receiver has got when it knows x_t, a mean over the part.
      distortion: RMSE of its x̂_0 on the scale {0..255}.
    """

    low: int
    high: int
    bits: float
    error: float
    rate: float
    distortion: float


def make_bound(
    process: GaussianProcess,
    apply_fn: ApplyFn,
    *,
    kind: str = "eps",
    variance: str = "fixed_large",
    decoder: str = "posterior",
    clip_x_0: bool = True,
    num_terms: int | None = None,
) -> Callable[..., Bound]:
    """Build `bound(params, key, images, cond=None, *, start=0) -> Bound`.

    `images` are [n, H, W, C] uint8. Image i is noised from fold_in(key, start + i) only, so that
    batches and devices change nothing. All local devices share the images; it compiles once for
    each n (rounded up to a multiple of the devices).

    Args:
      process: the chain.
      apply_fn: the network.
      kind: what it predicts.
      variance: σ_t² (`ddpm_jax.variance`).
      decoder: of L_0 (`likelihood.step_term`).
      clip_x_0: clip predicted x_0 to [-1, 1], as samplers do.
      num_terms: K in 1..T; None is T, every term.

    Raises:
      UserError: num_terms is not in 1..T; from `bound`: images that are not uint8.
    """
    T = process.num_timesteps
    if num_terms is not None and not 1 <= num_terms <= T:
        raise UserError(f"num_terms must be in 1..{T} (T), found {num_terms}")
    edges = timesteps.quadratic(T, T if num_terms is None else num_terms)[::-1]
    low, high = edges[:-1, None], edges[1:, None]  #                                    [K, 1]
    width = (high - low).astype(np.float32)

    def run(shared: tuple[Params, PRNGKey], each: tuple[Array, Array, Conditioning | None]):
        (params, key), (index, images, cond) = shared, each
        keys = image_keys(key, index)
        x_0 = to_x_0(images)
        # 0 is no timestep: this draw is independent of the noise of every one
        u = jax.vmap(lambda k: jax.random.uniform(k, low.shape[:1]))(fold_in(keys, 0)).T
        t = jnp.minimum(low + 1 + (u * width).astype(jnp.int32), high)  #         [K, B]
        denoise_fn = make_denoise_fn(process, apply_fn, params, cond, kind=kind, clip_x_0=clip_x_0)
        terms, squared_error = bound_terms(
            process, denoise_fn, keys, x_0, t, variance=variance, decoder=decoder
        )
        return prior_term(process, x_0), terms, squared_error

    spread_run = rows.over_local_devices(run, out_axes=(0, 1, 1))

    def bound(
        params: Params,
        key: PRNGKey,
        images: np.ndarray,
        cond: Conditioning | None = None,
        *,
        start: int = 0,
    ) -> Bound:
        if images.dtype != np.uint8:
            raise UserError(f"images must be uint8, of 256 values; found {images.dtype}")
        n = len(images)
        index = np.arange(start, start + n, dtype=np.uint32)
        found = spread_run((params, key), (index, images, check_cond(cond, n)))
        return Bound(edges, *(np.asarray(part, np.float64) for part in jax.device_get(found)))

    return bound


def concatenate(bounds: list[Bound]) -> Bound:
    """Return the terms of all the images of several calls with one `bound`."""
    _, *parts = zip(*bounds, strict=True)
    return Bound(bounds[0].edges, *(np.concatenate(part, axis=-1) for part in parts))


def total(bound: Bound) -> np.ndarray:
    """Return L of each image: [n] bits/dim."""
    return bound.prior + np.diff(bound.edges) @ bound.terms


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Return the mean of [n] values, and its standard error (NaN of one value)."""
    error = values.std(ddof=1) / np.sqrt(values.size) if values.size > 1 else np.nan
    return float(values.mean()), float(error)


def rate_distortion(bound: Bound) -> list[Part]:
    """Return the parts from T down to 1 (Ho et al. 2020, figure 5).

    To know x_t, a receiver has got L_T and the terms of all timesteps above t.
    """
    rate, parts = bound.prior.mean(), []
    for low, high, terms, error in reversed(
        list(zip(bound.edges, bound.edges[1:], bound.terms, bound.squared_error, strict=False))
    ):
        count = high - low
        bits, standard_error = mean_and_error(count * terms)
        middle = rate + bits * (count - 1) / (2 * count)
        rmse = SCALE * float(np.sqrt(error.mean()))
        parts.append(Part(int(low) + 1, int(high), bits, standard_error, float(middle), rmse))
        rate += bits
    return parts
