"""What the scripts of all contenders have in common: flags, the loss curve, the files they write.

    python -m benchmarks.peers.MODULE train --folder=DIR --pictures=FILE.npz --network=JSON ...
    python -m benchmarks.peers.MODULE sample --folder=DIR --out=FILE.npz --n=100 --sampler=NAME ...

`benchmarks/fashion_peers.py` starts these scripts, each in the environment of its library. So this
file needs only Python and NumPy. A training writes into its folder:

  curve.jsonl   a row every few seconds: seconds, step, loss (mean since the last row), images/s
  trained.json  what was trained and how fast; it is written last, so it marks a finished training
"""

import argparse
import importlib.metadata
import json
import math
import os
import pathlib
import time
from typing import Any

STARTED = time.time()  # this module is imported first
EVERY = 5.0  # seconds between rows of the curve
CORES = len(os.sched_getaffinity(0))  # that this process may use


def parse() -> argparse.Namespace:
    """Parse the command line of a contender's script."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("train", "sample"))
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="of the training")
    parser.add_argument("--pictures", help="uint8 [N, H, W, C] in an .npz file, or PNG files")
    parser.add_argument("--network", type=network, help="options of the network, JSON")
    parser.add_argument("--seconds", type=float, default=math.inf, help="train for this time")
    parser.add_argument("--steps", type=int, default=0, help="train for these steps; 0: --seconds")
    parser.add_argument("--seed", type=int, default=0, help="of the training or of the samples")
    parser.add_argument("--sampler", help="one of the script's samplers")
    parser.add_argument("--evaluations", type=int, default=50, help="of the network, per sample")
    parser.add_argument("--n", type=int, help="number of samples")
    parser.add_argument("--out", type=pathlib.Path, help="samples, uint8 [n, H, W, C], .npz")
    return parser.parse_args()


def network(text: str) -> dict[str, Any]:
    """Return the options of a network from JSON; lists become tuples, which the libraries want."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(text).items()}


class Curve:
    """The clock and the loss curve of a training. Create it just before the first step.

    Args:
      args: the command line.
      batch: number of images in a step.
    """

    def __init__(self, args: argparse.Namespace, batch: int):
        self._seconds, self._steps = args.seconds, args.steps or math.inf
        self._folder, self._batch = args.folder, batch
        self._preparation = time.time() - STARTED
        self._file = (args.folder / "curve.jsonl").open("w")
        self._start = self._last = time.perf_counter()
        self._losses: list[float] = []
        self.step = 0

    def add(self, loss: float) -> bool:
        """Add the loss of the next step; return whether the training must end."""
        now = time.perf_counter()
        self.step += 1
        self._losses.append(loss)
        end = now - self._start >= self._seconds or self.step >= self._steps
        if end or now - self._last >= EVERY:
            row = {
                "seconds": now - self._start,
                "step": self.step,
                "loss": sum(self._losses) / len(self._losses),
                "images_per_second": len(self._losses) * self._batch / (now - self._last),
            }
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
            report(row)
            self._losses, self._last = [], now
        if end:
            self._ended = now - self._start
            self._file.close()
        return end

    def finish(self, parameters: int, packages: tuple[str, ...]) -> None:
        """Write trained.json; call it after the weights are saved."""
        write_trained(
            self._folder,
            parameters=parameters,
            batch=self._batch,
            steps=self.step,
            seconds=self._ended,
            preparation=self._preparation,
            packages=packages,
        )


def report(row: dict) -> None:
    """Print a row of the curve."""
    print(
        f"{row['seconds']:.0f} s, step {row['step']}, loss {row['loss']:.4f}, "
        f"{row['images_per_second']:.0f} images/s",
        flush=True,
    )


def write_trained(
    folder: pathlib.Path,
    *,
    parameters: int,
    batch: int,
    steps: int,
    seconds: float,
    preparation: float,
    packages: tuple[str, ...],
) -> None:
    """Write trained.json, atomically.

    Args:
      folder: the folder of the training.
      parameters: number of parameters of the network.
      batch: number of images in a step.
      steps: number of steps that were taken.
      seconds: time of all steps.
      preparation: seconds from the start of the process to the first step.
      packages: the packages to record the versions of.
    """
    trained = {
        "parameters": parameters,
        "batch": batch,
        "steps": steps,
        "seconds": seconds,
        "preparation": preparation,
        "images_per_second": steps * batch / seconds,
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
    part = folder / "trained.part"
    part.write_text(json.dumps(trained, indent=1))
    os.replace(part, folder / "trained.json")


def nearest(sizes: dict[int, int], wanted: int) -> int:
    """Return the width whose number of parameters is nearest to `wanted`, as a ratio.

    Args:
      sizes: width -> number of parameters.
      wanted: number of parameters.
    """
    return min(sizes, key=lambda width: abs(math.log(sizes[width] / wanted)))
