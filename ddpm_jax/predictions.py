"""What the network predicts, by kind, and its two views: clean data x_0 and noise eps.

  eps:  the noise                                    (Ho et al. 2020, section 3.2)
  x_0:  the clean data
  v:    v = alpha_t eps - sigma_t x_0                (Salimans & Ho 2022, section 4)

Every kind converts to (x_0, eps) in one function and from (x_0, eps) to a training target in
another; nothing converts from kind to kind. A network with twice the channels says besides, in the
second half of them, what the variance of the reverse step is: v in [-1, 1] where it is sane, read
as the fraction (v + 1) / 2                          (Nichol & Dhariwal 2021, section 3.1 and code)
"""

import jax.numpy as jnp

from ddpm_jax.errors import UserError, unknown
from ddpm_jax.process import GaussianProcess, alpha_sigma
from ddpm_jax.types import Array, Prediction

KINDS = ("eps", "x_0", "v")


def to_prediction(
    process: GaussianProcess, output: Array, x_t: Array, t: Array, kind: str
) -> Prediction:
    """Return the (x_0, eps) that a network's output means at x_t = alpha_t x_0 + sigma_t eps.

    Args:
      process: the chain.
      output: [B, ..., C] float, what the network returned, or [B, ..., 2C] with its variance.
      x_t: [B, ...] float.
      t: int32 in 1..T, scalar or [B].
      kind: "eps", "x_0" or "v".

    Raises:
      UserError: unknown kind.
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
    """Return the half of a network's output that predicts, and the half that is the variance's.

    Args:
      output: [B, ..., C] as x_t, then there is no other half, or [B, ..., 2C].
      x_t: [B, ..., C].

    Raises:
      UserError: output of another shape.
    """
    if output.shape == x_t.shape:
        return output, None
    if output.shape == (*x_t.shape[:-1], 2 * x_t.shape[-1]):
        predicted, variance = jnp.split(output, 2, axis=-1)
        return predicted, variance
    raise UserError(
        f"a network's output must have the shape of x_t, {x_t.shape}, or twice its channels (with "
        f"the variance); found {output.shape}"
    )


def training_target(process: GaussianProcess, x_0: Array, eps: Array, t: Array, kind: str) -> Array:
    """Return what the network should output at x_t = alpha_t x_0 + sigma_t eps: [B, ...].

    Arguments and errors as in `to_prediction`.
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

    Reads the tables, so it is called where things are built, not under `jit`.

    Raises:
      UserError: unknown kind; or eps at zero terminal SNR, where x_T holds no x_0 to recover.
    """
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    if kind == "eps" and process.alphas_cumprod[-1] == 0.0:
        raise UserError(
            "kind 'eps' cannot be used with zero_terminal_snr: at t = T the noise says nothing "
            "about x_0; set kind to 'v' or 'x_0', or zero_terminal_snr to False"
        )
