"""The exact pieces of the probability-flow ODE between two timesteps, in half the log-SNR λ.

  λ_t = ln(alpha_t/sigma_t),  h = λ_s - λ_t > 0 for s < t
  x_s = (sigma_s/sigma_t) x_t + alpha_s ∫_0^h e^{τ-h} x̂_0(λ_t + τ) dτ
                                                    (Lu et al. 2022, DPM-Solver++, prop. 4.1)

A solver replaces x̂_0(λ) in the integral by a polynomial. A constant gives DDIM. Every quantity here
but h stays finite where λ is infinite: at s = 0, where x_s = x̂_0, and at t = T with zero terminal
SNR.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp

from ddpm_jax.process import GaussianProcess, jump, read
from ddpm_jax.types import Array


class Interval(NamedTuple):
    """The coefficients of a step from t to s < t; scalars, exact to float32 rounding.

    Attributes:
      h: λ_s - λ_t > 0; inf at s = 0 and where alpha_t = 0.
      decay: sigma_s / sigma_t, the weight of x_t; 0 at s = 0.
      gain: alpha_s (1 - e^{-h}), the weight of a constant x̂_0; 1 at s = 0.
      fraction: 1 - e^{-2h}; 1 at s = 0.
    """

    h: Array
    decay: Array
    gain: Array
    fraction: Array

    def flow(self, x_t: Array, x_0: Array) -> Array:
        """Return x_s: [B, ...], if the prediction x_0 is constant from t to s."""
        return self.decay * x_t + self.gain * x_0


def interval(process: GaussianProcess, t: Array, s: Array) -> Interval:
    """Return the coefficients of the step from t to s < t, both int32 scalars."""
    ratio, beta = jump(process, t, s)
    # From β_{t|s}, which is exact. A difference of λ would cancel if t and s are near.
    fraction = beta / jump(process, t, 0)[1]
    sigma_t = read(process.sqrt_one_minus_alphas_cumprod, t)
    decay = read(process.sqrt_one_minus_alphas_cumprod, s) / sigma_t
    shrink = decay * ratio  # e^{-h}
    h = jnp.where(shrink < 0.7, -jnp.log(shrink), -0.5 * jnp.log1p(-fraction))
    gain = read(process.sqrt_alphas_cumprod, s) * (fraction / (1.0 + shrink))
    return Interval(h, decay, gain, fraction)


def weights(h: Array, nodes: list[Array]) -> list[Array]:
    """Return the weights of x̂_0 at some nodes, relative to the gain of the interval.

    gain Σ_j w_j x̂_0(λ_t + h nodes_j) equals alpha_s ∫ e^{τ-h} p(τ) dτ, where the polynomial p goes
    through these values. A step with n nodes has order n. The weights sum to 1.

    Args:
      h: scalar > 0, finite.
      nodes: n different scalars. 0 is t, 1 is s, and a negative node is a timestep before t.
    """
    # The integral of a monomial: ∫ e^{τ-h} (τ/h)^i dτ / h = i! φ_{i+1}(-h)
    monomials = [math.factorial(i) * phi(i + 1, h) / phi(1, h) for i in range(len(nodes))]
    result = []
    for j, node in enumerate(nodes):
        basis = [jnp.ones_like(h)]  # coefficients of Lagrange's polynomial of node j, ascending
        for other in nodes[:j] + nodes[j + 1 :]:
            scale = 1.0 / (node - other)
            rise, stay = [0.0 * scale, *basis], [*basis, 0.0 * scale]
            basis = [scale * (r - other * c) for r, c in zip(rise, stay, strict=True)]
        result.append(sum(c * m for c, m in zip(basis, monomials, strict=True)))
    return result


def phi(k: int, h: Array) -> Array:
    """Return φ_k(-h) = ∫_0^1 e^{-h(1-u)} u^{k-1}/(k-1)! du for k >= 1, h > 0.

    The recursion is φ_{k+1}(z) = (φ_k(z) - 1/k!)/z. Below h = 1 it would cancel, so there the
    power series is used.
    """
    series = jnp.ones_like(h)
    for j in range(18, 0, -1):
        series = 1.0 - h / (k + j) * series
    series = series / math.factorial(k)
    closed = -jnp.expm1(-h) / h
    for i in range(1, k):
        closed = (1.0 / math.factorial(i) - closed) / h
    return jnp.where(h < 1.0, series, closed)


def nearest(process: GaussianProcess, log_snr: Array, low: Array, high: Array) -> Array:
    """Return the timestep in low..high with the log-SNR nearest to `log_snr`: int32 scalar."""
    t = jnp.arange(process.num_timesteps + 1, dtype=jnp.int32)
    distance = jnp.where((low <= t) & (t <= high), jnp.abs(process.log_snr - log_snr), jnp.inf)
    return jnp.argmin(distance).astype(jnp.int32)
