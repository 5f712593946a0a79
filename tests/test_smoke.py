"""The whole way in one test: train, stop by a signal, resume, load, sample. All by the mains.

What holds each part of it is in the other modules; runs as real processes are in test_resume.py.
"""

import os
import re
import signal
import threading

import jax
import numpy as np
import pytest
from mains import run
from tiny import FLAGS

import ddpm_jax
from ddpm_jax.pixels import to_uint8
from ddpm_jax.runs import metrics

pytestmark = [
    pytest.mark.quick_to_compile,
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
]


def stop_after(root, step, done):
    """Send this process SIGTERM once the log of the run has a step."""
    while not done.wait(0.02):
        log = root / "metrics.jsonl"
        if log.exists() and any(row["step"] >= step for row in metrics.read(log)):
            os.kill(os.getpid(), signal.SIGTERM)
            return


def test_a_run_is_trained_stopped_resumed_loaded_and_sampled(tmp_path):
    root, done = tmp_path / "run", threading.Event()
    train = ["train", "--config=experiments/digits.py", *FLAGS, f"--workdir={root}"]
    train += ["--config.mesh.data=1", "--config.train.log_every=1"]
    watcher = threading.Thread(target=stop_after, args=(root, 4, done))
    watcher.start()
    try:
        stopped = run(*train, "--config.train.num_steps=1000000")
    finally:
        done.set()
        watcher.join()
    assert stopped.returncode == 128 + signal.SIGTERM, stopped
    step = int(re.search(r"stopped by signal 15 at step (\d+)", stopped.stdout)[1])
    assert step >= 4

    resumed = run(*train, f"--config.train.num_steps={step + 2}")
    assert resumed.returncode == 0, resumed
    assert f"resumed at step {step}" in resumed.stdout
    assert f"done: {step + 2} steps" in resumed.stdout
    rows = [row for row in metrics.read(root / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, step + 3))
    assert all(np.isfinite(row["loss"]) for row in rows)

    drawn = run("sample", f"--workdir={root}", "--n=3", f"--out={tmp_path / 'out'}")
    assert drawn.returncode == 0, drawn
    images = np.load(tmp_path / "out.npz")["images"]
    sample, params = ddpm_jax.load(root)
    found = to_uint8(np.asarray(sample(params, jax.random.key(0), 3)))
    assert images.shape == (3, 8, 8, 1) and images.std() > 20
    assert np.abs(images.astype(int) - found).max() <= 1
