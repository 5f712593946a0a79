"""This library, by its own mains `experiments.train` and `experiments.sample`.

`benchmarks/peers/protocol.py` says how to run it. --network has `arguments`, those of
experiments.train, and `parameters`, the number of parameters of the network. --pictures is not
used: the config names the data.
"""

from benchmarks.peers import protocol  # isort: skip (it starts the clock)

import argparse
import json
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

from ddpm_jax.runs import metrics

LOG_EVERY = 5  # steps between rows, if only the time ends the training
ROWS = 240  # of the loss curve of a whole training
NO_END = 100_000  # steps; the clock ends the measurement of the speed long before
SAMPLERS = {  # name -> flags of experiments.sample
    "dpm_solver_pp_2m, trailing": ("--sampler=dpm_solver_pp_2m", "--timesteps=trailing"),
    "unipc, trailing": ("--sampler=unipc", "--timesteps=trailing"),
}
PACKAGES = ("jax", "flax", "optax")


def rows_of(path: pathlib.Path, batch: int) -> list[dict[str, Any]]:
    """Return the loss curve of a metrics.jsonl.

    The seconds are those of the steps: the speed of a row leaves out checkpoints and pictures.
    """
    rows, seconds, last = [], 0.0, 0
    for row in metrics.read(path) if path.exists() else []:
        speed, step = row["images_per_second"], row["step"]
        seconds += (step - last) * batch / speed
        last = step
        rows.append(
            {"seconds": seconds, "step": step, "loss": row["loss"], "images_per_second": speed}
        )
    return rows


def train(args: argparse.Namespace) -> None:
    workdir = args.folder / "run"
    steps = args.steps or NO_END
    settings = {
        "train.num_steps": steps,
        "train.seed": args.seed,
        "train.log_every": max(1, args.steps // ROWS) if args.steps else LOG_EVERY,
        # only training takes time: no pictures, held-out losses or checkpoints before the end
        "train.checkpoint_every": 0,
        "train.sample_every": 0,
        "train.num_samples": 1,
        "sample.num_steps": 50,
        "eval.every": 0,
        "eval.samples_every": 0,
    }
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "experiments.train", f"--workdir={workdir}"),
            *args.network["arguments"],
            *(f"--config.{key}={value}" for key, value in settings.items()),
        ]
    )
    start = None
    try:
        while process.poll() is None:
            time.sleep(0.2)
            path = workdir / "metrics.jsonl"
            if start is None and (first := metrics.read(path)[:1] if path.exists() else []):
                # a row is written at the end of the next interval
                batch = json.loads((workdir / "config.json").read_text())["train"]["batch_size"]
                interval = first[0]["step"] * batch / first[0]["images_per_second"]
                start = first[0]["time"] - 2 * interval
            if start is not None and time.time() >= start + args.seconds:
                process.send_signal(signal.SIGTERM)  # saves the state
                break
        code = process.wait()
    finally:
        process.kill()
    if start is None or code not in (0, 128 + signal.SIGTERM):
        sys.exit(f"experiments.train ended with exit code {code}")
    batch = json.loads((workdir / "config.json").read_text())["train"]["batch_size"]
    rows = rows_of(workdir / "metrics.jsonl", batch)
    (args.folder / "curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    protocol.write_trained(
        args.folder,
        parameters=args.network["parameters"],
        batch=batch,
        steps=rows[-1]["step"],
        seconds=rows[-1]["seconds"],
        preparation=start - protocol.STARTED,
        packages=PACKAGES,
    )


def sample(args: argparse.Namespace) -> None:
    command = [sys.executable, "-m", "experiments.sample", f"--workdir={args.folder / 'run'}"]
    flags = [f"--n={args.n}", f"--seed={args.seed}", f"--num_steps={args.evaluations}"]
    stem = args.out.with_suffix("")
    code = subprocess.call([*command, *flags, *SAMPLERS[args.sampler], f"--out={stem}"])
    if code:
        sys.exit(f"experiments.sample ended with exit code {code}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so `finally` ends the main too
    arguments = protocol.parse()
    {"train": train, "sample": sample}[arguments.what](arguments)
