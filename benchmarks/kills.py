"""Does `kill -9` lose or change anything?

    python -m benchmarks.kills --kills=20 --seed=0

The script trains a tiny network on the digits. The run saves a checkpoint every fifth step. The
script kills the run at a random moment, starts it again, and so on. Every other kill waits until a
save is in progress. Each start must resume from a whole checkpoint, never from an earlier one than
the previous start found. At the end, the state and the log must equal those of an undisturbed run
bit for bit.
"""

import json
import pathlib
import random
import re
import subprocess
import tempfile
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import flags

from benchmarks.endurance import tiny_run
from ddpm_jax.runs import metrics
from experiments import command

KILLS = flags.DEFINE_integer("kills", 20, "Number of kills.")
SEED = flags.DEFINE_integer("seed", 0, "Random seed of the moments of the kills.")
STEPS_A_KILL = 30
LIMIT = 600  # seconds that one start may take


def main() -> int:
    rng = random.Random(SEED.value)
    steps = STEPS_A_KILL * (KILLS.value + 1)
    with tempfile.TemporaryDirectory() as root:
        whole, killed = pathlib.Path(root) / "whole", pathlib.Path(root) / "killed"
        changes = {
            "train__num_steps": steps,
            "train__checkpoint_every": 5,
            "train__log_every": 5,
            "eval__every": 0,
        }
        _finish(tiny_run(whole, **changes))
        in_save = 0
        for kill in range(KILLS.value):
            in_save += _kill(tiny_run(killed, **changes), killed, rng, during_save=kill % 2 == 1)
        output = _finish(tiny_run(killed, **changes))
        resumed = re.findall(r"resumed at step (\d+)", output)
        same_state = _state(whole / "checkpoints" / str(steps)) == _state(
            killed / "checkpoints" / str(steps)
        )
        same_log = _log(whole) == _log(killed)
        damaged = len(list(killed.glob("damaged/*")))
    print(f"{KILLS.value} kills, {in_save} of them with an unfinished checkpoint on the disk")
    print(f"last start resumed at step {resumed[0] if resumed else 'none'} of {steps}")
    print(f"checkpoints found damaged: {damaged}")
    print(f"final state equal bit for bit: {same_state}; log equal: {same_log}")
    return 0 if same_state and same_log and not damaged else 1


def _kill(words: list[str], workdir: pathlib.Path, rng: random.Random, during_save: bool) -> int:
    """Start a run and kill it at a random moment; return whether a checkpoint is unfinished."""
    checkpoints = workdir / "checkpoints"
    newest = _newest(checkpoints)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        deadline = time.monotonic() + LIMIT
        while _newest(checkpoints) <= newest:  # until it has made progress
            _check(process, deadline)
        moment = time.monotonic() + 0.3 * rng.random()
        while time.monotonic() < moment or (during_save and not _unfinished(checkpoints)):
            _check(process, deadline)
        process.kill()
        output = process.stdout.read().decode()
    if newest:
        resumed = int(re.search(r"resumed at step (\d+)", output)[1])
        if resumed < newest:
            raise SystemExit(f"resumed at step {resumed}, but step {newest} was whole: {output}")
    return bool(_unfinished(checkpoints))


def _check(process: subprocess.Popen, deadline: float) -> None:
    if process.poll() is not None or time.monotonic() > deadline:
        process.kill()
        raise SystemExit(f"the run ended or hung before the kill: {process.stdout.read().decode()}")
    time.sleep(0.003)


def _newest(checkpoints: pathlib.Path) -> int:
    """Return the newest whole step; Orbax renames a finished checkpoint to its step."""
    return max((int(path.name) for path in checkpoints.glob("*") if path.name.isdigit()), default=0)


def _unfinished(checkpoints: pathlib.Path) -> list[pathlib.Path]:
    return list(checkpoints.glob("*.orbax-checkpoint-tmp*"))


def _finish(words: list[str]) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def _state(path: pathlib.Path) -> dict[str, bytes]:
    """Read every array of a checkpoint, only with Orbax."""
    trees = {item: ocp.StandardCheckpointer().restore(path / item) for item in ("train", "ema")}
    return {
        jax.tree_util.keystr(name): np.asarray(leaf).tobytes()
        for name, leaf in jax.tree_util.tree_leaves_with_path(trees)
    }


def _log(workdir: pathlib.Path) -> list[str]:
    """Read the log without the fields that depend on the clock."""
    clock = ("time", "images_per_second")
    rows = metrics.read(workdir / "metrics.jsonl")
    return [json.dumps({k: v for k, v in row.items() if k not in clock}) for row in rows]


if __name__ == "__main__":
    command.run(main)
