"""The kinds of prediction: eps, x_0 or v, and how each converts to clean data x_0 and noise eps.

  eps:  the noise                                    (Ho et al. 2020, section 3.2)
  x_0:  the clean data
  v:    v = alpha_t eps - sigma_t x_0                (Salimans & Ho 2022, section 4)

One function converts every kind to (x_0, eps). Another computes every kind's training target from
(x_0, eps). No function converts one kind to another.

A network with twice the channels also predicts the variance of the reverse step. The second half of
its channels is read as the fraction f = (output + 1) / 2 of `variance.learned_range`. Sensible
outputs are in [-1, 1], so f is in [0, 1].          (Nichol & Dhariwal 2021, section 3.1 and code)
"""

import jax.numpy as jnp

from ddpm_jax.errors import UserError, unknown
from ddpm_jax.process import GaussianProcess, alpha_sigma
from ddpm_jax.types import Array, Prediction

KINDS = ("eps", "x_0", "v")


def to_prediction(
    process: GaussianProcess, output: Array, x_t: Array, t: Array, kind: str
) -> Prediction:
    """Convert the network's output to x_0 and eps, with x_t = alpha_t x_0 + sigma_t eps.

    Args:
      process: the chain.
      output: [B, ..., C] float, the network's output; or [B, ..., 2C] if it predicts the variance
        too.
      x_t: [B, ..., C] float, the network's input.
      t: int32 in 1..T, scalar or [B], the timestep of x_t.
      kind: what the output is: "eps", "x_0" or "v".

    Returns:
      x_0 and eps: [B, ..., C]; log_variance_fraction: [B, ..., C], or None without a variance.

    Raises:
      UserError: unknown kind, or an output of another shape.
    """
    alpha_t, sigma_t = alpha_sigma(process, t, x_t)
    output, v = split_output(output, x_t)
    fraction = None if v is None else (v + 1.0) / 2.0
    if kind == "eps":
        return Prediction((x_t - sigma_t * output) / alpha_t, output, fraction)
    if kind == "x_0":
        return Prediction(output, (x_t - alpha_t * output) / sigma_t, fraction)
    if kind == "v":
        x_0, eps = alpha_t * x_t - sigma_t * output, sigma_t * x_t + alpha_t * output
        return Prediction(x_0, eps, fraction)
    raise unknown("kind", kind, KINDS)


def split_output(output: Array, x_t: Array) -> tuple[Array, Array | None]:
    """Split the network's output into the prediction and the channels of the variance.

    Args:
      output: [B, ..., C], or [B, ..., 2C] with the variance in the second half of the channels.
      x_t: [B, ..., C], the network's input.

    Returns:
      prediction: [B, ..., C]; variance channels: [B, ..., C], or None if the output has C channels.

    Raises:
      UserError: an output of another shape.
    """
    if output.shape == x_t.shape:
        return output, None
    if output.shape == (*x_t.shape[:-1], 2 * x_t.shape[-1]):
        predicted, variance = jnp.split(output, 2, axis=-1)
        return predicted, variance
    raise UserError(
        f"the network's output must have the shape of x_t, {x_t.shape}, or twice its channels (the "
        f"second half for the variance); found shape {output.shape}"
    )


def training_target(process: GaussianProcess, x_0: Array, eps: Array, t: Array, kind: str) -> Array:
    """Return the output that the network is trained to give at x_t = alpha_t x_0 + sigma_t eps.

    Args:
      process: the chain.
      x_0: [B, ...] float, clean data.
      eps: [B, ...] float, the noise of x_t.
      t: int32 in 1..T, scalar or [B].
      kind: "eps", "x_0" or "v".

    Returns:
      [B, ...] float.

    Raises:
      UserError: unknown kind.
    """
    if kind == "eps":
        return eps
    if kind == "x_0":
        return x_0
    if kind == "v":
        alpha_t, sigma_t = alpha_sigma(process, t, x_0)
        return alpha_t * eps - sigma_t * x_0
    raise unknown("kind", kind, KINDS)


def check_kind(process: GaussianProcess, kind: str) -> None:
    """Check that a network of this kind can be trained and sampled on this chain.

    Reads the tables, so call it before `jit`, not inside.

    Args:
      process: the chain.
      kind: "eps", "x_0" or "v".

    Raises:
      UserError: unknown kind; or "eps" at zero terminal SNR, where x_T contains nothing of x_0.
    """
    check_kind_name(kind)
    if kind == "eps" and process.alphas_cumprod[-1] == 0.0:
        raise UserError(
            "kind 'eps' cannot be used with zero_terminal_snr: at t = T, x_t is only noise and eps "
            "does not determine x_0; set kind to 'v' or 'x_0', or zero_terminal_snr to False"
        )


def check_kind_name(kind: str) -> None:
    """Raise `UserError` where kind is not one of `KINDS`."""
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
