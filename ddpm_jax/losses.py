"""The training losses: the weighted squared error of the prediction, and the variational bound.

  L_simple = E ‖ε - ε_θ(x_t, t)‖²                                           (Ho et al. 2020, eq. 14)
  L_{t-1} = β_t² / (2 σ_t² α_t (1-ᾱ_t)) ‖ε - ε_θ(x_t, t)‖² + const          (eq. 12)
  L_vlb = L_T + Σ_{t>1} L_{t-1} + L_0 = E_t[T L_{t-1}] + L_T                (eq. 5)
  L_hybrid = L_simple + λ L_vlb, where L_vlb trains only the variance
                                                                   (Nichol & Dhariwal 2021, eq. 16)

At the same x_t, the errors of the three kinds of prediction differ only by a factor:
  ‖ε - ε̂‖² = SNR_t ‖x_0 - x̂_0‖²,  ‖v - v̂‖² = ‖x_0 - x̂_0‖² / sigma_t²
So a weighting is defined once, for the error of x_0, and divided by the factor of the kind.

Above and in `vlb`, σ_t² is the variance of p(x_{t-1} | x_t); sigma_t² = 1-ᾱ_t.

A weighting is a function (process, t, kind) -> [B] float32. It returns the weight of the mean
squared error of a network that predicts `kind`. Set its options with `functools.partial`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ddpm_jax.denoise import apply_network
from ddpm_jax.errors import unknown
from ddpm_jax.likelihood.terms import step_term
from ddpm_jax.pixels import check_x_0
from ddpm_jax.predictions import KINDS, split_output, to_prediction, training_target
from ddpm_jax.process import GaussianProcess, q_sample, read, snr
from ddpm_jax.types import ApplyFn, Array, Conditioning, Params, PRNGKey
from ddpm_jax.variance import VARIANCES

Weighting = Callable[[GaussianProcess, Array, str], Array]

OBJECTIVES = ("simple", "hybrid", "vlb")


def simple(process: GaussianProcess, t: Array, kind: str) -> Array:
    """Return weight 1 for every kind. For eps the loss is then L_simple (Ho et al. 2020, eq. 14).

    Args:
      process: the chain.
      t: int32 in 1..T, scalar or [B].
      kind: what the network predicts; not used.
    """
    return jnp.ones_like(read(process.betas, t))


def vlb(process: GaussianProcess, t: Array, kind: str, variance: str = "fixed_large") -> Array:
    """Return the weight of the variational bound's L_{t-1} (Ho et al. 2020, eq. 12).

    The weight is β_t² / (2 σ_t² α_t (1-ᾱ_t)) for eps and c_1² / (2 σ_t²) for x_0. The weighted loss
    is the KL divergence in nats per dimension, up to a constant that depends only on σ_t (0 for
    fixed_small). At t = 1 the bound has a decoder term instead; its σ_1² is the value of `variance`
    at t = 1.

    Args:
      process: the chain.
      t: int32 in 1..T, scalar or [B].
      kind: what the network predicts: "eps", "x_0" or "v".
      variance: σ_t² of p(x_{t-1} | x_t), "fixed_small" or "fixed_large".

    Raises:
      UserError: unknown kind or variance.
    """
    if variance not in VARIANCES:
        raise unknown("variance", variance, VARIANCES)
    log_variance = VARIANCES[variance](process, t, t - 1)
    coef1 = read(process.posterior_mean_coef1, t)
    return _from_x_0(process, 0.5 * jnp.square(coef1) * jnp.exp(-log_variance), t, kind)


def min_snr(process: GaussianProcess, t: Array, kind: str, gamma: float = 5.0) -> Array:
    """Return the Min-SNR weight, min(SNR_t, γ) for the error of x_0 (Hang et al. 2023, sec. 3.4).

    The weight is min(SNR_t, γ) / SNR_t for eps, and min(SNR_t, γ) / (SNR_t + 1) for v.

    Args:
      process: the chain.
      t: int32 in 1..T, scalar or [B].
      kind: what the network predicts: "eps", "x_0" or "v".
      gamma: γ, the largest weight for x_0.

    Raises:
      UserError: unknown kind.
    """
    return _from_x_0(process, jnp.minimum(snr(process, t), gamma), t, kind)


def p2(process: GaussianProcess, t: Array, kind: str, k: float = 1.0, gamma: float = 1.0) -> Array:
    """Return the P2 weight, 1 / (k + SNR_t)^γ for the error of eps (Choi et al. 2022, eq. 8).

    Args:
      process: the chain.
      t: int32 in 1..T, scalar or [B].
      kind: what the network predicts: "eps", "x_0" or "v".
      k: keeps the weight finite where SNR_t is small.
      gamma: γ, how strongly high SNR_t (little noise) is weighted down; 0 gives weight 1.

    Raises:
      UserError: unknown kind.
    """
    snr_t = snr(process, t)
    return _from_x_0(process, snr_t / (k + snr_t) ** gamma, t, kind)


def denoising_loss(
    process: GaussianProcess,
    apply_fn: ApplyFn,
    params: Params,
    x_0: Array,
    t: Array,
    eps: Array,
    cond: Conditioning | None = None,
    *,
    kind: str = "eps",
    weighting: Weighting = simple,
    objective: str = "simple",
    vlb_lambda: float = 1e-3,
    variance: str = "learned_range",
    train: bool,
    key: PRNGKey | None,
) -> Array:
    """Return the loss of each example, averaged over its pixels: [B] float32.

    - objective "simple": the weighted squared error.
    - "vlb": T L_{t-1} in bits/dim. Its mean over t is the bound without L_T, which has no
      parameters.
    - "hybrid": the weighted squared error + λ T L_{t-1}. The second term trains only the variance.

    Args:
      process: the chain.
      apply_fn: the network.
      params: its parameters.
      x_0: [B, ...] float, clean data in [-1, 1].
      t: [B] int32 in 1..T.
      eps: [B, ...] float, standard normal, the noise of x_t.
      cond: None, or arrays with leading axis B.
      kind: what the network predicts: "eps", "x_0" or "v".
      weighting: `simple`, `vlb`, `min_snr`, `p2` or another function (process, t, kind) -> [B].
      objective: "simple", "hybrid" or "vlb".
      vlb_lambda: λ, only for "hybrid".
      variance: σ_t² of p(x_{t-1} | x_t), only for "hybrid" and "vlb" (`ddpm_jax.variance`).
      train: whether dropout and other randomness of training are on.
      key: key of that randomness; None if `train` is False.

    Raises:
      UserError: unknown kind, objective or variance, x_0 that is not float, or "learned_range" with
        a network that does not predict the variance.
    """
    check_x_0(x_0)
    if objective not in OBJECTIVES:
        raise unknown("objective", objective, OBJECTIVES)
    target = training_target(process, x_0, eps, t, kind)
    x_t = q_sample(process, x_0, t, eps)
    output = apply_network(process, apply_fn, params, x_t, t, cond, train=train, key=key)
    predicted, fraction = split_output(output, x_t)

    def bound() -> Array:
        mean = jax.lax.stop_gradient(predicted) if objective == "hybrid" else predicted
        whole = mean if fraction is None else jnp.concatenate([mean, fraction], axis=-1)
        prediction = to_prediction(process, whole, x_t, t, kind)
        return process.num_timesteps * step_term(
            process, prediction, x_0, x_t, t, variance=variance
        )

    if objective == "vlb":
        return bound()
    squared_error = jnp.square(predicted - target).astype(jnp.float32)
    loss = weighting(process, t, kind) * squared_error.mean(range(1, x_0.ndim))
    return loss if objective == "simple" else loss + vlb_lambda * bound()


def _from_x_0(process: GaussianProcess, weight: Array, t: Array, kind: str) -> Array:
    """Convert a weight for the error of x_0 to the equivalent weight for the error of `kind`."""
    if kind == "x_0":
        return weight
    if kind == "eps":
        return weight / snr(process, t)
    if kind == "v":
        return weight * jnp.square(read(process.sqrt_one_minus_alphas_cumprod, t))
    raise unknown("kind", kind, KINDS)
