"""A run that is killed and started again ends bit for bit like one that never stopped.

Real processes, real signals: `kill -9` at a random step, on one device and on four; SIGTERM and
Ctrl-C on one.
"""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from ddpm_jax.training import metrics

ROOT = pathlib.Path(__file__).parent.parent
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


def start(workdir: pathlib.Path, cache: pathlib.Path, num_devices: int) -> subprocess.Popen:
    """Start a training, as a user would from a shell."""
    flags = [f"--config.{key}={value}" for key, value in OVERRIDES.items()]
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # what is tested runs in a second, once compiled
        "PYTHONUNBUFFERED": "1",
    }
    command = [sys.executable, "-m", "experiments.train", "--config=experiments/digits.py"]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *flags],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    """Wait for the end of a training that must succeed; return its output."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def wait_for_step(process: subprocess.Popen, step: int) -> str:
    """Read the training's output until it has passed a step; return what it said."""
    said = []
    for line in process.stdout:
        said.append(line)
        match = re.match(r"step (\d+)/", line)
        if match and int(match[1]) >= step:
            return "".join(said)
    raise AssertionError("the training ended early:\n" + "".join(said))


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
    finish(start(whole, cache, num_devices))
    expected, expected_rows = final_state(whole), logged(whole)
    assert len(expected) > 50 and all(np.isfinite(a).all() for a in expected.values())

    # kill -9 at a random moment after some checkpoint
    step = 20 * random.randint(1, 6)
    killed = tmp_path / "killed"
    process = start(killed, cache, num_devices)
    while not (killed / "checkpoints" / str(step)).exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    time.sleep(random.random() * 0.1)
    process.kill()
    process.stdout.close()
    process.wait(timeout=60)
    output = finish(start(killed, cache, num_devices))
    resumed = re.search(r"resumed at step (\d+)", output)
    assert resumed and int(resumed[1]) > 0, (step, output)

    # SIGTERM and Ctrl-C save at once, say so, and exit as schedulers expect
    stopped = tmp_path / "stopped"
    for number, at in ((signal.SIGTERM, 10), (signal.SIGINT, 30)) if num_devices == 1 else ():
        process = start(stopped, cache, num_devices)
        said = wait_for_step(process, at)
        process.send_signal(number)
        said += process.communicate(timeout=120)[0]
        assert process.returncode == 128 + number, said
        saved = re.search(rf"stopped by signal {number} at step (\d+)", said)
        assert saved and (stopped / "checkpoints" / saved[1]).is_dir(), said
    if num_devices == 1:
        assert "resumed at step " + saved[1] in finish(start(stopped, cache, num_devices))

    for workdir in (killed, stopped) if num_devices == 1 else (killed,):
        state = final_state(workdir)
        assert state.keys() == expected.keys()
        differing = [k for k in expected if not np.array_equal(state[k], expected[k])]
        assert not differing, (workdir.name, step, differing)
    # Killed between checkpoints, the log too reads as if nothing had happened.
    assert logged(killed) == expected_rows
    assert json.loads((killed / "config.json").read_text())["train"]["num_steps"] == STEPS
