"""The state of a run: everything that the next step depends on, and nothing else."""

import dataclasses
from typing import Any

import jax

from ddpm_jax.types import Array, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """A pytree; data order, times and noise follow from `step` and the seed alone.

    Attributes:
      step: int32 scalar, updates taken (skipped ones counted).
      params: the raw weights.
      ema_params: their exponential moving average, what sampling and evaluation use.
      opt_state: of `optimizer.make_optimizer`; counts the skipped updates.
      time_state: of the time sampler; () of those that learn nothing.
    """

    step: Array
    params: Params
    ema_params: Params
    opt_state: Any
    time_state: Any = ()
