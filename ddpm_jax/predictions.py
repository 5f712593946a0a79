"""What the network predicts, by kind, and its two views: clean data x_0 and noise eps.

  eps:  the noise                                    (Ho et al. 2020, section 3.2)
  x_0:  the clean data
  v:    v = alpha_t eps - sigma_t x_0                (Salimans & Ho 2022, section 4)

Every kind converts to (x_0, eps) in one function and from (x_0, eps) to a training target in
another; nothing converts from kind to kind.
"""

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
      output: [B, ...] float, what the network returned.
      x_t: [B, ...] float.
      t: int32 in 1..T, scalar or [B].
      kind: "eps", "x_0" or "v".

    Raises:
      UserError: unknown kind.
    """
    alpha_t, sigma_t = alpha_sigma(process, t, x_t)
    if kind == "eps":
        return Prediction(x_0=(x_t - sigma_t * output) / alpha_t, eps=output)
    if kind == "x_0":
        return Prediction(x_0=output, eps=(x_t - alpha_t * output) / sigma_t)
    if kind == "v":
        return Prediction(
            x_0=alpha_t * x_t - sigma_t * output, eps=sigma_t * x_t + alpha_t * output
        )
    raise unknown("kind", kind, KINDS)


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
