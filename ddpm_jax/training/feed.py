"""The batches of a run, ahead of its steps and on the devices; data that stop coming are named."""

from collections.abc import Callable, Iterator

import jax
import numpy as np

from ddpm_jax import data
from ddpm_jax.config import DataConfig
from ddpm_jax.data.ahead import map_ahead
from ddpm_jax.errors import SourceError, UserError
from ddpm_jax.runtime import sharding
from ddpm_jax.types import Array

PREFETCH = 2  # calls whose batches are prepared ahead

Call = tuple[int, int | None]  # a step, and how many are fused from there; None is a plain step


def plan_calls(start: int, stop: int, steps_per_call: int, every: list[int]) -> Iterator[Call]:
    """Yield the calls from step `start` to `stop`; none passes over a step with something due."""
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
    calls: list[Call],
    hurry: Callable[[], bool] = lambda: False,
) -> Iterator[dict[str, Array]]:
    """Yield the batch of each call on the devices, or its n batches stacked: [n, B, ...].

    Args:
      config: of the data.
      batches: this process's share of them.
      mesh: the devices.
      calls: of `plan_calls`.
      hurry: whether the run was told to stop; then it does not wait `data.timeout_s`.

    Raises:
      SourceError: a batch cannot be read any more, or took longer than `data.timeout_s`.
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
