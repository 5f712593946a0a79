"""Write an imported run as a work directory, as if it had been trained to step 0.

<workdir>/imported.json says where the weights are from, and the revision of a model of the Hub.
"""

import json
import os

import jax

from ddpm_jax.errors import UserError
from ddpm_jax.interop.hub import Source
from ddpm_jax.runs import Run
from ddpm_jax.runs.checkpoint import Checkpoints
from ddpm_jax.runs.state import TrainState
from ddpm_jax.runs.workdir import WorkDir, locked, open_for_training
from ddpm_jax.runtime.files import absolute, replacing
from ddpm_jax.training.parts import build_parts


def write_run(run: Run, root: str | os.PathLike, source: Source) -> None:
    """Write the work directory of an imported run: `load`, all mains and further training read it.

    The optimiser starts anew, and the averaged weights start at the weights.

    Args:
      run: the run, with numpy or JAX arrays.
      root: the work directory; it must not hold a run.
      source: where the weights are from.

    Raises:
      UserError: the directory holds a run, or cannot be written; or the config cannot be trained.
    """
    if WorkDir(absolute(root)).config.exists():
        raise UserError(f"--workdir={root} already holds a run; choose another directory")
    parts = build_parts(run.config, run.facts.image_shape, run.facts.num_classes)

    def others() -> tuple:  # the compiler drops the random weights, which nothing reads
        state = parts.init()
        return state.step, state.opt_state, state.time_state

    step, opt_state, time_state = jax.jit(others)()
    params = jax.tree.map(jax.numpy.asarray, run.params)
    state = TrainState(step, params, params, opt_state, time_state)
    with locked(root):
        workdir = open_for_training(root, run.config, run.facts)
        with replacing(workdir.root / "imported.json") as part:
            part.write_text(json.dumps({"from": source.name, "revision": source.revision}) + "\n")
        checkpoints = Checkpoints(workdir.checkpoints, run.config.train.keep_last, 0)
        checkpoints.save(state, wait=True)
        checkpoints.close()
