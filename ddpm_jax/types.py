"""The types that the rest of the library speaks in.

A network enters the maths as an `ApplyFn`, is closed over into a `DenoiseFn`, and what it says
about x_t is a `Prediction`; a model written in any library fits through these three.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array
PRNGKey = jax.Array  # one key, or an array of keys
Params = Any  # any pytree of arrays
Conditioning = Mapping[str, Array]  # what the network is told besides x_t and t, e.g. "label": [B]


class Prediction(NamedTuple):
    """What the denoiser says about x_t: two views of one thing, x_t = alpha_t x_0 + sigma_t eps.

    Attributes:
      x_0: [B, ...] float, the clean data.
      eps: [B, ...] float, the noise.
      log_variance_fraction: [B, ...] float, where the log variance of the reverse step lies between
        the smallest (0) and the largest (1) that make sense (`variance.learned_range`); None of a
        network that does not say.
    """

    x_0: Array
    eps: Array
    log_variance_fraction: Array | None = None


class ApplyFn(Protocol):
    """The network's contract."""

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
          x_t: [B, ...] float, noisy data.
          t: [B] int32 in 0..T-1, the step as Ho's weights know it (one less than the papers' t);
            float32 between them in `likelihood.ode`, and by the noise of a learned schedule
            (`likelihood.continuous`).
          cond: None, or arrays with leading axis B.
          train: whether dropout and the like are on.
          key: randomness of a training step; None where `train` is False.

        Returns:
          [B, ..., C] the shape of x_t, of any float type; or [B, ..., 2C], of which the second half
          is what it says of the variance.
        """
        ...


class DenoiseFn(Protocol):
    """A network with its parameters, conditioning and kind closed over."""

    def __call__(self, x_t: Array, t: Array) -> Prediction:
        """Predict x_0 and eps from x_t: [B, ...] at t: int32 in 1..T, a scalar or [B]."""
        ...
