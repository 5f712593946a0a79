"""The whole way in one test: train, stop by a signal, resume, load, sample. All by the mains.

What holds each part of it is in the other modules; runs as real processes are in test_resume.py.
"""

import functools
import json
import os
import re
import signal
import threading

import jax
import numpy as np
import pytest
from mains import ROOT, run
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


def _record(compiled: list[str], event: str, seconds: float, **rest: str | int) -> None:
    if event.endswith("backend_compile_duration"):
        compiled.append(f"{event} {rest}")


def test_a_run_is_trained_stopped_resumed_loaded_and_sampled(tmp_path):
    root, done = tmp_path / "run", threading.Event()
    given = os.path.relpath(root, ROOT)  # the mains run there
    train = ["train", "--config=experiments/digits.py", *FLAGS, f"--workdir={given}"]
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

    # Once more: the run is done, and says so without compiling. The config keeps the higher number.
    compiled: list[str] = []
    record = functools.partial(_record, compiled)
    jax.monitoring.register_event_duration_secs_listener(record)
    again, fewer = (run(*train, f"--config.train.num_steps={step + n}") for n in (2, 1))
    jax.monitoring.unregister_event_duration_listener(record)
    assert (again.returncode, fewer.returncode) == (0, 0), (again, fewer)
    assert not compiled and "compiled" not in again.stdout + fewer.stdout
    assert again.stdout.splitlines()[-4:] == resumed.stdout.splitlines()[-4:]
    assert f"nothing to train: the run is at step {step + 2}, beyond" in fewer.stdout
    assert json.loads((root / "config.json").read_text())["train"]["num_steps"] == step + 2
    for said in (stopped, resumed, again, fewer):
        assert f"work directory: {ROOT / given}\n" in said.stdout
        assert given not in said.stdout.replace(str(ROOT / given), "")

    drawn = run("sample", f"--workdir={given}", "--n=3", f"--out={tmp_path / 'out'}")
    assert drawn.returncode == 0, drawn
    images = np.load(tmp_path / "out.npz")["images"]
    sample, params = ddpm_jax.load(root)
    found = to_uint8(np.asarray(sample(params, jax.random.key(0), 3)))
    assert images.shape == (3, 8, 8, 1) and images.std() > 20
    assert np.abs(images.astype(int) - found).max() <= 1
