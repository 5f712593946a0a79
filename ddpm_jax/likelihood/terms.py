"""The variational bound on -log p(x_0), term by term, in bits per dimension.

  -log p(x_0) <= L = L_T + Σ_{t>1} L_{t-1} + L_0                             (Ho et al. 2020, eq. 5)
  L_T     = KL(q(x_T | x_0) ‖ N(0, I))
  L_{t-1} = KL(q(x_{t-1} | x_t, x_0) ‖ p(x_{t-1} | x_t)),  both Gaussian
          = (e^d - 1 - d)/2 + c_1² (x_0 - x̂_0)² / (2 σ_t²),  d = ln β̃_t - ln σ_t²     (eqs. 7, 11)
  L_0     = -log p(x_0 | x_1), a Gaussian integrated over the bin of each pixel value   (eq. 13)

A term is the mean over pixels and channels of nats / ln 2. Data are 8-bit pixels scaled to [-1, 1],
so bins are 2/255 wide, and the two at the edges are open. On a chain with fewer steps
(`process.respace`) it is that chain's bound.
"""

import math

import jax
import jax.numpy as jnp

from ddpm_jax.errors import unknown
from ddpm_jax.process import GaussianProcess, expand, jump, q_sample, read
from ddpm_jax.types import Array, DenoiseFn, Prediction, PRNGKey
from ddpm_jax.variance import VARIANCES, fixed_small

HALF_BIN = 1.0 / 255.0
DECODERS = ("posterior", "flat")


def prior_term(process: GaussianProcess, x_0: Array) -> Array:
    """Return L_T: [B] bits/dim.

    Args:
      process: the chain.
      x_0: [B, ...] float, in [-1, 1].
    """
    alpha_bar = process.alphas_cumprod[-1]  # the variance is 1 - ᾱ_T, and 1 would hide ᾱ_T
    return bits_per_dim(0.5 * (alpha_bar * jnp.square(x_0) - alpha_bar - jnp.log1p(-alpha_bar)))


def step_term(
    process: GaussianProcess,
    prediction: Prediction,
    x_0: Array,
    x_t: Array,
    t: Array,
    *,
    variance: str = "fixed_large",
    decoder: str = "posterior",
) -> Array:
    """Return L_{t-1}, where t = 1 L_0: [B] bits/dim.

    Args:
      process: the chain.
      prediction: the denoiser's, at x_t.
      x_0: [B, ...] float, in [-1, 1].
      x_t: [B, ...] float, drawn from q(x_t | x_0).
      t: [B] int32 in 1..T.
      variance: σ_t² of p(x_{t-1} | x_t), "fixed_large", "fixed_small" or "learned_range".
      decoder: "posterior" is p(x_0 | x_1) = N(x̂_0, σ_1²), Ho's; "flat" is N(x_1/alpha_1,
        (sigma_1/alpha_1)²), the posterior of a flat prior, which no network enters and which a
        first timestep of any noise suits (Kingma et al. 2021, section 3.1).

    Raises:
      UserError: unknown variance or decoder.
    """
    if variance not in VARIANCES:
        raise unknown("variance", variance, VARIANCES)
    log_variance = expand(jnp.asarray(VARIANCES[variance](process, t, t - 1, prediction)), x_0)
    ratio = expand(fixed_small(process, t, t - 1), x_0) - log_variance  # ln β̃ - ln σ²
    coef1 = expand(read(process.posterior_mean_coef1, t), x_0)
    error = jnp.square(coef1 * (x_0 - prediction.x_0)) * jnp.exp(-log_variance)
    divergence = 0.5 * (jnp.expm1(ratio) - ratio + error)
    mean, log_deviation = _decoder(process, prediction, x_t, 0.5 * log_variance, decoder)
    likelihood = discretized_gaussian_log_prob(x_0, mean, log_deviation)
    return bits_per_dim(jnp.where(expand(t == 1, x_0), -likelihood, divergence))


def bound_terms(
    process: GaussianProcess,
    denoise_fn: DenoiseFn,
    key: PRNGKey,
    x_0: Array,
    timesteps: Array,
    *,
    variance: str = "fixed_large",
    decoder: str = "posterior",
) -> tuple[Array, Array]:
    """Return the terms at some timesteps, and the squared error of x̂_0 there: two [K, B].

    Each x_t is drawn from q(x_t | x_0), image i's at t from fold_in(key[i], t).

    Args:
      process: the chain.
      denoise_fn: the denoiser; clip its x_0 if the sampler does.
      key: [B] keys.
      x_0: [B, ...] float, in [-1, 1].
      timesteps: [K, B] int32 in 1..T; each image has its own.
      variance, decoder: as in `step_term`.

    Returns:
      terms: bits/dim.
      squared_error: mean of (x_0 - x̂_0)² over pixels; its root times 127.5 is the RMSE on {0..255}.
    """

    def at(t: Array) -> tuple[Array, Array]:
        draw = jax.vmap(lambda k, t: jax.random.normal(jax.random.fold_in(k, t), x_0.shape[1:]))
        x_t = q_sample(process, x_0, t, draw(key, t))
        prediction = denoise_fn(x_t, t)
        term = step_term(process, prediction, x_0, x_t, t, variance=variance, decoder=decoder)
        return term, _mean(jnp.square(x_0 - prediction.x_0))

    return jax.lax.map(at, timesteps)


def discretized_gaussian_log_prob(x: Array, mean: Array, log_deviation: Array) -> Array:
    """Return ln of N(mean, deviation²) integrated over the bin of x (Ho et al. 2020, eq. 13).

    The bin is x ± 1/255; below -1 and above 1 it is open. Deviates from Ho's code, which takes an
    approximation of Φ and a floor of 1e-12: here the tails are exact, as differences of ln Φ on the
    side where nothing cancels.

    Args:
      x: float in [-1, 1], a pixel value k/127.5 - 1.
      mean, log_deviation: float, broadcasting against x.

    Returns:
      float of x's shape, at most 0.
    """
    scale = jnp.exp(-log_deviation)
    low, high = (x - HALF_BIN - mean) * scale, (x + HALF_BIN - mean) * scale
    flip = low + high > 0.0  # Φ(b) - Φ(a) = Φ(-a) - Φ(-b), and Φ is exact in its lower tail
    low, high = jnp.where(flip, -high, low), jnp.where(flip, -low, high)
    edge_low, edge_high = x < -1.0 + HALF_BIN, x > 1.0 - HALF_BIN
    whole = jnp.where(flip, edge_high, edge_low)  # the lower end, after the flip, is open
    open_above = jnp.where(flip, edge_low, edge_high)
    log_high = jax.scipy.stats.norm.logcdf(jnp.where(open_above, 0.0, high))
    log_high = jnp.where(open_above, 0.0, log_high)
    gap = jax.scipy.stats.norm.logcdf(low) - log_high
    # ln(1 - e^gap), by the branch that keeps its digits; the double where keeps gradients finite
    gap = jnp.minimum(gap, -jnp.finfo(gap.dtype).tiny)
    near = gap > -0.7
    near_log = jnp.log(-jnp.expm1(jnp.where(near, gap, -1.0)))
    far_log = jnp.log1p(-jnp.exp(jnp.where(near, -1.0, gap)))
    return log_high + jnp.where(whole, 0.0, jnp.where(near, near_log, far_log))


def bits_per_dim(nats: Array) -> Array:
    """Return the mean of nats: [B, ...] over all but the first axis, in bits: [B]."""
    return _mean(nats) / math.log(2.0)


def _decoder(
    process: GaussianProcess, prediction: Prediction, x_1: Array, log_deviation: Array, name: str
) -> tuple[Array, Array]:
    """Return the mean and log deviation of p(x_0 | x_1)."""
    if name == "posterior":
        return prediction.x_0, log_deviation
    if name == "flat":
        alpha_1 = process.sqrt_alphas_cumprod[1]
        _, beta = jump(process, 1, 0)
        return x_1 / alpha_1, 0.5 * jnp.log(beta) - jnp.log(alpha_1)
    raise unknown("decoder", name, DECODERS)


def _mean(x: Array) -> Array:
    return x.mean(axis=tuple(range(1, x.ndim)))
