"""The variational bound on -log p(x_0), term by term, in bits per dimension.

  -log p(x_0) <= L = L_T + Σ_{t>1} L_{t-1} + L_0                             (Ho et al. 2020, eq. 5)
  L_T     = KL(q(x_T | x_0) ‖ N(0, I))
  L_{t-1} = KL(q(x_{t-1} | x_t, x_0) ‖ p(x_{t-1} | x_t)),  both Gaussian
          = (e^d - 1 - d)/2 + c_1² (x_0 - x̂_0)² / (2 σ_t²),  d = ln β̃_t - ln σ_t²     (eqs. 7, 11)
  L_0     = -log p(x_0 | x_1), a Gaussian integrated over the bin of each pixel value   (eq. 13)
            or q(x_1 | x_0), normalised over the 256 pixel values (Kingma et al. 2021, section 3.1)

c_1 is the factor of x_0 in the posterior mean (`process`). A term is the mean over pixels and
channels, in bits: nats / ln 2. Data are 8-bit pixels scaled to [-1, 1], so a bin is 2/255 wide. The
first and the last bin are open. For a shorter chain (`process.respace`), L is the bound of the
shorter chain.
"""

import math

import jax
import jax.numpy as jnp

from ddpm_jax.errors import unknown
from ddpm_jax.pixels import HALF_BIN, SCALE, VALUES, check_x_0
from ddpm_jax.process import GaussianProcess, expand, jump, q_sample, read
from ddpm_jax.randomness import draw_noise, fold_in
from ddpm_jax.types import Array, DenoiseFn, Prediction, PRNGKey
from ddpm_jax.variance import VARIANCES, fixed_small

DECODERS = ("posterior", "flat", "discrete")


def prior_term(process: GaussianProcess, x_0: Array) -> Array:
    """Return L_T = KL(q(x_T | x_0) ‖ N(0, I)): [B] bits/dim.

    Args:
      process: the chain.
      x_0: [B, ...] float, in [-1, 1].

    Raises:
      UserError: x_0 is not float.
    """
    check_x_0(x_0)
    alpha_bar = process.alphas_cumprod[-1]  # in float32, 1 - ᾱ_T would lose the digits of ᾱ_T
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
    """Return L_{t-1} for t > 1, and L_0 for t = 1: [B] bits/dim.

    Args:
      process: the chain.
      prediction: the denoiser's prediction at x_t.
      x_0: [B, ...] float, in [-1, 1].
      x_t: [B, ...] float, drawn from q(x_t | x_0).
      t: [B] int32 in 1..T.
      variance: σ_t² of p(x_{t-1} | x_t), "fixed_large", "fixed_small" or "learned_range".
      decoder: p(x_0 | x_1).
        - "posterior": N(x̂_0, σ_1²), integrated over bins, as in Ho et al.
        - "discrete": the posterior of x_0 if all 256 pixel values are equally likely (Kingma et al.
          2021, section 3.1). It does not use the network, and it fits any noise level at t = 1.
        - "flat": N(x_1/alpha_1, (sigma_1/alpha_1)²), integrated over bins: the same posterior for a
          flat prior over all real numbers. Its bound is looser than that of "discrete".

    Raises:
      UserError: unknown variance or decoder, x_0 that is not float, or "learned_range" with a
        network that does not predict the variance.
    """
    check_x_0(x_0)
    if variance not in VARIANCES:
        raise unknown("variance", variance, VARIANCES)
    log_variance = expand(jnp.asarray(VARIANCES[variance](process, t, t - 1, prediction)), x_0)
    ratio = expand(fixed_small(process, t, t - 1), x_0) - log_variance  # ln β̃ - ln σ²
    coef1 = expand(read(process.posterior_mean_coef1, t), x_0)
    error = jnp.square(coef1 * (x_0 - prediction.x_0)) * jnp.exp(-log_variance)
    divergence = 0.5 * (jnp.expm1(ratio) - ratio + error)
    likelihood = _decoder(process, prediction, x_0, x_t, 0.5 * log_variance, decoder)
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
    """Return L_{t-1} (L_0 for t = 1) and the squared error of x̂_0 at K timesteps of each image.

    x_t is drawn from q(x_t | x_0). The key of image i at timestep t is fold_in(key[i], t).

    Args:
      process: the chain.
      denoise_fn: the denoiser; clip its x_0 if the sampler does.
      key: [B] keys, one per image.
      x_0: [B, ...] float, in [-1, 1].
      timesteps: [K, B] int32 in 1..T, K timesteps for each image.
      variance, decoder: as in `step_term`.

    Returns:
      terms: [K, B] bits/dim.
      squared_error: [K, B], the mean of (x_0 - x̂_0)² over pixels and channels. The RMSE on the
        scale {0..255} is 127.5 times its square root.

    Raises:
      UserError: as in `step_term`.
    """

    def at(t: Array) -> tuple[Array, Array]:
        x_t = q_sample(process, x_0, t, draw_noise(fold_in(key, t), x_0.shape[1:]))
        prediction = denoise_fn(x_t, t)
        term = step_term(process, prediction, x_0, x_t, t, variance=variance, decoder=decoder)
        return term, _mean(jnp.square(x_0 - prediction.x_0))

    return jax.lax.map(at, timesteps)


def discretized_gaussian_log_prob(x: Array, mean: Array, log_deviation: Array) -> Array:
    """Return the log of N(mean, deviation²), integrated over the bin of x (Ho et al. 2020, eq. 13).

    The bin is x ± 1/255. The bin of x = -1 extends to -∞, the bin of x = 1 to ∞.

    Deviates from Ho's code, which approximates Φ and does not go below a probability of 1e-12. Here
    the tails are exact: ln Φ is subtracted in the lower tail, where no digits cancel.

    Args:
      x: float in [-1, 1], a pixel value k/127.5 - 1 with k in {0..255}.
      mean: float, broadcasts against x.
      log_deviation: float, the log of the standard deviation, broadcasts against x.

    Returns:
      float of the shape of x, at most 0, in nats.
    """
    scale = jnp.exp(-log_deviation)
    low, high = (x - HALF_BIN - mean) * scale, (x + HALF_BIN - mean) * scale
    flip = low + high > 0.0  # Φ(b) - Φ(a) = Φ(-a) - Φ(-b), and Φ is accurate in the lower tail
    low, high = jnp.where(flip, -high, low), jnp.where(flip, -low, high)
    edge_low, edge_high = x < -1.0 + HALF_BIN, x > 1.0 - HALF_BIN
    open_below = jnp.where(flip, edge_high, edge_low)  # after the flip
    open_above = jnp.where(flip, edge_low, edge_high)
    log_high = jax.scipy.stats.norm.logcdf(jnp.where(open_above, 0.0, high))
    log_high = jnp.where(open_above, 0.0, log_high)
    gap = jax.scipy.stats.norm.logcdf(low) - log_high
    # ln(1 - e^gap), by the formula that keeps its digits. The inner `where`s keep the gradient of
    # the formula that is not chosen finite
    gap = jnp.minimum(gap, -jnp.finfo(gap.dtype).tiny)
    near = gap > -0.7
    near_log = jnp.log(-jnp.expm1(jnp.where(near, gap, -1.0)))
    far_log = jnp.log1p(-jnp.exp(jnp.where(near, -1.0, gap)))
    return log_high + jnp.where(open_below, 0.0, jnp.where(near, near_log, far_log))


def discrete_log_prob(x: Array, mean: Array, log_deviation: Array) -> Array:
    """Return the log of p(x | z_0) ∝ q(z_0 | x), normalised over the 256 values x_k of a pixel.

      ln p(x_k | z_0) = log softmax_k(-(z_0/alpha_0 - x_k)² / (2 s²)),  s = sigma_0/alpha_0
                                                            (Kingma et al. 2021, section 3.1)

    Args:
      x: float in [-1, 1], a pixel value x_k = k/127.5 - 1 with k in {0..255}.
      mean: float, z_0/alpha_0, broadcasts against x.
      log_deviation: float, ln s, broadcasts against x.

    Returns:
      float of the shape of x, at most 0, in nats.
    """
    x, mean, scale = jnp.broadcast_arrays(x, mean, jnp.exp(-log_deviation))
    x, nearest = _nearest_value(x), _nearest_value(mean)  # x: without its rounding error
    return _logit_below_largest(x, mean, scale, nearest) - _log_total(mean, scale, nearest)


def _nearest_value(x: Array) -> Array:
    index = jnp.clip(jnp.round((x + 1.0) * SCALE), 0, 255).astype(jnp.int32)
    return jnp.asarray(VALUES)[index]


def _logit_below_largest(x: Array, mean: Array, scale: Array, nearest: Array) -> Array:
    """Return the logit of x, less the logit of the nearest value. No digits cancel in a product."""
    return -0.5 * ((x - nearest) * scale) * ((x + nearest - 2.0 * mean) * scale)


def _sums(mean: Array, scale: Array, nearest: Array) -> tuple[Array, Array, Array]:
    """Return ln Σ_k e^{l_k}, and the means of x_k - nearest and of l_k under the softmax of l_k.

    Of the 256 values, 16 at a time are in memory.
    """
    mean, scale, nearest = (a[..., None] for a in (mean, scale, nearest))

    values = jnp.asarray(VALUES).reshape((16,) + (1,) * (mean.ndim - 1) + (16,))

    def add(i: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        logits = _logit_below_largest(values[i], mean, scale, nearest)
        weights = jnp.exp(logits)
        terms = weights, weights * (values[i] - nearest), weights * logits
        return tuple(s + term.sum(axis=-1) for s, term in zip(sums, terms, strict=True))

    start = (jnp.zeros_like(mean[..., 0]),) * 3
    total, offset, logit = jax.lax.fori_loop(0, 16, add, start)
    return jnp.log(total), offset / total, logit / total  # total is in 1..256


@jax.custom_jvp
def _log_total(mean: Array, scale: Array, nearest: Array) -> Array:
    return _sums(mean, scale, nearest)[0]


@_log_total.defjvp
def _log_total_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    """Without this rule, the backward pass would hold 256 numbers for each pixel."""
    (_, scale, _), (mean_dot, scale_dot, _) = primals, tangents
    log_total, offset, logit = _sums(*primals)
    return log_total, jnp.square(scale) * offset * mean_dot + 2.0 * logit / scale * scale_dot


def bits_per_dim(nats: Array) -> Array:
    """Return the mean of nats: [B, ...] over all axes but the first, in bits: [B]."""
    return _mean(nats) / math.log(2.0)


def _decoder(
    process: GaussianProcess,
    prediction: Prediction,
    x_0: Array,
    x_1: Array,
    log_deviation: Array,
    name: str,
) -> Array:
    """Return log p(x_0 | x_1), in nats."""
    if name not in DECODERS:
        raise unknown("decoder", name, DECODERS)
    if name == "posterior":
        return discretized_gaussian_log_prob(x_0, prediction.x_0, log_deviation)
    log_prob = {"flat": discretized_gaussian_log_prob, "discrete": discrete_log_prob}[name]
    alpha_1 = process.sqrt_alphas_cumprod[1]
    _, beta = jump(process, 1, 0)
    return log_prob(x_0, x_1 / alpha_1, 0.5 * jnp.log(beta) - jnp.log(alpha_1))


def _mean(x: Array) -> Array:
    return x.mean(axis=tuple(range(1, x.ndim)))
