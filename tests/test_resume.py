"""A run that is killed and started again ends bit for bit like one that never stopped.

Real processes, real signals: `kill -9` at a random step, on one device and on four; SIGTERM and
Ctrl-C on one.
"""

import json
import pathlib
import random
import re
import signal
import subprocess
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from trainings import start, wait_for_step

from ddpm_jax.runs import metrics

pytestmark = pytest.mark.slow

STEPS = 160
OVERRIDES = {
    "train.num_steps": STEPS,
    "train.batch_size": 16,
    "train.checkpoint_every": 20,
    "train.log_every": 5,
    "train.num_samples": 4,
    "eval.every": 80,
    "process.schedule": "cosine",
    "process.num_timesteps": 10,
    "model.channels": 8,
    "model.channel_multipliers": "(1,)",  # one level: half the time to compile
    "model.attention_resolutions": "()",
    "model.num_res_blocks": 1,
    "model.dropout": 0.1,
    "optim.warmup_steps": 5,
}


def finish(process: subprocess.Popen) -> str:
    """Wait for the end of a training that must succeed; return its output."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def final_state(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Read every array of the last checkpoint, without the library's help."""
    arrays = {}
    for item in ("train", "ema"):
        path = workdir / "checkpoints" / str(STEPS) / item
        tree = ocp.StandardCheckpointer().restore(path)
        for name, leaf in jax.tree_util.tree_leaves_with_path(tree):
            arrays[item + jax.tree_util.keystr(name)] = np.asarray(leaf)
    return arrays


def logged(workdir: pathlib.Path) -> list[dict[str, float]]:
    """Read the metrics without what depends on the clock."""
    rows = metrics.read(workdir / "metrics.jsonl")
    return [{k: v for k, v in r.items() if k not in ("time", "images_per_second")} for r in rows]


@pytest.mark.parametrize("num_devices", [1, 4])
@pytest.mark.filterwarnings("ignore:Sharding info not provided")  # we restore as plain arrays
def test_interrupted_runs_end_bit_for_bit_like_the_uninterrupted_one(tmp_path, num_devices):
    cache = tmp_path / "cache"
    whole = tmp_path / "whole"
    finish(start(whole, cache, num_devices, OVERRIDES))
    expected, expected_rows = final_state(whole), logged(whole)
    assert len(expected) > 50 and all(np.isfinite(a).all() for a in expected.values())

    # kill -9 at a random moment after some checkpoint
    step = 20 * random.randint(1, 6)
    killed = tmp_path / "killed"
    process = start(killed, cache, num_devices, OVERRIDES)
    while not (killed / "checkpoints" / str(step)).exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    time.sleep(random.random() * 0.1)
    process.kill()
    process.stdout.close()
    process.wait(timeout=60)
    output = finish(start(killed, cache, num_devices, OVERRIDES))
    resumed = re.search(r"resumed at step (\d+)", output)
    assert resumed and int(resumed[1]) > 0, (step, output)

    # SIGTERM and Ctrl-C save at once, say so, and exit as schedulers expect
    stopped = tmp_path / "stopped"
    for number, at in ((signal.SIGTERM, 10), (signal.SIGINT, 30)) if num_devices == 1 else ():
        process = start(stopped, cache, num_devices, OVERRIDES)
        said = wait_for_step(process, at)
        process.send_signal(number)
        said += process.communicate(timeout=120)[0]
        assert process.returncode == 128 + number, said
        saved = re.search(rf"stopped by signal {number} at step (\d+)", said)
        assert saved and (stopped / "checkpoints" / saved[1]).is_dir(), said
    if num_devices == 1:
        assert "resumed at step " + saved[1] in finish(
            start(stopped, cache, num_devices, OVERRIDES)
        )

    for workdir in (killed, stopped) if num_devices == 1 else (killed,):
        state = final_state(workdir)
        assert state.keys() == expected.keys()
        differing = [k for k in expected if not np.array_equal(state[k], expected[k])]
        assert not differing, (workdir.name, step, differing)
    # Killed between checkpoints, the log too reads as if nothing had happened.
    assert logged(killed) == expected_rows
    assert json.loads((killed / "config.json").read_text())["train"]["num_steps"] == STEPS
