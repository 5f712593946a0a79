"""Time from the command to the end of the first train step.

    python -m benchmarks.startup --config=experiments/digits.py

The script starts the real training and kills it after its first step: once cold (nothing compiled,
no data prepared), and once warm (with the files of the cold start). It repeats this --rounds times,
each time in new directories. It prints the median seconds of these phases:

    imports  Python, libraries, JAX's backend: until the run names its devices
    data     preparing or opening the data: until the run describes them, without compilation
    init     the initial weights: tracing, lowering, and compiling or reading from the cache
    step     the train step: tracing, lowering, and compiling or reading from the cache
    small    all other programs: lowering, and compiling or reading from the cache
    rest     the first step, the work directory, threads

--images=512 makes 512 random 32x32 images and trains on them. Other flags go to the training:

    python -m benchmarks.startup --config=experiments/cifar10.py --images=512 \\
        --config.train.batch_size=8
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image

PHASES = ("imports", "data", "init", "step", "small", "rest")
FUNCTIONS = {
    "train_step": "step",
    "<lambda>": "init",
}  # JAX's names of the functions that the training jits

# experiments.train, with a line for everything that JAX traces, lowers or compiles
CHILD = """
import json, runpy, sys
import jax

def report(event, seconds, fun_name="", **_):
    if event.startswith("/jax/core/compile/"):
        print("compile", json.dumps([event.rsplit("/")[-1], fun_name, seconds]), flush=True)

jax.monitoring.register_event_duration_secs_listener(report)
runpy.run_module("experiments.train", run_name="__main__", alter_sys=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="Config file of the training.")
    parser.add_argument(
        "--images",
        type=int,
        default=0,
        help="Number of random 32x32 images to train on. Default: the config's own data.",
    )
    parser.add_argument(
        "--rounds", type=int, default=2, help="Number of cold and warm starts. Default: 2."
    )
    options, extra = parser.parse_known_args()
    starts = {"cold": [], "warm": []}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as root:
            directory = pathlib.Path(root)
            words = [f"--config={options.config}", f"--config.data.data_dir={directory / 'data'}"]
            if options.images:
                words += _random_images(directory / "images", options.images)
            for name, found in starts.items():
                found.append(_start(directory, [*words, *extra, f"--workdir={directory / name}"]))
    print("      " + "".join(f"{phase:>9}" for phase in (*PHASES, "total")))
    for name, found in starts.items():
        medians = [statistics.median(start[phase] for start in found) for phase in PHASES]
        total = statistics.median(sum(start.values()) for start in found)
        print(f"{name:6}" + "".join(f"{seconds:9.2f}" for seconds in (*medians, total)))


def _random_images(folder: pathlib.Path, count: int) -> list[str]:
    """Write random 32x32 images; return the flags of a training on them."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{i}.png")
    fields = {"name": "folder", "path": folder, "image_size": 32, "channels": 3}
    return [f"--config.data.{field}={value}" for field, value in fields.items()]


def _start(directory: pathlib.Path, words: list[str]) -> dict[str, float]:
    """Return the seconds of each phase of one start."""
    # A checkpoint is due at the first step, so that its metrics are printed at once.
    words = [*words, "--config.train.log_every=1", "--config.train.checkpoint_every=1"]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(directory / "compiled")}
    seconds = dict.fromkeys(PHASES, 0.0)
    start = time.perf_counter()
    compiled = 0.0  # seconds of compilation before the data are described
    with subprocess.Popen(
        [sys.executable, "-u", "-c", CHILD, *words],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stdout:
            now = time.perf_counter() - start
            if line.startswith("devices: "):
                seconds["imports"] = now
            elif line.startswith("compile "):
                event, function, spent = json.loads(line.removeprefix("compile "))
                name = function.removeprefix("jit(").removesuffix(")")
                phase = FUNCTIONS.get(name, "small")
                if (
                    phase != "small" or "trace" not in event
                ):  # small programs are traced inside the others
                    seconds[phase] += spent
            elif line.startswith("data: "):
                compiled = seconds["init"] + seconds["step"] + seconds["small"]
                seconds["data"] = now - seconds["imports"] - compiled
            elif line.startswith("step 1/"):
                process.kill()
                seconds["rest"] = now - sum(seconds.values())
                return seconds
    raise SystemExit("the training ended before its first step")


if __name__ == "__main__":
    main()
