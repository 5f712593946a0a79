"""Every mistake of a user is one line: `error: ...`, exit code 2. The mains run in this process."""

import pathlib

import numpy as np
import pytest
from mains import run
from PIL import Image
from tiny import FLAGS

from ddpm_jax import config as config_lib
from ddpm_jax.runs import workdir

pytestmark = pytest.mark.quick_to_compile

DIGITS = "--config=experiments/digits.py"
FOLDER = "--config=experiments/folder.py"


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
        return ["train", *arguments]

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
            train(DIGITS, *FLAGS, f"--workdir={tmp / 'other'}"),
            "train.seed: 5 there, 0 now",
        ),
        "empty folder": (folder("empty"), str(tmp / "empty")),
        "mixed folder": (folder("mixed"), str(tmp / "mixed")),
        "run among the images": (
            [*folder("."), f"--workdir={tmp / 'runs' / 'first'}"],
            f"--workdir={tmp / 'runs' / 'first'} is inside of data.path {tmp}",
        ),
        "truncated image": (folder("truncated"), str(tmp / "truncated" / "cut.png")),
        "no such run": (
            ["sample", f"--workdir={tmp / 'nothing'}"],
            "is not the work directory of a run",
        ),
    }


def test_a_mistake_is_one_line_and_exit_2(tmp_path):
    wrong = []
    for name, (arguments, words) in mistakes(tmp_path).items():
        if "--workdir" not in str(arguments):
            arguments = [*arguments, f"--workdir={tmp_path}/new"]
        result = run(*arguments)
        lines = [line for line in result.stderr.splitlines() if not line.startswith("INFO: ")]
        good = result.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: ")
        if not good or words not in lines[0]:
            wrong.append((name, words, result.returncode, result.stderr))
    assert not wrong, "\n".join(map(str, wrong))
    assert not (tmp_path / "runs").exists() and not (tmp_path / "new").exists()  # nothing is begun
