"""Log variances of the reverse step p(x_s | x_t), for any s < t.

  fixed_small:  σ² = β̃ = β_{t|s} (1-ᾱ_s)/(1-ᾱ_t), optimal where x_0 is one point
  fixed_large:  σ² = β_{t|s},                     optimal where x_0 is N(0, I)
                                                  (Ho et al. 2020, section 3.2)

  learned_range:  ln σ² = f ln β_{t|s} + (1-f) ln β̃,  f by the network, a fraction for each pixel
                                                  (Nichol & Dhariwal 2021, eq. 15)

fixed_large with few steps ruins images: β_{t|s} of a long jump is far more noise than the step
removes (FID 268 against 41 at 10 steps). Pair few steps with fixed_small.

Each is a function (process, t, s, prediction) -> log variance, a scalar, [B] or [B, ...]. The
fixed ones do not look at the prediction; learned_range reads its fraction there.
"""

import jax.numpy as jnp

from ddpm_jax.errors import UserError
from ddpm_jax.process import GaussianProcess, expand, jump, posterior_log_variance
from ddpm_jax.types import Array, Prediction


def fixed_small(
    process: GaussianProcess, t: Array, s: Array, prediction: Prediction | None = None
) -> Array:
    """Return ln β̃, the log variance of the posterior q(x_s | x_t, x_0); finite at s = 0 too."""
    return posterior_log_variance(process, t, s)


def fixed_large(
    process: GaussianProcess, t: Array, s: Array, prediction: Prediction | None = None
) -> Array:
    """Return ln β_{t|s}; at s = 0 ln β̃ as in `fixed_small`.

    The entry at s = 0 serves the decoder term of the likelihood only (a sampler adds no noise
    there); Ho's code takes the posterior's for it.
    """
    beta = jump(process, t, s)[1]
    return jnp.where(s == 0, posterior_log_variance(process, t, s), jnp.log(beta))


def learned_range(
    process: GaussianProcess, t: Array, s: Array, prediction: Prediction | None = None
) -> Array:
    """Return f ln β_{t|s} + (1-f) ln β̃, [B, ...]; at s = 0 between ln β_{t|0} and `fixed_small`.

    f = 0 is fixed_small; f = 1 is fixed_large where s > 0. Few steps need no other choice.

    Raises:
      UserError: the network says nothing of its variance.
    """
    if prediction is None or prediction.log_variance_fraction is None:
        raise UserError(
            "variance 'learned_range' needs a network that says its variance (twice the channels "
            "of x_t; model.learn_variance=True); take fixed_small or fixed_large"
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
