"""Ancestral sampling, the reverse chain of DDPM (Ho et al. 2020, algorithm 2).

  x_s = c_1 x̂_0 + c_2 x_t + σ z,  z ~ N(0, I)      the mean of q(x_s | x_t, x̂_0), eqs. 7 and 11

This holds for any s < t. The same step therefore walks the full chain or any sub-sequence of it.
The mean is computed from x̂_0, which may be clipped. The step to s = 0 adds no noise: it returns
x̂_0.
"""

from typing import NamedTuple

import jax.numpy as jnp

from ddpm_jax.errors import unknown
from ddpm_jax.process import GaussianProcess, expand, q_posterior
from ddpm_jax.samplers.base import Noise, Sampler, with_options
from ddpm_jax.types import Array, DenoiseFn, Prediction, PRNGKey
from ddpm_jax.variance import VARIANCES


class AncestralState(NamedTuple):
    """The sample, [B, ...] float32."""

    x: Array


def ancestral(process: GaussianProcess, variance: str = "fixed_large") -> Sampler:
    """Build the ancestral sampler.

    Limits, with the Bayes-optimal denoiser: fixed_large is exact if the data are N(0, I), and
    fixed_small is exact if all data are one point (Ho et al. 2020, section 3.2).

    Args:
      process: the chain.
      variance: σ² of the step: "fixed_large", "fixed_small" or "learned_range". learned_range needs
        a network that predicts its variance. With few steps use fixed_small or learned_range.

    Raises:
      UserError: unknown variance.
    """
    if variance not in VARIANCES:
        raise unknown("variance", variance, VARIANCES)

    return Sampler(process, AncestralState, with_options(_advance, variance=variance))


def _advance(
    process: GaussianProcess,
    denoise_fn: DenoiseFn,
    noise: Noise,
    key: PRNGKey,
    state: AncestralState,
    t: Array,
    s: Array,
    *,
    variance: str,
) -> tuple[AncestralState, Prediction]:
    prediction = denoise_fn(state.x, t)
    mean, _, _ = q_posterior(process, prediction.x_0, state.x, t, s)
    sigma = jnp.exp(0.5 * VARIANCES[variance](process, t, s, prediction))
    sigma = jnp.where(s == 0, 0.0, sigma)
    x_s = mean + expand(sigma, mean) * noise(key, t, mean.shape)
    return AncestralState(x_s), prediction
