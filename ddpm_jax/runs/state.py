"""The state of a run: everything that the next step depends on."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from ddpm_jax.types import Array, Params, PRNGKey


def abstract_params(init: Callable[[PRNGKey], Params]) -> Params:
    """Return the shapes of parameters, each on the first local device, for `restore_ema`.

    Args:
      init: key -> the parameters.
    """
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(init, jax.random.key(0)),
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of a run, a pytree.

    Data order, times and noise are functions of `step` and the seed, so they are not stored.

    Attributes:
      step: int32 scalar, number of updates, including skipped ones.
      params: the weights, a tree of float32 arrays.
      ema_params: exponential moving average of the weights, used by sampling and evaluation.
      opt_state: state of the optimiser (`training.optimizer.make_optimizer`); it also counts the
        skipped updates.
      time_state: state of the time sampler; () if the sampler learns nothing.
    """

    step: Array
    params: Params
    ema_params: Params
    opt_state: Any
    time_state: Any = ()
