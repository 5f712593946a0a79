"""Trainings of a tiny network as processes of their own, as a user would start them."""

import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]


def start(
    workdir: pathlib.Path,
    cache: pathlib.Path,
    num_devices: int,
    overrides: Mapping[str, Any],
    *flags: str,
) -> subprocess.Popen:
    """Start a training of the digits.

    Args:
      workdir: of the run.
      cache: of compiled programs.
      num_devices: that the CPU pretends to be.
      overrides: of the config.
      *flags: of the command.
    """
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # what is tested runs in a second, once compiled
        "PYTHONUNBUFFERED": "1",
    }
    settings = [f"--config.{key}={value}" for key, value in overrides.items()]
    command = [sys.executable, "-m", "experiments.train", "--config=experiments/digits.py"]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *settings, *flags],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_step(process: subprocess.Popen, step: int) -> str:
    """Read the training's output until it has passed a step; return what it said."""
    said = []
    for line in process.stdout:
        said.append(line)
        match = re.match(r"step (\d+)/", line)
        if match and int(match[1]) >= step:
            return "".join(said)
    raise AssertionError("the training ended early:\n" + "".join(said))
