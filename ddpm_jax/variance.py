"""The log variance of the reverse step p(x_s | x_t) = N(mean, σ² I), for any s < t.

  fixed_small:  σ² = β̃ = β_{t|s} (1-ᾱ_s)/(1-ᾱ_t), optimal if all x_0 are one point
  fixed_large:  σ² = β_{t|s},                     optimal if x_0 is N(0, I)
                                                  (Ho et al. 2020, section 3.2)

  learned_range:  ln σ² = f ln β_{t|s} + (1-f) ln β̃,  the network predicts f for each pixel
                                                  (Nichol & Dhariwal 2021, eq. 15)

fixed_large with few steps ruins images: β_{t|s} of a long jump is far more noise than the step
removes (CIFAR-10, 10 steps: FID 367 against 41; Song et al. 2021, table 1). Use fixed_small with
few steps.

Each variance is a function (process, t, s, prediction) -> log variance, a scalar, [B] or [B, ...]:
  process: the chain.
  t, s: int32 scalars or [B], t in 1..T and s in 0..t-1.
  prediction: the denoiser's prediction at x_t. Only learned_range reads it, to get the fraction f.
"""

import jax.numpy as jnp

from ddpm_jax.errors import UserError
from ddpm_jax.process import GaussianProcess, expand, jump, posterior_log_variance
from ddpm_jax.types import Array, Prediction


def fixed_small(
    process: GaussianProcess, t: Array, s: Array, prediction: Prediction | None = None
) -> Array:
    """Return ln β̃, the log variance of the posterior q(x_s | x_t, x_0); scalar or [B].

    At s = 0 the variance is 0; its logarithm is read at s = 1 instead (`posterior_log_variance`).
    """
    return posterior_log_variance(process, t, s)


def fixed_large(
    process: GaussianProcess, t: Array, s: Array, prediction: Prediction | None = None
) -> Array:
    """Return ln β_{t|s}, or `fixed_small` at s = 0; scalar or [B].

    Only the decoder term of the likelihood uses the value at s = 0, since a sampler adds no noise
    in its last step. Ho's code takes the posterior's log variance there.
    """
    beta = jump(process, t, s)[1]
    return jnp.where(s == 0, posterior_log_variance(process, t, s), jnp.log(beta))


def learned_range(
    process: GaussianProcess, t: Array, s: Array, prediction: Prediction | None = None
) -> Array:
    """Return f ln β_{t|s} + (1-f) ln β̃: [B, ...], for the fraction f that the network predicts.

    f = 0 is `fixed_small`. f = 1 is ln β_{t|s}: `fixed_large` if s > 0. It suits few steps as well
    as many.

    Raises:
      UserError: the network does not predict the variance.
    """
    if prediction is None or prediction.log_variance_fraction is None:
        raise UserError(
            "variance 'learned_range' needs a network that predicts the variance (twice the "
            "channels of x_t; model.learn_variance=True); take fixed_small or fixed_large"
        )
    fraction = prediction.log_variance_fraction
    low = expand(jnp.asarray(posterior_log_variance(process, t, s)), fraction)
    high = expand(jnp.log(jump(process, t, s)[1]), fraction)
    return low + fraction * (high - low)


VARIANCES = {
    "fixed_small": fixed_small,
    "fixed_large": fixed_large,
    "learned_range": learned_range,
}
