"""Every mistake of a user is one line on the real command line: `error: ...`, exit code 2."""

import concurrent.futures
import os
import pathlib
import shlex
import subprocess
import sys

import numpy as np
from PIL import Image

from ddpm_jax import config as config_lib
from ddpm_jax.runs import workdir

ROOT = pathlib.Path(__file__).parents[1]
DIGITS = "--config=experiments/digits.py"
FOLDER = "--config=experiments/folder.py"
TINY = {
    "process.num_timesteps": 4,
    "process.schedule": "cosine",
    "model.channels": 8,
    "model.channel_multipliers": "(1,)",
    "model.attention_resolutions": "()",
    "model.num_res_blocks": 1,
    "train.batch_size": 16,
    "train.num_samples": 2,
    "optim.warmup_steps": 1,
    "optim.decay": "constant",
    "eval.every": 0,
}
TINY = [f"--config.{key}={value}" for key, value in TINY.items()]


def command(*arguments: str, limit: int | None = None, cache: pathlib.Path | None = None):
    """Run a main; `limit` is the largest file that it may write, in KiB."""
    words = [sys.executable, "-m", *arguments]
    if limit:
        words = ["bash", "-c", f"ulimit -f {limit}; exec {shlex.join(words)}"]
    environment = os.environ | {
        "XLA_FLAGS": "",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    if cache:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    return subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def mistakes(tmp: pathlib.Path) -> dict[str, tuple[list[str], str]]:
    """Name -> (arguments, what the error must say)."""
    (tmp / "file").touch()
    (tmp / "empty").mkdir()
    (tmp / "mixed" / "cats").mkdir(parents=True)
    (tmp / "truncated").mkdir()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    for path in ("mixed/cats/a.png", "mixed/b.png", "truncated/whole.png", "truncated/cut.png"):
        picture.save(tmp / path)
    whole = (tmp / "truncated" / "cut.png").read_bytes()
    (tmp / "truncated" / "cut.png").write_bytes(whole[: len(whole) // 2])
    other = config_lib.from_dict({"data": {"name": "digits"}, "train": {"seed": 5}})
    workdir.open_for_training(tmp / "other", other)

    def train(*arguments: str) -> list[str]:
        return ["experiments.train", *arguments]

    def folder(name: str) -> list[str]:
        data_dir = f"--config.data.data_dir={tmp / 'data'}"
        return train(FOLDER, f"--config.data.path={tmp / name}", data_dir)

    return {
        "no config": (train(), "--config"),
        "config that is not there": (train("--config=experiments/digit.py"), "digit.py"),
        "unknown key": (train(DIGITS, "--config.train.num_step=3"), "num_step"),
        "wrong type": (train(DIGITS, "--config.train.num_steps=ten"), "num_steps"),
        "stray word": (train(DIGITS, "train.num_steps=3"), "'train.num_steps=3'"),
        "unknown schedule": (
            train(DIGITS, "--config.process.schedule=lineer"),
            "unknown process.schedule 'lineer'; did you mean 'linear'",
        ),
        "T below 1": (train(DIGITS, "--config.process.num_timesteps=0"), "at least 1, found 0"),
        "beta outside (0, 1)": (train(DIGITS, "--config.process.beta_T=1.5"), "beta_T"),
        "eps without terminal SNR": (
            train(DIGITS, "--config.process.zero_terminal_snr=True"),
            "kind 'eps' cannot be used with zero_terminal_snr",
        ),
        "directory that cannot be": (
            train(DIGITS, f"--workdir={tmp / 'file' / 'run'}"),
            "cannot be written",
        ),
        "directory of another run": (
            train(DIGITS, f"--workdir={tmp / 'other'}"),
            "train.seed: 5 there, 0 now",
        ),
        "empty folder": (folder("empty"), str(tmp / "empty")),
        "mixed folder": (folder("mixed"), str(tmp / "mixed")),
        "truncated image": (folder("truncated"), str(tmp / "truncated" / "cut.png")),
        "no such run": (
            ["experiments.sample", f"--workdir={tmp / 'nothing'}"],
            "is not the work directory of a run",
        ),
    }


def test_a_mistake_is_one_line_and_exit_2(tmp_path):
    cases = mistakes(tmp_path)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = pool.map(
            lambda case: command(
                *case[0], *([] if "--workdir" in str(case[0]) else [f"--workdir={tmp_path}/new"])
            ),
            cases.values(),
        )
    wrong = []
    for (name, (_, words)), result in zip(cases.items(), results, strict=True):
        lines = [line for line in result.stderr.splitlines() if not line.startswith("INFO: ")]
        good = result.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: ")
        if not good or words not in lines[0]:
            wrong.append((name, words, result.returncode, result.stderr))
    assert not wrong, "\n".join(map(str, wrong))
    assert not (tmp_path / "new").exists()  # nothing is begun


def test_a_full_disk_loses_no_checkpoint(tmp_path):
    """A limit on the size of files stands for the full disk: the write of a checkpoint fails."""
    train = ["experiments.train", DIGITS, *TINY, f"--workdir={tmp_path / 'run'}"]
    cache = tmp_path / "cache"
    first = command(*train, "--config.train.num_steps=2", cache=cache)
    assert first.returncode == 0, first.stderr
    full = command(*train, "--config.train.num_steps=4", limit=64, cache=cache)
    assert full.returncode == 2, full.stderr
    assert "resumed at step 2" in full.stdout
    errors = full.stderr.splitlines()
    assert len(errors) == 1 and errors[0].startswith("error: "), full.stderr
    assert "could not be saved" in errors[0] and "last good one is of step 2" in errors[0]
    again = command(*train, "--config.train.num_steps=4", cache=cache)
    assert again.returncode == 0, again.stderr
    assert "resumed at step 2" in again.stdout and "done: 4 steps" in again.stdout
