"""The state of a run: everything that the next step depends on, and nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from ddpm_jax.models import Model
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
    """

    step: Array
    params: Params
    ema_params: Params
    opt_state: optax.ApplyIfFiniteState


def init_state(model: Model, optimizer: optax.GradientTransformation, key: PRNGKey) -> TrainState:
    """Return the state before the first step; pure, for `jax.jit` and `jax.eval_shape`."""
    params = model.init(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),  # buffers of its own: the step donates both
        opt_state=optimizer.init(params),
    )
