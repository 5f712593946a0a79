"""Work directories from the command line: one that is in use, and one that cannot be written.

One run trains all along; the second commands end before they compile anything.
"""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from test_mains_runs import DIGITS, command
from tiny import FLAGS as TINY
from trainings import ROOT

from ddpm_jax.runs import metrics

pytestmark = pytest.mark.slow

FLAGS = [DIGITS, *TINY, "--config.train.num_steps=1000000", "--config.train.log_every=10"]
LIMIT = 300  # seconds for a step to come
# Real read-only mounts, which root cannot write either, in a namespace that ends with the command.
READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A training that goes on, and its work directory."""
    root = tmp_path_factory.mktemp("runs") / "run"
    environment = os.environ | {
        "XLA_FLAGS": "",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    words = [sys.executable, "-m", "experiments.train", *FLAGS, f"--workdir={root}"]
    with subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        yield process, root
        process.kill()


def wait_for_step(process, root, step):
    """Return the last step that the log holds once it is beyond `step`."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        rows = metrics.read(root / "metrics.jsonl") if (root / "metrics.jsonl").exists() else []
        if rows and rows[-1]["step"] > step:
            return rows[-1]["step"]
        time.sleep(0.05)
    raise AssertionError(f"no step after {step}")


def read_only(root, name, *flags):
    """Run a main where `root` is mounted read-only."""
    wrapped = ["unshare", "--mount", "--map-root-user", "sh", "-c", READ_ONLY, "sh", str(root)]
    try:
        probe = subprocess.run([*wrapped, "true"], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no unshare on this machine, so no read-only mounts")
    if probe.returncode:
        pytest.skip(f"this machine does not allow mounts: {probe.stderr.strip()}")
    return subprocess.run(
        [*wrapped, sys.executable, "-m", f"experiments.{name}", *flags],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


def test_a_second_run_names_the_first_which_goes_on(first):
    process, root = first
    wait_for_step(process, root, 0)
    second = command("train", *FLAGS, f"--workdir={root}", cache=root.parent / "cache")
    assert second.returncode == 2
    assert second.stderr == (
        f"error: --workdir={root} is in use by another training (process {process.pid} on "
        f"{socket.gethostname()}); wait for its end or stop it, or choose another directory\n"
    )
    step = wait_for_step(process, root, metrics.read(root / "metrics.jsonl")[-1]["step"])
    wait_for_step(process, root, step)


def test_a_read_only_directory_is_one_line(first, tmp_path):
    for place in (tmp_path, tmp_path / "new"):
        refused = read_only(tmp_path, "train", *FLAGS, f"--workdir={place}")
        assert refused.returncode == 2
        assert refused.stderr == (
            f"error: --workdir={place} cannot be written (Read-only file system); choose another "
            "directory\n"
        )
    assert not list(tmp_path.iterdir())


def test_a_run_that_has_become_read_only_can_be_sampled_but_not_resumed(first, tmp_path):
    process, root = first
    wait_for_step(process, root, 0)
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT) == 128 + signal.SIGTERM
    refused = read_only(root, "train", *FLAGS, f"--workdir={root}")
    assert refused.returncode == 2
    assert "cannot be written (Read-only file system)" in refused.stderr
    out = f"--out={tmp_path / 'samples'}"
    drawn = read_only(root, "sample", f"--workdir={root}", "--n=2", out)
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "samples.png").exists() and (tmp_path / "samples.npz").exists()
