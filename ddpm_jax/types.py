"""The types that connect a network to the mathematics of diffusion.

A network is an `ApplyFn`. Together with its parameters it becomes a `DenoiseFn`, which returns a
`Prediction` of x_0 and eps. A model written in any library can be wrapped as an `ApplyFn`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Array = jax.Array
PRNGKey = jax.Array  # one key, or an array of keys
Params = Any  # any pytree of arrays
# What the network receives in addition to x_t and t, for instance "label": [B]
Conditioning = Mapping[str, Array | np.ndarray]
Timesteps = Array | np.ndarray  # [K+1] whole numbers, a grid that samplers walk


class Prediction(NamedTuple):
    """The denoiser's prediction at x_t. Its fields satisfy x_t = alpha_t x_0 + sigma_t eps.

    Attributes:
      x_0: [B, ...] float, the predicted clean data.
      eps: [B, ...] float, the predicted noise.
      log_variance_fraction: [B, ...] float, the fraction f of `variance.learned_range`: f = 0 is
        the log variance of "fixed_small", f = 1 is ln β_{t|s}. None if the network does not predict
        the variance.
    """

    x_0: Array
    eps: Array
    log_variance_fraction: Array | None = None


class ApplyFn(Protocol):
    """The network as a function of its parameters. The mathematics calls nothing else of it."""

    def __call__(
        self,
        params: Params,
        x_t: Array,
        t: Array,
        cond: Conditioning | None,
        *,
        train: bool,
        key: PRNGKey | None,
    ) -> Array:
        """Return the network's output.

        Args:
          params: the network's parameters.
          x_t: [B, ..., C] float, noisy data.
          t: [B] int32 in 0..T-1, the papers' t minus 1, as in Ho's code. `likelihood.ode` passes
            float32 values between these integers. With a learned schedule t is float32 and follows
            the noise level (`likelihood.continuous`).
          cond: None, or arrays with leading axis B.
          train: whether dropout and other randomness of training are on.
          key: key of that randomness; None if `train` is False.

        Returns:
          [B, ..., C] of any float type, the prediction. A network that predicts the variance too
          returns [B, ..., 2C]; the second half of the channels is for the variance.
        """
        ...


class DenoiseFn(Protocol):
    """A network with fixed parameters, conditioning and kind of prediction."""

    def __call__(self, x_t: Array, t: Array) -> Prediction:
        """Predict x_0 and eps.

        Args:
          x_t: [B, ...] float, noisy data.
          t: int32 in 1..T, scalar or [B], the timestep of x_t.
        """
        ...
