"""The state of a run: everything that the next step depends on, and nothing else."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ddpm_jax.models import Model
from ddpm_jax.time_samplers import TimeSampler
from ddpm_jax.types import Array, Params, PRNGKey


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
    opt_state: optax.ApplyIfFiniteState
    time_state: Any = ()


def init_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    key: PRNGKey,
    time_sampler: TimeSampler,
) -> TrainState:
    """Return the state before the first step; pure, for `jax.jit` and `jax.eval_shape`."""
    params = model.init(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),  # buffers of its own: the step donates both
        opt_state=optimizer.init(params),
        time_state=time_sampler.init(),
    )
