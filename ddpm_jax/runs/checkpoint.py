"""Checkpoints in `<directory>/<step>`, written by Orbax, asynchronously and atomically.

A checkpoint has these items:

    ema         the averaged weights, which sampling needs
    train       the rest of the state
    checksums   a CRC-32 of every leaf of `ema` and `train`
    metrics     a score of the samples, if they were evaluated; the best checkpoint can be kept

If a checkpoint is damaged, the newest undamaged one is restored, and the log names the damaged one.
When training resumes, newer damaged checkpoints are moved to a directory `damaged`.

Weights with a NaN or an infinity are never saved. Older versions could save them: training resumes
as if such a checkpoint were damaged, and for sampling it is refused.
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
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from ddpm_jax.errors import UserError
from ddpm_jax.runs.checksums import check, checksums, nonfinite
from ddpm_jax.runs.state import TrainState
from ddpm_jax.types import Params

logger = logging.getLogger(__name__)

Restored = TypeVar("Restored")


class Checkpoints:
    """The checkpoints of a run in training.

    A checkpoint is kept if any of the three `keep_` rules keeps it.

    Args:
      directory: `<workdir>/checkpoints`; created if missing.
      keep_last: keeps this number of newest checkpoints, at least 1.
      keep_every: keeps the checkpoints at multiples of this step; 0 keeps none.
      keep_best: whether to keep the checkpoint with the lowest score.

    Raises:
      UserError: keep_last is below 1.
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
                best_fn=_score if keep_best else None,  # needed for Orbax to write metrics
                best_mode="min",
            ),
        )

    def save(
        self, state: TrainState, *, score: Mapping[str, float] | None = None, wait: bool = False
    ) -> None:
        """Save the state as `<directory>/<state.step>`, in the background unless `wait`.

        Args:
          state: the state to save.
          score: {name: value} with one entry, lower is better; None if it is unknown. A value that
            is not finite counts as None.
          wait: whether to return only after the checkpoint is written.

        Raises:
          UserError: the weights are not finite, or this save or an earlier one failed (for example,
            the disk is full). The checkpoints before it stay.
        """
        step = int(state.step)
        if bad := nonfinite({"params": state.params, "ema": state.ema_params}):
            raise UserError(
                f"the weights of step {step} are not finite and are not saved: {bad}; "
                f"{self.last_good()}"
            )
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
            raise UserError(
                f"the checkpoint of step {step} could not be saved in {self.directory} "
                f"({_first_line(error)}); {self._last_good(step)}; "
                "make room on the disk and start the same command again"
            ) from error

    def last_good(self) -> str:
        """Return where the newest whole checkpoint is, in words; this waits for a running save."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            logger.warning("a checkpoint could not be saved (%s)", _first_line(error))
        return self._last_good()

    def _last_good(self, other_than: int | None = None) -> str:
        steps = [step for step in self._manager.all_steps(read=True) if step != other_than]
        if not steps:
            return f"there is no good checkpoint in {self.directory} yet"
        return f"the last good checkpoint is {self.directory / str(max(steps))}"

    def restore_latest(self, abstract_state: TrainState) -> TrainState | None:
        """Return the newest undamaged state, or None if there is no checkpoint yet.

        Newer, damaged checkpoints are moved to the directory `damaged`.

        Args:
          abstract_state: `ShapeDtypeStruct`s with the shardings of the restored arrays.

        Raises:
          UserError: there are checkpoints, but none can be read.
        """
        abstract = {"train": _train_item(abstract_state), "ema": abstract_state.ema_params}
        steps = self._manager.all_steps()
        if not steps:
            return None

        def restore(step: int) -> TrainState:
            items = _restore(self._manager, step, abstract)
            weights = {"params": items["train"]["params"], "ema": items["ema"]}
            if bad := nonfinite(weights):
                raise UserError(bad)
            return TrainState(ema_params=items["ema"], **items["train"])

        step, state = _newest_whole(self.directory, list(steps), restore)
        self._set_aside([s for s in steps if s > step])
        return state

    def best(self) -> tuple[int, dict[str, float]] | None:
        """Return the step with the lowest score and {name: score}; None if no step has a score."""
        step = self._manager.best_step()
        if step is None:
            return None
        score: Any = self._manager.metrics(step)
        return step, dict(score)

    def close(self) -> None:
        """Wait for a running save and end the manager's threads."""
        self._manager.close()

    def _set_aside(self, steps: list[int]) -> None:
        """Move damaged checkpoints away, so that new ones can be saved; nothing is deleted."""
        for step in steps:
            aside = self.directory.parent / "damaged"
            aside.mkdir(exist_ok=True)
            target = next(path for n in range(1000) if not (path := aside / f"{step}-{n}").exists())
            (self.directory / str(step)).rename(target)
            logger.warning("moved the damaged checkpoint of step %d to %s", step, target)
        if steps:
            self._manager.reload()


def _train_item(state: TrainState) -> dict[str, Any]:
    """Return the item `train`: the state without its averaged weights and without empty parts."""
    item = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
    return item | ({"time_state": state.time_state} if jax.tree.leaves(state.time_state) else {})


def restore_ema(directory: pathlib.Path, abstract_params: Params, step: int | None = None):
    """Return (step, averaged weights) of a checkpoint.

    Args:
      directory: `<workdir>/checkpoints`.
      abstract_params: `ShapeDtypeStruct`s of the weights.
      step: the step of the checkpoint; None is the newest undamaged checkpoint.

    Raises:
      UserError: there is no such checkpoint, it cannot be read, or its weights are not finite.
    """
    abstract = {"ema": abstract_params}
    if step is not None and (isinstance(step, bool) or not isinstance(step, int | np.integer)):
        raise UserError(
            f"step must be a whole number, or None for the newest checkpoint; found {step!r}"
        )
    if not directory.is_dir():
        raise UserError(f"there is no checkpoint in {directory}; train the run first")
    options = ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0, create=False)
    with ocp.CheckpointManager(directory, options=options) as manager:
        steps = manager.all_steps()
        if step is not None and step not in steps:
            raise UserError(
                f"there is no checkpoint of step {step} in {directory}; choose among the steps "
                f"{sorted(steps)}"
            )
        if not steps:
            raise UserError(f"there is no checkpoint in {directory}; train the run first")
        chosen = list(steps) if step is None else [step]
        found, params = _newest_whole(
            directory, chosen, lambda s: _restore(manager, s, abstract)["ema"]
        )
    before = sorted(s for s in steps if s < found)
    if bad := nonfinite(params):
        advice = f"choose an earlier step, of {before}" if before else "train the run again"
        raise UserError(f"the weights of {directory / str(found)} are not finite: {bad}; {advice}")
    return found, params


def _restore(manager: ocp.CheckpointManager, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
    """Return items of a checkpoint after checking every leaf.

    Checkpoints of old versions have no checksums; these are not checked.

    Args:
      manager: the manager of the directory.
      step: the step of the checkpoint.
      abstract: name of an item -> its tree of `ShapeDtypeStruct`s.

    Raises:
      UserError: a leaf does not have its checksum.
    """
    args: dict[str, Any] = {name: ocp.args.StandardRestore(item) for name, item in abstract.items()}
    if checked := (manager.directory / str(step) / "checksums").exists():
        args["checksums"] = ocp.args.JsonRestore()
    restored = manager.restore(step, args=ocp.args.Composite(**args))
    items = {name: restored[name] for name in abstract}
    if checked:
        check(items, restored["checksums"])
    else:
        logger.info("the checkpoint of step %d has no checksums (older version); not checked", step)
    return items


def _newest_whole(
    directory: pathlib.Path, steps: list[int], restore: Callable[[int], Restored]
) -> tuple[int, Restored]:
    """Restore the newest step that can be read; log the steps that cannot.

    Args:
      directory: the directory of the checkpoints, for the messages.
      steps: the steps to try.
      restore: restores one step, or raises an exception.

    Returns:
      (step, what `restore` returned).

    Raises:
      UserError: no step can be read.
    """
    for step in sorted(steps, reverse=True):
        try:
            return step, jax.block_until_ready(restore(step))
        except Exception as error:  # Orbax and TensorStore raise many types for damaged files
            logger.warning(
                "the checkpoint %s cannot be read (%s)", directory / str(step), _first_line(error)
            )
    raise UserError(
        f"none of the checkpoints {sorted(steps)} in {directory} can be read with this config and "
        "this version; the log lines above give the reasons; choose another --workdir to start a "
        "new run"
    )


def _score(metrics: Mapping[str, float]) -> float:
    """Return the only value of a score, by which checkpoints are compared."""
    (value,) = metrics.values()
    return value


def _drop_damaged_scores(directory: pathlib.Path) -> None:
    """Delete the scores that cannot be read, because Orbax fails on them. The checkpoints stay."""
    for path in directory.glob("*/metrics/metrics"):
        try:
            _score(json.loads(path.read_text()))
        except (ValueError, AttributeError):
            logger.warning("deleted the score %s, which cannot be read", path)
            path.unlink()


def _first_line(error: BaseException) -> Any:
    """Return the operating system's reason, if any; otherwise the first line of the message."""
    if code := re.search(r"os_error_code='(\d+)'", str(error)):  # errno, as TensorStore writes it
        return os.strerror(int(code[1]))
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
