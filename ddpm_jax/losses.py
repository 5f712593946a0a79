"""The training losses: the squared error of what the network predicts, weighted by t; the bound.

  L_simple = E ‖ε - ε_θ(x_t, t)‖²                                           (Ho et al. 2020, eq. 14)
  L_{t-1} = β_t² / (2 σ_t² α_t (1-ᾱ_t)) ‖ε - ε_θ(x_t, t)‖² + const          (eq. 12)
  L_vlb = L_T + Σ_{t>1} L_{t-1} + L_0 = E_t[T L_{t-1}] + L_T                (eq. 5)
  L_hybrid = L_simple + λ L_vlb, L_vlb's gradient to the variance alone
                                                                   (Nichol & Dhariwal 2021, eq. 16)

The errors of the three kinds at one x_t are one error in three units:
  ‖ε - ε̂‖² = SNR_t ‖x_0 - x̂_0‖²,  ‖v - v̂‖² = ‖x_0 - x̂_0‖² / σ_t²
so a weighting is defined once, on the error of x_0, and divided by the unit of the kind.

A weighting is a function (process, t, kind) -> [B] float32, the weight of the mean squared error
of that kind's own target; set the options of one with `functools.partial`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ddpm_jax.denoise import apply_network
from ddpm_jax.errors import unknown
from ddpm_jax.likelihood.terms import step_term
from ddpm_jax.predictions import KINDS, split_output, to_prediction, training_target
from ddpm_jax.process import GaussianProcess, q_sample, read, snr
from ddpm_jax.types import ApplyFn, Array, Conditioning, Params, PRNGKey
from ddpm_jax.variance import VARIANCES

Weighting = Callable[[GaussianProcess, Array, str], Array]

OBJECTIVES = ("simple", "hybrid", "vlb")


def simple(process: GaussianProcess, t: Array, kind: str) -> Array:
    """Return 1, on whatever the network predicts; for eps this is Ho's L_simple (eq. 14)."""
    return jnp.ones_like(read(process.betas, t))


def vlb(process: GaussianProcess, t: Array, kind: str, variance: str = "fixed_large") -> Array:
    """Return the weight of the variational bound's L_{t-1} (Ho et al. 2020, eq. 12).

    On eps it is β_t² / (2 σ_t² α_t (1-ᾱ_t)), on x_0 c_1² / (2 σ_t²). The weighted loss is then
    the KL divergence in nats per dimension, but for the constant that the choice of σ_t leaves
    (0 for fixed_small). At t = 1 the term is a decoder's; σ_1² is the one that `variance` gives it.

    Args:
      process: the chain.
      t: int32 in 1..T, scalar or [B].
      kind: what the network predicts.
      variance: σ_t², "fixed_small" or "fixed_large".
    """
    if variance not in VARIANCES:
        raise unknown("variance", variance, VARIANCES)
    log_variance = VARIANCES[variance](process, t, t - 1)
    coef1 = read(process.posterior_mean_coef1, t)
    return _from_x_0(process, 0.5 * jnp.square(coef1) * jnp.exp(-log_variance), t, kind)


def min_snr(process: GaussianProcess, t: Array, kind: str, gamma: float = 5.0) -> Array:
    """Return min(SNR_t, γ) on the error of x_0: min(SNR_t, γ) / SNR_t on eps, / (SNR_t + 1) on v.

    (Hang et al. 2023, section 3.4.)
    """
    return _from_x_0(process, jnp.minimum(snr(process, t), gamma), t, kind)


def p2(process: GaussianProcess, t: Array, kind: str, k: float = 1.0, gamma: float = 1.0) -> Array:
    """Return 1 / (k + SNR_t)^γ on the error of eps (Choi et al. 2022, eq. 8)."""
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

    "simple" is the weighted squared error. "vlb" is T L_{t-1}, in bits/dim: its mean over t is the
    bound without L_T, which nothing here trains. "hybrid" is the weighted squared error + λ T
    L_{t-1}, of which the second trains the variance alone.

    Args:
      process: the chain.
      apply_fn: the network.
      params: its parameters.
      x_0: [B, ...] float, clean data in [-1, 1].
      t: [B] int32 in 1..T.
      eps: [B, ...] float, the standard normal noise of x_t.
      cond: None, or arrays with leading axis B.
      kind: what the network predicts: "eps", "x_0" or "v".
      weighting: `simple`, `vlb`, `min_snr`, `p2` or another function (process, t, kind) -> [B].
      objective: "simple", "hybrid" or "vlb".
      vlb_lambda: λ, of "hybrid" alone.
      variance: σ_t² of "hybrid" and "vlb" (`ddpm_jax.variance`).
      train: whether dropout and the like are on.
      key: randomness of a training step; None where `train` is False.

    Raises:
      UserError: unknown kind, objective or variance.
    """
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
    """Turn a weight of the error of x_0 into the equal weight of the error of `kind`."""
    if kind == "x_0":
        return weight
    if kind == "eps":
        return weight / snr(process, t)
    if kind == "v":
        return weight * jnp.square(read(process.sqrt_one_minus_alphas_cumprod, t))
    raise unknown("kind", kind, KINDS)
