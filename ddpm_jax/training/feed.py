"""The batches of a run, prepared ahead of its steps and placed on the devices."""

from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

from ddpm_jax import data
from ddpm_jax.config import DataConfig
from ddpm_jax.data.ahead import map_ahead
from ddpm_jax.errors import SourceError, UserError
from ddpm_jax.runtime import sharding
from ddpm_jax.types import Array

PREFETCH = 2  # number of calls with batches prepared ahead

Call = tuple[int, int | None]  # first step, and the number of fused steps; None is one plain step


def plan_calls(start: int, stop: int, steps_per_call: int, every: list[int]) -> Iterator[Call]:
    """Yield the calls from step `start` to `stop`; a call ends at each step with something due.

    Args:
      start: number of steps that are already done.
      stop: number of steps at the end.
      steps_per_call: number of steps that one call fuses; 0 and 1 are plain steps.
      every: periods in steps of whatever is due, such as a checkpoint; 0 is never.

    Yields:
      (step, n): the steps that are done before the call, and the number of fused steps or None.
    """
    step = start
    while step < stop:
        due = min([(step // e + 1) * e for e in every if e] + [stop])
        n = steps_per_call if steps_per_call > 1 and step + steps_per_call <= due else None
        yield step, n
        step += n or 1


def feed(
    config: DataConfig,
    batches: data.Batches,
    mesh: jax.sharding.Mesh,
    calls: Iterable[Call],
    hurry: Callable[[], bool] = lambda: False,
) -> Iterator[dict[str, Array]]:
    """Yield the data of each call on the devices.

    A plain step gets one batch [B, ...]. A call of n fused steps gets n batches, [n, B, ...].

    Args:
      config: the config of the data.
      batches: this process's share of the batches.
      mesh: the devices.
      calls: the calls from `plan_calls`.
      hurry: () -> whether a signal asks the run to stop. If it does, the wait for a late batch
        ends after a few seconds.

    Raises:
      SourceError: a batch cannot be read any more, or the wait for a batch reached its limit.
    """

    def load(call: Call) -> dict[str, Array]:
        step, n = call
        try:
            parts = [batches.batch(step + i) for i in range(n or 1)]
        except (OSError, UserError) as error:
            raise SourceError(
                f"the batch of step {step} cannot be read from data.name={config.name!r} "
                f"({' '.join(str(error).split())}); bring the data back and start the same command "
                "again"
            ) from error
        if n is None:
            local, place = parts[0], sharding.over_batch(mesh)
        else:
            local = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
            place = sharding.over_batch(mesh, axis=1)
        return {
            name: jax.make_array_from_process_local_data(place, value)
            for name, value in local.items()
        }

    try:
        yield from map_ahead(load, calls, 1, PREFETCH, config.timeout_s or None, hurry)
    except TimeoutError as error:
        raise SourceError(
            f"data.name={config.name!r} hangs: {error} (data.timeout_s={config.timeout_s:g}); "
            "see whether its disk or network answers and start the same command again, "
            "or raise data.timeout_s"
        ) from error
