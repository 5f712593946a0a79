"""The compiled programs of a run, made before any array is allocated.

A program that is compiled ahead of time takes only arrays of the shapes and shardings that it was
compiled for. So nothing recompiles in the middle of a run.
"""

import ctypes
import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ddpm_jax.config import Config
from ddpm_jax.errors import UserError
from ddpm_jax.runs.state import TrainState
from ddpm_jax.runtime import compiler, memory, sharding
from ddpm_jax.runtime.platform import platform
from ddpm_jax.training.parts import Parts
from ddpm_jax.training.step import fuse_steps

FUSED = 10  # steps per call of an accelerator, if train.steps_per_call is 0


def steps_per_call(config: Config) -> int:
    """Return the number of train steps that one call fuses, where nothing is due between them."""
    return config.train.steps_per_call or (1 if platform() == "cpu" else FUSED)


class Programs:
    """The programs of a run on its mesh.

    Args:
      config: the config of the run.
      parts: the parts of the run, built for the same mesh.
      mesh: the devices of the run.
      image: the shape and type of one image of a batch: [H, W, C] uint8, or the moments of its
        latents (`data.latents.stored`).
      rows: name -> [N, ...], other inputs of the network for each training image (`data.cond`).
      available: bytes of memory of a device; None asks the device.

    Attributes:
      state: `ShapeDtypeStruct`s of the state, each with its sharding.
      init: () -> the state before the first step, created sharded on the devices.
      seconds: seconds spent on the compilation of steps so far.
    """

    def __init__(
        self,
        config: Config,
        parts: Parts,
        mesh: Mesh,
        image: jax.ShapeDtypeStruct,
        rows: Mapping[str, np.ndarray | jax.ShapeDtypeStruct],
        available: int | None = None,
    ):
        self._config, self._parts, self._mesh = config, parts, mesh
        self._image, self._rows = image, rows
        self._available = memory.capacity() if available is None else available
        self._compiled: dict[int | None, jax.stages.Compiled] = {}
        self.seconds = 0.0
        shapes = jax.eval_shape(parts.init)
        self._places = sharding.by_rules(mesh, shapes)
        self.state: TrainState = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            shapes,
            self._places,
        )
        self.init = jax.jit(
            parts.init,
            out_shardings=self._places,
            compiler_options=compiler.options(compiler.ONCE),
        )

    def step(self, n: int | None) -> jax.stages.Compiled:
        """Return the compiled train step, or n fused steps; the first call for each n compiles.

        Args:
          n: number of fused steps; None is one plain step.

        Raises:
          UserError: the compiler found that the step does not fit in the memory of the devices.
        """
        if n not in self._compiled:
            start = time.perf_counter()
            try:
                self._compiled[n] = self.trace(n).lower().compile()
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                raise UserError(
                    f"a train step does not fit: {str(error).splitlines()[0][:200]}; "
                    f"{memory.advice(self._config, None, self._available, self._mesh.size)}"
                ) from error
            give_back_memory()
            self.seconds += time.perf_counter() - start
        return self._compiled[n]

    def trace(self, n: int | None) -> jax.stages.Traced:
        """Return the train step, or n fused steps, before compilation; `n` as in `step`."""
        step = self._parts.train_step
        function = jax.jit(
            step if n is None else fuse_steps(step, n),
            donate_argnums=0,
            out_shardings=(self._places, sharding.replicated(self._mesh)),
            compiler_options=compiler.options(compiler.of_network(self.state.params)),
        )
        return function.trace(self.state, self._batch(n))

    def fitting(self, n: int | None) -> str:
        """Return a phrase that says how much of a device's memory `step(n)` needs.

        Raises:
          UserError: `step(n)` needs more memory than a device has.
        """
        needed, available = memory.of_step(self.step(n)), self._available
        memory.check_fits(needed, available, self._config, self._mesh.size)
        return memory.describe(needed, available)

    def _batch(self, n: int | None) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes, types and shardings of a batch from `training.feed`."""
        image = self._image
        size = self._config.train.batch_size
        leaves = {
            "image": ((size, *image.shape), image.dtype),
            "label": ((size,), jnp.int32),
            **{name: ((size, *row.shape[1:]), row.dtype) for name, row in self._rows.items()},
        }
        front, axis = ((), 0) if n is None else ((n,), 1)
        place = sharding.over_batch(self._mesh, axis=axis)
        return {
            name: jax.ShapeDtypeStruct((*front, *shape), dtype, sharding=place)
            for name, (shape, dtype) in leaves.items()
        }


def give_back_memory() -> None:
    """Return memory that the compiler has freed to the system; the C library (glibc) keeps it.

    This was more than half of the process in a tiny run that had to compile (719 to 328 MiB,
    2026-11-25).
    """
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
