"""Every main as a process of its own, as a user starts it, on a run of a tiny network."""

import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
from tiny import FLAGS
from trainings import ROOT

pytestmark = pytest.mark.slow

DIGITS = "--config=experiments/digits.py"


def command(name: str, *arguments: str, cache, limit: int | None = None):
    """Run a main; `cache` keeps compiled programs, `limit` is the largest file in KiB."""
    words = [sys.executable, "-m", f"experiments.{name}", *arguments]
    if limit:
        words = ["bash", "-c", f"ulimit -f {limit}; exec {shlex.join(words)}"]
    environment = os.environ | {
        "XLA_FLAGS": "",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
    }
    return subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache):
    root = tmp_path_factory.mktemp("runs") / "run"
    done = command(
        "train",
        DIGITS,
        *FLAGS,
        "--config.train.num_steps=2",
        f"--workdir={relative(root)}",
        cache=cache,
    )
    assert done.returncode == 0, done.stderr
    assert "done: 2 steps" in done.stdout
    check_absolute(done.stdout)
    return root


def succeed(*arguments, cache):
    done = command(*arguments, cache=cache)
    assert done.returncode == 0, done.stderr
    # the mains log in plain lines, and no library warns
    assert all(line.startswith("INFO: ") for line in done.stderr.splitlines()), done.stderr
    check_absolute(done.stdout)
    return done.stdout


def relative(path) -> str:
    """The path as a user may give it, from the directory of the process."""
    return os.path.relpath(path, ROOT)


def check_absolute(said: str) -> None:
    """Check that what a main prints has paths, and that all of them are absolute."""
    words = [word.strip(".,;()") for word in said.split()]
    paths = [word for word in words if "/" in word and (ROOT / word).exists()]
    assert paths and all(path.startswith("/") for path in paths), said


def test_sample(run, cache, tmp_path):
    said = succeed(
        "sample",
        f"--workdir={relative(run)}",
        "--n=3",
        f"--out={relative(tmp_path / 'images')}",
        cache=cache,
    )
    assert str(ROOT / relative(tmp_path / "images.png")) in said
    assert np.load(tmp_path / "images.npz")["images"].shape == (3, 8, 8, 1)


def test_edit(run, cache, tmp_path):
    images = np.zeros((2, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "in.npz", images=images)
    flags = (f"--images={tmp_path / 'in.npz'}", f"--out={relative(tmp_path / 'out')}", "--depth=2")
    succeed(
        "edit", f"--workdir={relative(run)}", "--edit=interpolate", "--n=1", *flags, cache=cache
    )
    assert np.load(tmp_path / "out.npz")["images"].shape[-3:] == (8, 8, 1)


def test_evaluate(run, cache):
    flags = ("--n=100", "--seeds=1", "--num_steps=2", "--bound_images=4", "--bound_terms=2")
    assert "fd100_train" in succeed("evaluate", f"--workdir={relative(run)}", *flags, cache=cache)
    assert json.loads((run / "evaluate.json").read_text())["checkpoint"] == 2


def test_figures(run, cache, tmp_path):
    succeed(
        "figures", DIGITS, f"--workdir={relative(run)}", f"--out={relative(tmp_path)}", cache=cache
    )
    assert {path.stem for path in tmp_path.glob("*.png")} >= {"schedules", "forward", "reverse"}


def test_train_classifier(cache, tmp_path):
    tiny = [flag for flag in FLAGS if "num_samples" not in flag]
    said = succeed(
        "train_classifier",
        "--config=experiments/digits_classifier.py",
        *tiny,
        "--config.train.num_steps=2",
        f"--workdir={relative(tmp_path / 'judge')}",
        cache=cache,
    )
    assert (tmp_path / "judge" / "checkpoints" / "2").is_dir(), said


def test_a_mistake(cache):
    """One process; the others are in test_bad_input.py."""
    wrong = command("train", DIGITS, "--config.train.num_step=3", cache=cache)
    assert wrong.returncode == 2 and wrong.stdout == ""
    assert len(wrong.stderr.splitlines()) == 1 and wrong.stderr.startswith("error: ")


def test_a_full_disk_loses_no_checkpoint(tmp_path, cache):
    """A limit on the size of files replaces the full disk: the write of a checkpoint fails."""
    train = ["train", DIGITS, *FLAGS, f"--workdir={tmp_path / 'run'}"]
    first = command(*train, "--config.train.num_steps=2", cache=cache)
    assert first.returncode == 0, first.stderr
    full = command(*train, "--config.train.num_steps=4", limit=64, cache=cache)
    assert full.returncode == 2, full.stderr
    assert "resumed at step 2" in full.stdout
    errors = full.stderr.splitlines()
    assert len(errors) == 1 and errors[0].startswith("error: "), full.stderr
    assert "could not be saved" in errors[0] and "checkpoints/2; make room" in errors[0]
    again = command(*train, "--config.train.num_steps=4", cache=cache)
    assert again.returncode == 0, again.stderr
    assert "resumed at step 2" in again.stdout and "done: 4 steps" in again.stdout
