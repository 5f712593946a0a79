"""The bound in continuous time, with a learned noise schedule (Kingma et al. 2021, VDM).

  z_u = alpha x + sigma ε,  sigma² = sigmoid(γ(u)),  alpha² = sigmoid(-γ(u)),  u in [0, 1]  (eq. 4)
  -log p(x) <= KL(q(z_1|x) ‖ N(0, I)) - E[ln p(x|z_0)] + L_∞(x)                            (eq. 11)
  p(x|z_0) ∝ q(z_0|x), normalised over the 256 values of a pixel                  (section 3.1)
  L_∞(x) = ½ E_{ε, u}[γ'(u) ‖ε - ε̂(z_u; γ(u))‖²]                                          (eq. 17)

γ is minus the log-SNR. It rises from γ_0 to γ_1: γ(u) = (1 - r(u)) γ_0 + r(u) γ_1, with r(0) = 0
and r(1) = 1. L_∞ depends only on the ends γ_0 and γ_1 (eq. 18). The interior r changes only the
variance of the loss ℓ, which estimates L_∞ at one u and ε. So the ends are trained on the bound,
and the interior on the variance,

  ∇ E[(ℓ - c)²] = E[2 (ℓ - c) ∇ℓ]                                                     (appendix I.2)

The backward pass for the network computes ∇ℓ with respect to r(u) and r'(u) as well. `_scaled`
multiplies this gradient by 2 (ℓ - c).

Deviates from the paper in two ways. The loss of each example is squared, not the mean of the batch.
And c is the mean of the batch, not 0. The mean of the gradient stays the same, because E[∇ℓ] = 0;
its noise does not.

In place of a timestep the network receives 1000 (γ - γ_min) / (γ_max - γ_min), with constant γ_min
and γ_max. So it receives the noise level itself, and its input means the same for every schedule.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UserError, unknown
from ddpm_jax.likelihood.terms import bits_per_dim, discrete_log_prob
from ddpm_jax.pixels import check_x_0
from ddpm_jax.predictions import KINDS
from ddpm_jax.process import GaussianProcess, expand, from_log_alphas_cumprod
from ddpm_jax.types import ApplyFn, Array, Conditioning, Params, PRNGKey

MAX_NETWORK_TIME = 1000.0  # what the network receives as t at γ_max; at γ_min it receives 0


class Terms(NamedTuple):
    """The terms of the bound, each [B] float32 in bits/dim."""

    diffusion: Array
    prior: Array
    reconstruction: Array


def sample_antithetic(key: PRNGKey, batch_size: int, T: int) -> Array:
    """Draw t_i = 1 + (T-1) u_i with u_i = (u + i/batch_size) mod 1 (Kingma et al. 2021, app. I.1).

    Each u_i is uniform on [0, 1), and together they are evenly spaced. Whole numbers t are the
    timesteps of a chain of T timesteps (`process_from_gamma`).

    Args:
      key: one key, for the offset u.
      batch_size: number of draws.
      T: number of timesteps of the chain, at least 2.

    Returns:
      [batch_size] float32 in [1, T).
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
    """Return the terms of the bound for each example, estimated at one u and one ε.

    The mean of their sum over u and ε is the bound. The gradient is that of the terms, with one
    exception: the parameters of `progress` get the gradient of the squared loss (see above).

    Args:
      apply_fn: the network.
      params: its parameters.
      ends: (γ_0, γ_1), float32 scalars.
      progress: r, a differentiable function [B] -> [B] that rises strictly from r(0) = 0 to
        r(1) = 1.
      x_0: [B, ...] float, pixel values k/127.5 - 1 with k in {0..255}.
      u: [B] float in [0, 1].
      eps: [B, ...] float, standard normal, the noise of both z_u and z_0.
      cond: None, or arrays with leading axis B.
      kind: what the network predicts: "eps", "x_0" or "v".
      told: (γ_min, γ_max), constants. The network receives 0 at γ_min and 1000 at γ_max.
      train, key: as in `ApplyFn`.

    Raises:
      UserError: unknown kind, or x_0 that is not float.
    """
    check_x_0(x_0)
    gamma_0, gamma_1 = ends
    r, slope = jax.jvp(progress, (u,), (jnp.ones_like(u),))

    def diffusion(params, ends, r, slope, x_0, eps, cond, key):
        gamma = (1.0 - r) * ends[0] + r * ends[1]
        alpha, sigma = (expand(a, x_0) for a in alpha_sigma(gamma))
        z = alpha * x_0 + sigma * eps
        output = apply_fn(params, z, network_time(gamma, told), cond, train=train, key=key)
        output = output[..., : x_0.shape[-1]].astype(jnp.float32)
        error = jnp.square(eps - _eps_hat(output, z, alpha, sigma, kind))
        return 0.5 * slope * (ends[1] - ends[0]) * bits_per_dim(error)

    prior_mean, prior_variance = jnp.sqrt(jax.nn.sigmoid(-gamma_1)), jax.nn.sigmoid(gamma_1)
    prior = jnp.square(prior_mean * x_0) + prior_variance - 1.0 + jax.nn.softplus(-gamma_1)
    # z_0/alpha_0 = x + e^{γ_0/2} ε, and sigma_0/alpha_0 = e^{γ_0/2}
    reconstruction = -discrete_log_prob(x_0, x_0 + jnp.exp(0.5 * gamma_0) * eps, 0.5 * gamma_0)
    return Terms(
        diffusion=_scaled(diffusion, params, ends, r, slope, (x_0, eps, cond, key)),
        prior=bits_per_dim(0.5 * prior),
        reconstruction=bits_per_dim(reconstruction),
    )


def process_from_gamma(gamma: np.ndarray, told: tuple[float, float]) -> GaussianProcess:
    """Build a chain of T timesteps from a learned schedule, for samplers and bounds.

    Timestep 1 has γ_0, so L_0 of the chain (decoder "discrete") is the reconstruction term of the
    bound. Runs on the host, not under `jit`.

    Args:
      gamma: [T] float, γ at t = 1..T, rises strictly.
      told: (γ_min, γ_max), the constants of training. They give `timesteps` of the chain, which are
        float32: 1 + the network's input at each t.

    Raises:
      UserError: gamma has another shape, is not finite, or does not rise strictly.
    """
    gamma = np.asarray(gamma, np.float64)
    if gamma.ndim != 1 or gamma.size < 1 or not np.all(np.isfinite(gamma)):
        found = np.array2string(gamma.ravel(), threshold=10, max_line_width=1000)
        raise UserError(
            f"gamma must be a list of T >= 1 finite numbers, found {found} of shape {gamma.shape}; "
            "if it was learned, its training has diverged"
        )
    if np.any(np.diff(gamma) <= 0.0):
        t = int(np.argmax(np.diff(gamma) <= 0.0)) + 1
        raise UserError(
            f"gamma must rise strictly, found {gamma[t - 1]:.9g} and {gamma[t]:.9g} at t = {t} and "
            f"{t + 1}; take fewer timesteps"
        )
    log_alphas_cumprod = np.append(0.0, -np.logaddexp(0.0, gamma))
    # `denoise.apply_network` subtracts the 1. Entry 0 is clean data: the network never sees it
    timesteps = np.append(0.0, 1.0 + network_time(gamma, told)).astype(np.float32)
    return from_log_alphas_cumprod(log_alphas_cumprod, timesteps)


def alpha_sigma(gamma: Array) -> tuple[Array, Array]:
    """Return alpha = √sigmoid(-γ) and sigma = √sigmoid(γ), in the shape of gamma (eq. 4)."""
    return jnp.sqrt(jax.nn.sigmoid(-gamma)), jnp.sqrt(jax.nn.sigmoid(gamma))


def network_time(gamma: Any, told: tuple[float, float]) -> Any:
    """Return 1000 (γ - γ_min) / (γ_max - γ_min), which the network receives in place of t.

    Args:
      gamma: float of any shape, γ.
      told: (γ_min, γ_max).
    """
    low, high = told
    return MAX_NETWORK_TIME / (high - low) * (gamma - low)


def _scaled(
    loss: Callable[..., Array],
    params: Params,
    ends: tuple[Array, Array],
    r: Array,
    slope: Array,
    rest: tuple,
) -> Array:
    """Return loss(params, ends, r, slope, *rest): [B], with another gradient for r and slope.

    The loss ℓ_i of example i depends on no other r_j or slope_j. So multiplying their cotangents by
    2 (ℓ_i - c) turns the gradient of Σ ℓ_i into the gradient of Σ (ℓ_i - c)², in the same backward
    pass. `rest` gets no gradient.
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
    """Return the predicted ε, as `predictions.to_prediction`, but with alpha and sigma given."""
    if kind == "eps":
        return output
    if kind == "x_0":
        return (z - alpha * output) / sigma
    if kind == "v":
        return sigma * z + alpha * output
    raise unknown("kind", kind, KINDS)
