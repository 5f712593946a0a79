"""The bound in continuous time, with a noise schedule that is learned (Kingma et al. 2021, VDM).

  z_u = alpha x + sigma ε,  sigma² = sigmoid(γ(u)),  alpha² = sigmoid(-γ(u)),  u in [0, 1]  (eq. 4)
  -log p(x) <= KL(q(z_1|x) ‖ N(0, I)) - E[ln p(x|z_0)] + L_∞(x)                            (eq. 11)
  L_∞(x) = ½ E_{ε, u}[γ'(u) ‖ε - ε̂(z_u; γ(u))‖²]                                          (eq. 17)

L_∞ depends on γ by its ends alone (eq. 18); what its interior changes is the variance of the
estimate at one u and ε. So the ends are trained on the bound, and the interior on the squared loss,

  ∇ E[(ℓ - c)²] = E[2 (ℓ - c) ∇ℓ]                                                     (appendix I.2)

whose ∇ℓ by r(u) and r'(u), of γ(u) = (1 - r(u)) γ_0 + r(u) γ_1, the backward pass for the network
finds anyway: `_scaled` multiplies it on its way. Deviates from the paper in squaring each example's
loss and not the batch's mean, and in c, the batch's mean in place of 0: the gradient's mean is the
same, E[∇ℓ] being 0, but not its noise.

The network is told 1000 (γ - γ_min) / (γ_max - γ_min) in place of a timestep, with constant γ_min
and γ_max: the noise itself, so that it does not matter how the schedule comes to it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UserError, unknown
from ddpm_jax.likelihood.terms import bits_per_dim, discretized_gaussian_log_prob
from ddpm_jax.predictions import KINDS
from ddpm_jax.process import GaussianProcess, expand, from_log_alphas_cumprod
from ddpm_jax.types import ApplyFn, Array, Conditioning, Params, PRNGKey

TOLD = 1000.0  # what the network is told at γ_max; 0 at γ_min


class Terms(NamedTuple):
    """The terms of the bound, each [B] float32 in bits/dim."""

    diffusion: Array
    prior: Array
    reconstruction: Array


def sample_antithetic(key: PRNGKey, batch_size: int, T: int) -> Array:
    """Draw t = 1 + (T-1) u, u_i = (u + i/batch_size) mod 1: [batch_size] float32 in [1, T).

    Each u is uniform over [0, 1), all are evenly spaced (Kingma et al. 2021, appendix I.1); on this
    scale a chain of T timesteps has its own at whole numbers (`process_from_gamma`).
    """
    u = jax.random.uniform(key) + jnp.arange(batch_size, dtype=jnp.float32) / batch_size
    return 1.0 + (T - 1) * (u % 1.0)


def bound_terms(
    apply_fn: ApplyFn,
    params: Params,
    ends: tuple[Array, Array],
    progress: Callable[[Array], Array],
    x_0: Array,
    u: Array,
    eps: Array,
    cond: Conditioning | None = None,
    *,
    kind: str = "eps",
    told: tuple[float, float],
    train: bool,
    key: PRNGKey | None,
) -> Terms:
    """Return the terms of the bound at one u and one ε for each example.

    Their mean over u and ε is the bound. Gradients are those of the mean of the terms, but for what
    `progress` closes over: its gradient is that of the squared loss.

    Args:
      apply_fn: the network.
      params: its parameters.
      ends: (γ_0, γ_1), scalars.
      progress: r, [B] in [0, 1] -> [B], strictly rising from 0 to 1; differentiable.
      x_0: [B, ...] float, pixel values k/127.5 - 1.
      u: [B] float in [0, 1].
      eps: [B, ...] float, standard normal; of z_u and of z_0.
      cond: None, or arrays with leading axis B.
      kind: what the network predicts: "eps", "x_0" or "v".
      told: (γ_min, γ_max), which the network knows as 0 and 1000.
      train, key: as in `ApplyFn`.

    Raises:
      UserError: unknown kind.
    """
    gamma_0, gamma_1 = ends
    r, slope = jax.jvp(progress, (u,), (jnp.ones_like(u),))

    def diffusion(params, ends, r, slope, x_0, eps, cond, key):
        gamma = (1.0 - r) * ends[0] + r * ends[1]
        alpha, sigma = (expand(a, x_0) for a in alpha_sigma(gamma))
        z = alpha * x_0 + sigma * eps
        output = apply_fn(params, z, told_time(gamma, told), cond, train=train, key=key)
        output = output[..., : x_0.shape[-1]].astype(jnp.float32)
        error = jnp.square(eps - _eps_hat(output, z, alpha, sigma, kind))
        return 0.5 * slope * (ends[1] - ends[0]) * bits_per_dim(error)

    prior_mean, prior_variance = jnp.sqrt(jax.nn.sigmoid(-gamma_1)), jax.nn.sigmoid(gamma_1)
    prior = jnp.square(prior_mean * x_0) + prior_variance - 1.0 + jax.nn.softplus(-gamma_1)
    deviation = jnp.exp(0.5 * gamma_0)  # of p(x|z_0) ∝ N(z_0/alpha_0, (sigma_0/alpha_0)²)
    reconstruction = -discretized_gaussian_log_prob(x_0, x_0 + deviation * eps, 0.5 * gamma_0)
    return Terms(
        diffusion=_scaled(diffusion, params, ends, r, slope, (x_0, eps, cond, key)),
        prior=bits_per_dim(0.5 * prior),
        reconstruction=bits_per_dim(reconstruction),
    )


def process_from_gamma(gamma: np.ndarray, told: tuple[float, float]) -> GaussianProcess:
    """Build the chain of T timesteps of a schedule, for samplers and bounds; on the host.

    Timestep 1 has γ_0, so that the chain's L_0 is the reconstruction of z_0 (decoder "flat").

    Args:
      gamma: [T] float, strictly rising, γ at t = 1..T.
      told: (γ_min, γ_max), as in training; `timesteps` of the chain are float32 by it.

    Raises:
      UserError: gamma is not such a list.
    """
    gamma = np.asarray(gamma, np.float64)
    if gamma.ndim != 1 or gamma.size < 1 or not np.all(np.isfinite(gamma)):
        raise UserError(f"gamma must be a list of T >= 1 finite numbers, found {gamma}")
    if np.any(np.diff(gamma) <= 0.0):
        t = int(np.argmax(np.diff(gamma) <= 0.0)) + 1
        raise UserError(
            f"gamma must rise strictly, found {gamma[t - 1]:.9g} and {gamma[t]:.9g} at t = {t} and "
            f"{t + 1}; take fewer timesteps"
        )
    log_alphas_cumprod = np.append(0.0, -np.logaddexp(0.0, gamma))
    # The network is told one less (`denoise.apply_network`); of clean data it is told nothing
    timesteps = np.append(0.0, 1.0 + told_time(gamma, told)).astype(np.float32)
    return from_log_alphas_cumprod(log_alphas_cumprod, timesteps)


def alpha_sigma(gamma: Array) -> tuple[Array, Array]:
    """Return alpha = √sigmoid(-γ) and sigma = √sigmoid(γ)."""
    return jnp.sqrt(jax.nn.sigmoid(-gamma)), jnp.sqrt(jax.nn.sigmoid(gamma))


def told_time(gamma: Array, told: tuple[float, float]) -> Array:
    """Return 1000 (γ - γ_min) / (γ_max - γ_min), what the network is told in place of a time."""
    low, high = told
    return TOLD / (high - low) * (gamma - low)


def _scaled(
    loss: Callable[..., Array],
    params: Params,
    ends: tuple[Array, Array],
    r: Array,
    slope: Array,
    rest: tuple,
) -> Array:
    """Return loss(params, ends, r, slope, *rest): [B], by r and slope with the variance's gradient.

    Example i's loss depends on r_i and slope_i alone, so that multiplying their cotangents by
    2 (ℓ_i - c) turns the gradient of Σ ℓ_i into that of Σ (ℓ_i - c)², in the same backward pass.
    Of the rest there is no gradient.
    """

    @jax.custom_vjp
    def scaled(params, ends, r, slope, rest):
        return loss(params, ends, r, slope, *rest)

    def forward(params, ends, r, slope, rest):
        found, backward = jax.vjp(lambda *args: loss(*args, *rest), params, ends, r, slope)
        return found, (found, backward)

    def backward(kept, cotangent):
        found, backward = kept
        by_params, by_ends, by_r, by_slope = backward(cotangent)
        scale = 2.0 * (found - found.mean())
        return by_params, by_ends, scale * by_r, scale * by_slope, None

    scaled.defvjp(forward, backward)
    return scaled(params, ends, r, slope, rest)


def _eps_hat(output: Array, z: Array, alpha: Array, sigma: Array, kind: str) -> Array:
    """Return the predicted ε, as `predictions.to_prediction` does from a table."""
    if kind == "eps":
        return output
    if kind == "x_0":
        return (z - alpha * output) / sigma
    if kind == "v":
        return sigma * z + alpha * output
    raise unknown("kind", kind, KINDS)
