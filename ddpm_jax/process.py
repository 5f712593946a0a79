"""The forward process q: a fixed chain that adds Gaussian noise, as tables and closed forms.

  q(x_t | x_{t-1}) = N(√α_t x_{t-1}, β_t I),  α_t = 1-β_t,  ᾱ_t = ∏ α_i     (Ho et al. 2020, eq. 2)
  q(x_t | x_0)     = N(√ᾱ_t x_0, (1-ᾱ_t) I)                                 (eq. 4)
  q(x_s | x_t, x_0) = N(c_1 x_0 + c_2 x_t, β̃ I), for any s < t              (eqs. 6, 7 at s = t-1)
      c_1 = √ᾱ_s β_{t|s} / (1-ᾱ_t),  c_2 = √(ᾱ_t/ᾱ_s) (1-ᾱ_s) / (1-ᾱ_t)
      β̃ = β_{t|s} (1-ᾱ_s) / (1-ᾱ_t),  β_{t|s} = 1 - ᾱ_t/ᾱ_s

Here alpha_t = √ᾱ_t and sigma_t = √(1-ᾱ_t), so that x_t = alpha_t x_0 + sigma_t eps. Each table has
T+1 entries: entry 0 is clean data, and t runs over 1..T. Two timesteps s < t are two indices into
the same table. At t outside 0..T a table gives NaN. Functions take t and s as int32 scalars or [B].
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.pixels import check_x_0
from ddpm_jax.types import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class GaussianProcess:
    """The tables of a chain, each [T+1] float32 and computed in float64. Use `make_process`.

    ln ᾱ is stored as two float32 tables: `log_alphas_cumprod` and its rounding error,
    `log_alphas_cumprod_lo`. From their sum, 1 - ᾱ_t/ᾱ_s = -expm1(ln ᾱ_t - ln ᾱ_s) is accurate to
    float32 rounding for every pair s < t. `respace` loses no precision either.
    """

    betas: Array
    alphas_cumprod: Array
    sqrt_alphas_cumprod: Array  # alpha_t
    sqrt_one_minus_alphas_cumprod: Array  # sigma_t
    log_alphas_cumprod: Array
    log_alphas_cumprod_lo: Array
    log_snr: Array
    posterior_mean_coef1: Array  # of x_0
    posterior_mean_coef2: Array  # of x_t
    posterior_variance: Array
    posterior_log_variance_clipped: Array  # entry 1 is a copy of entry 2: its own variance is 0
    # [T+1] int32: each timestep's index in the chain of training, which the network receives less
    # 1. float32 if the schedule is learned (`likelihood.continuous.process_from_gamma`)
    timesteps: Array

    @property
    def num_timesteps(self) -> int:
        """T, the number of timesteps."""
        return self.betas.shape[0] - 1


def make_process(betas: np.ndarray) -> GaussianProcess:
    """Build the process from the betas of a schedule (`ddpm_jax.schedules`).

    Args:
      betas: [T] float, beta_1 .. beta_T in (0, 1); beta_T may be 1 (zero terminal SNR).

    Raises:
      UserError: betas has another shape, or a beta is outside (0, 1).
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or betas.size == 0:
        raise UserError(
            f"betas must be a list of T >= 1 numbers, found shape {betas.shape}; take one of "
            "ddpm_jax.schedules"
        )
    inside = (betas > 0.0) & (betas < 1.0)
    inside[-1] |= betas[-1] == 1.0
    if not inside.all():
        t = int(np.argmin(inside))
        raise UserError(
            f"betas must be in (0, 1), found beta_{t + 1} = {betas[t]:g}; only the last may be 1"
        )
    with np.errstate(divide="ignore"):  # ln 0 = -inf at zero terminal SNR
        log_alphas_cumprod = np.append(0.0, np.cumsum(np.log1p(-betas)))
    return from_log_alphas_cumprod(log_alphas_cumprod, np.arange(betas.size + 1))


def respace(process: GaussianProcess, timesteps: np.ndarray) -> GaussianProcess:
    """Build the chain that visits only some timesteps of another, with the same ᾱ at each of them.

    The field `timesteps` of the new chain holds the original timesteps, so the network receives
    the t that it was trained on. Runs on the host, not under `jit`.

    Args:
      process: the original chain.
      timesteps: [K] int, strictly ascending, in 1..T. A sampling grid descends from T to 0; write
        `grid[-2::-1]` for it.

    Raises:
      UserError: timesteps is empty, does not ascend strictly, or leaves 1..T.
    """
    kept = np.append(0, np.asarray(timesteps, np.int64))
    if kept.size < 2 or np.any(np.diff(kept) < 1) or kept[-1] > process.num_timesteps:
        found = np.array2string(kept[1:], threshold=10, max_line_width=1000)
        raise UserError(
            f"timesteps must ascend strictly within 1..{process.num_timesteps} (T), found {found}"
        )
    hi = np.asarray(process.log_alphas_cumprod, np.float64)
    lo = np.asarray(process.log_alphas_cumprod_lo, np.float64)
    return from_log_alphas_cumprod((hi + lo)[kept], np.asarray(process.timesteps)[kept])


def expand(values: Array, like: Array) -> Array:
    """Append axes of size 1 to values (scalar or [B]), so that they broadcast against [B, ...].

    Args:
      values: scalar or [B].
      like: [B, ...], the array to broadcast against.
    """
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def alpha_sigma(process: GaussianProcess, t: Array, like: Array) -> tuple[Array, Array]:
    """Return alpha_t = √ᾱ_t and sigma_t = √(1-ᾱ_t), with axes to broadcast against like: [B, ...].

    Args:
      process: the chain.
      t: int32 in 0..T, scalar or [B].
      like: [B, ...], the array to broadcast against.
    """
    alpha_t = expand(read(process.sqrt_alphas_cumprod, t), like)
    sigma_t = expand(read(process.sqrt_one_minus_alphas_cumprod, t), like)
    return alpha_t, sigma_t


def read(table: Array, t: Array | int) -> Array:
    """Return table[t], NaN where t is not in 0..T (plain indexing would clamp and hide it).

    Args:
      table: [T+1].
      t: int32, scalar or [B]; the result has its shape.
    """
    table = jnp.asarray(table)  # a process fetched by jax.device_get has numpy tables
    return table.at[t].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def snr(process: GaussianProcess, t: Array) -> Array:
    """Return the signal-to-noise ratio SNR_t = ᾱ_t / (1-ᾱ_t); it is inf at t = 0.

    Args:
      process: the chain.
      t: int32 in 0..T, scalar or [B].
    """
    alpha_t = read(process.sqrt_alphas_cumprod, t)
    return jnp.square(alpha_t / read(process.sqrt_one_minus_alphas_cumprod, t))


def q_sample(process: GaussianProcess, x_0: Array, t: Array, eps: Array) -> Array:
    """Return x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε (Ho et al. 2020, eq. 4).

    Args:
      process: the chain.
      x_0: [B, ...] float, clean data.
      t: int32 in 0..T, scalar or [B]; t = 0 returns x_0.
      eps: [B, ...] float, standard normal.

    Raises:
      UserError: x_0 is not float.
    """
    check_x_0(x_0)
    alpha_t, sigma_t = alpha_sigma(process, t, x_0)
    return alpha_t * x_0 + sigma_t * eps


def q_one_step(process: GaussianProcess, x_prev: Array, t: Array, eps: Array) -> Array:
    """Return x_t = √(1-β_t) x_{t-1} + √β_t ε (Ho et al. 2020, eq. 2).

    Args:
      process: the chain.
      x_prev: [B, ...] float, x_{t-1}.
      t: int32 in 1..T, scalar or [B].
      eps: [B, ...] float, standard normal.
    """
    beta_t = expand(read(process.betas, t), x_prev)
    return jnp.sqrt(1.0 - beta_t) * x_prev + jnp.sqrt(beta_t) * eps


def q_mean_variance(process: GaussianProcess, x_0: Array, t: Array) -> tuple[Array, Array, Array]:
    """Return mean, variance and log variance of q(x_t | x_0) (Ho et al. 2020, eq. 4).

    Args:
      process: the chain.
      x_0: [B, ...] float, clean data.
      t: int32 in 0..T, scalar or [B].

    Returns:
      mean: [B, ...]; variance and log variance broadcast against it. At t = 0 the log variance is
        -inf.

    Raises:
      UserError: x_0 is not float.
    """
    check_x_0(x_0)
    alpha_t, sigma_t = alpha_sigma(process, t, x_0)
    return alpha_t * x_0, jnp.square(sigma_t), 2.0 * jnp.log(sigma_t)


def q_posterior(
    process: GaussianProcess, x_0: Array, x_t: Array, t: Array, s: Array | None = None
) -> tuple[Array, Array, Array]:
    """Return mean, variance and log variance of q(x_s | x_t, x_0) (Ho et al. 2020, eqs. 6, 7).

    At s = 0 the mean is x_0 and the variance is 0. The log variance stays finite: it is read at
    s = 1 instead (`posterior_log_variance`), as in Ho's code.

    Args:
      process: the chain.
      x_0: [B, ...] float, clean data or its prediction.
      x_t: [B, ...] float.
      t: int32 in 1..T, scalar or [B].
      s: int32 in 0..t-1, scalar or [B]; by default t - 1.

    Returns:
      mean: [B, ...]; variance and log variance broadcast against it.

    Raises:
      UserError: x_0 is not float.
    """
    check_x_0(x_0)
    if s is None:
        coef1, coef2 = read(process.posterior_mean_coef1, t), read(process.posterior_mean_coef2, t)
        variance = read(process.posterior_variance, t)
        log_variance = read(process.posterior_log_variance_clipped, t)
    else:
        ratio, beta = jump(process, t, s)
        alpha_s = read(process.sqrt_alphas_cumprod, s)
        # 1 - ᾱ as the beta of a jump from 0: at s = 0 the coefficients are then exactly 1 and 0
        variance_t, variance_s = jump(process, t, 0)[1], jump(process, s, 0)[1]
        coef1 = alpha_s * (beta / variance_t)
        coef2 = ratio * (variance_s / variance_t)
        variance = beta * (variance_s / variance_t)
        log_variance = posterior_log_variance(process, t, s)
    mean = expand(coef1, x_t) * x_0 + expand(coef2, x_t) * x_t
    return mean, expand(variance, x_t), expand(log_variance, x_t)


def posterior_log_variance(process: GaussianProcess, t: Array, s: Array) -> Array:
    """Return ln β̃, the log variance of q(x_s | x_t, x_0) for s < t; finite for every pair.

    At s = 0 the variance is 0, so s = 0 is read as s = 1, and t = 1 as t = 2. With s = t - 1 this
    is `posterior_log_variance_clipped` of Ho's code. T = 1 gives ln β_1.

    Args:
      process: the chain.
      t: int32 in 1..T, scalar or [B].
      s: int32 in 0..t-1, scalar or [B].

    Returns:
      scalar or [B], as t and s.
    """
    if process.num_timesteps == 1:
        return jnp.log(jump(process, t, s)[1])
    t, s = jnp.maximum(t, 2), jnp.maximum(s, 1)
    variance_t, variance_s = jump(process, t, 0)[1], jump(process, s, 0)[1]
    return jnp.log(jump(process, t, s)[1] * (variance_s / variance_t))


def jump(process: GaussianProcess, t: Array | int, s: Array | int) -> tuple[Array, Array]:
    """Return √(ᾱ_t/ᾱ_s) and β_{t|s} = 1 - ᾱ_t/ᾱ_s, so q(x_t | x_s) = N(√(ᾱ_t/ᾱ_s) x_s, β_{t|s} I).

    Args:
      process: the chain.
      t: int32 in 1..T, scalar or [B].
      s: int32 in 0..t-1, scalar or [B].

    Returns:
      two scalars or [B], as t and s.
    """
    ratio = read(process.sqrt_alphas_cumprod, t) / read(process.sqrt_alphas_cumprod, s)
    hi, lo = process.log_alphas_cumprod, process.log_alphas_cumprod_lo
    log_ratio = (read(hi, t) - read(hi, s)) + (read(lo, t) - read(lo, s))
    return ratio, -jnp.expm1(log_ratio)


def from_log_alphas_cumprod(
    log_alphas_cumprod: np.ndarray, timesteps: np.ndarray
) -> GaussianProcess:
    """Compute the tables of a process from ln ᾱ.

    Args:
      log_alphas_cumprod: [T+1] float64, ln ᾱ_t for t = 0..T. It falls strictly from 0; the last
        entry may be -inf.
      timesteps: [T+1] int or float, the field `GaussianProcess.timesteps`.
    """
    log_alphas = np.append(0.0, np.diff(log_alphas_cumprod))
    betas = -np.expm1(log_alphas)
    alphas_cumprod = np.exp(log_alphas_cumprod)
    one_minus = -np.expm1(log_alphas_cumprod)
    previous = np.append(1.0, alphas_cumprod[:-1])
    one_minus_previous = np.append(0.0, one_minus[:-1])

    # Entry 0 is clean data, which has no posterior: its mean is x_0 and its variance 0.
    coef1, coef2, variance = np.ones_like(betas), np.zeros_like(betas), np.zeros_like(betas)
    coef1[1:] = np.sqrt(previous[1:]) * betas[1:] / one_minus[1:]
    coef2[1:] = np.exp(0.5 * log_alphas[1:]) * one_minus_previous[1:] / one_minus[1:]
    variance[1:] = betas[1:] * one_minus_previous[1:] / one_minus[1:]
    clipped = variance.copy()
    clipped[:2] = variance[2] if betas.size > 2 else betas[1]

    hi = log_alphas_cumprod.astype(np.float32)
    lo = np.subtract(
        log_alphas_cumprod, hi, out=np.zeros_like(log_alphas_cumprod), where=np.isfinite(hi)
    )
    with np.errstate(divide="ignore"):  # ln 0 at t = 0, where the SNR is infinite
        log_snr = log_alphas_cumprod - np.log(one_minus)
    tables = dict(
        betas=betas,
        alphas_cumprod=alphas_cumprod,
        sqrt_alphas_cumprod=np.exp(0.5 * log_alphas_cumprod),
        sqrt_one_minus_alphas_cumprod=np.sqrt(one_minus),
        log_alphas_cumprod=hi,
        log_alphas_cumprod_lo=lo,
        log_snr=log_snr,
        posterior_mean_coef1=coef1,
        posterior_mean_coef2=coef2,
        posterior_variance=variance,
        posterior_log_variance_clipped=np.log(clipped),
    )
    tables = {name: jnp.asarray(table, jnp.float32) for name, table in tables.items()}
    dtype = jnp.float32 if np.issubdtype(timesteps.dtype, np.floating) else jnp.int32
    return GaussianProcess(**tables, timesteps=jnp.asarray(timesteps, dtype))
