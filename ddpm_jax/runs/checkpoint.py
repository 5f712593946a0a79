"""Checkpoints: Orbax, asynchronous and atomic, in `<directory>/<step>`.

A checkpoint has the items `ema`, the averaged weights that sampling needs, `train`, the rest of the
state, and `checksums`, of every leaf of both; and `metrics`, where the samples were judged, so that
the best is kept. A checkpoint that cannot be read whole is named and set aside, and the newest
whole one is taken.
"""

import json
import logging
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from ddpm_jax.errors import UserError
from ddpm_jax.runs.checksums import check, checksums
from ddpm_jax.runs.state import TrainState
from ddpm_jax.types import Params

logger = logging.getLogger(__name__)

Restored = TypeVar("Restored")


class Checkpoints:
    """The checkpoints of a run that is being trained.

    Args:
      directory: made if need be.
      keep_last: how many of the newest are kept ...
      keep_every: ... besides those at multiples of this step; 0 is none ...
      keep_best: ... and the one that was saved with the lowest score, if any was.
    """

    def __init__(
        self, directory: pathlib.Path, keep_last: int, keep_every: int, *, keep_best: bool = False
    ):
        if keep_last < 1:
            raise UserError(f"train.keep_last must be at least 1, found {keep_last}")
        keep: list[Any] = [preservation_policy.LatestN(keep_last)]
        if keep_every:
            keep.append(preservation_policy.EveryNSteps(keep_every))
        if keep_best:
            keep.append(
                preservation_policy.BestN(
                    get_metric_fn=_score, reverse=True, n=1, keep_checkpoints_without_metrics=False
                )
            )
            _drop_damaged_scores(directory)
        self.directory = directory
        self._manager = ocp.CheckpointManager(
            directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy(keep),
                cleanup_tmp_directories=True,
                best_fn=_score if keep_best else None,  # without it Orbax writes no metrics
                best_mode="min",
            ),
        )

    def save(
        self, state: TrainState, *, score: Mapping[str, float] | None = None, wait: bool = False
    ) -> None:
        """Save the state as `<directory>/<state.step>`, in the background unless `wait`.

        Args:
          state: what to save.
          score: {name: value}, of which the lowest is the best; None where it is not known, and
            one that is not finite is taken for none.
          wait: until it is written.

        Raises:
          UserError: this or an earlier save failed (disk full); the earlier checkpoints stand.
        """
        step = int(state.step)
        items = {"train": _train_item(state), "ema": state.ema_params}
        try:
            if self._manager.latest_step() != step:
                self._manager.save(
                    step,
                    args=ocp.args.Composite(
                        checksums=ocp.args.JsonSave(checksums(items)),
                        **{name: ocp.args.StandardSave(item) for name, item in items.items()},
                    ),
                    metrics=score if score and math.isfinite(_score(score)) else None,
                    force=True,
                )
            if wait:
                self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            whole = [s for s in self._manager.all_steps(read=True) if s != step]
            raise UserError(
                f"the checkpoint of step {step} could not be saved in {self.directory} "
                f"({_first_line(error)}); the last good one is of step {max(whole, default=None)}; "
                "make room and start the same command again"
            ) from error

    def restore_latest(self, abstract_state: TrainState) -> TrainState | None:
        """Return the newest whole state, or None where there is no checkpoint yet.

        Args:
          abstract_state: `ShapeDtypeStruct`s with the shardings to restore onto.

        Raises:
          UserError: there are checkpoints and none can be read.
        """
        abstract = {"train": _train_item(abstract_state), "ema": abstract_state.ema_params}
        steps = self._manager.all_steps()
        if not steps:
            return None

        def restore(step: int) -> TrainState:
            items = _restore(self._manager, step, abstract)
            return TrainState(ema_params=items["ema"], **items["train"])

        step, state = _newest_whole(self.directory, list(steps), restore)
        self._set_aside([s for s in steps if s > step])
        return state

    def best(self) -> tuple[int, dict[str, float]] | None:
        """Return the step with the lowest score, and its score; None if none has one."""
        step = self._manager.best_step()
        if step is None:
            return None
        score: Any = self._manager.metrics(step)
        return step, dict(score)

    def close(self) -> None:
        """Wait for a save in progress and release the manager's threads."""
        self._manager.close()

    def _set_aside(self, steps: list[int]) -> None:
        """Move damaged checkpoints out of the way of new ones; nothing is deleted."""
        for step in steps:
            aside = self.directory.parent / "damaged"
            aside.mkdir(exist_ok=True)
            target = next(path for n in range(1000) if not (path := aside / f"{step}-{n}").exists())
            (self.directory / str(step)).rename(target)
            logger.warning("the damaged checkpoint of step %d now lies in %s", step, target)
        if steps:
            self._manager.reload()


def _train_item(state: TrainState) -> dict[str, Any]:
    """Return all of a state but its averaged weights; what is empty is left out."""
    item = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
    return item | ({"time_state": state.time_state} if jax.tree.leaves(state.time_state) else {})


def restore_ema(directory: pathlib.Path, abstract_params: Params, step: int | None = None):
    """Return (step, averaged weights) of the newest whole checkpoint, or of the one of `step`.

    Args:
      directory: `<workdir>/checkpoints`.
      abstract_params: `ShapeDtypeStruct`s of the weights.
      step: which checkpoint; None is the newest.

    Raises:
      UserError: there is no such checkpoint, or none that can be read.
    """
    abstract = {"ema": abstract_params}
    if not directory.is_dir():
        raise UserError(f"there is no checkpoint in {directory}; train first")
    options = ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0, create=False)
    with ocp.CheckpointManager(directory, options=options) as manager:
        steps = manager.all_steps()
        if step is not None and step not in steps:
            raise UserError(
                f"there is no checkpoint of step {step} in {directory}: {sorted(steps)}"
            )
        if not steps:
            raise UserError(f"there is no checkpoint in {directory}; train first")
        steps = list(steps) if step is None else [step]
        return _newest_whole(directory, steps, lambda s: _restore(manager, s, abstract)["ema"])


def _restore(manager: ocp.CheckpointManager, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
    """Return items of a checkpoint, each leaf checked; those of old versions have no checksums."""
    args: dict[str, Any] = {name: ocp.args.StandardRestore(item) for name, item in abstract.items()}
    if checked := (manager.directory / str(step) / "checksums").exists():
        args["checksums"] = ocp.args.JsonRestore()
    restored = manager.restore(step, args=ocp.args.Composite(**args))
    items = {name: restored[name] for name in abstract}
    if checked:
        check(items, restored["checksums"])
    else:
        logger.info("the checkpoint of step %d is of an older version, without checksums", step)
    return items


def _newest_whole(
    directory: pathlib.Path, steps: list[int], restore: Callable[[int], Restored]
) -> tuple[int, Restored]:
    """Restore the newest step that can be read, naming those that cannot."""
    for step in sorted(steps, reverse=True):
        try:
            return step, jax.block_until_ready(restore(step))
        except Exception as error:  # Orbax and TensorStore raise bare Exceptions for damage
            logger.warning(
                "the checkpoint %s cannot be read (%s)", directory / str(step), _first_line(error)
            )
    raise UserError(
        f"none of the checkpoints {sorted(steps)} in {directory} can be read with this config and "
        "this version; the lines above say why; choose another --workdir to start anew"
    )


def _score(metrics: Mapping[str, float]) -> float:
    """Return the one value that checkpoints are compared by."""
    (value,) = metrics.values()
    return value


def _drop_damaged_scores(directory: pathlib.Path) -> None:
    """Delete scores that cannot be read, which Orbax would stop at; their checkpoints stay."""
    for path in directory.glob("*/metrics/metrics"):
        try:
            _score(json.loads(path.read_text()))
        except (ValueError, AttributeError):
            logger.warning("the score %s cannot be read and is dropped", path)
            path.unlink()


def _first_line(error: BaseException) -> Any:
    """Return the operating system's reason where there is one, or the first line of the message."""
    if code := re.search(r"os_error_code='(\d+)'", str(error)):  # as TensorStore says errno
        return os.strerror(int(code[1]))
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
