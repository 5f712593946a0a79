"""Memory and files of a long run: do they grow?

    python -m benchmarks.endurance --steps=10000

The script trains a tiny network on the digits in a process of its own, with checkpoints, held-out
losses and logs. It reads the memory and the open files of this process from /proc (Linux). "Own
memory" is the anonymous pages, resident or swapped out. "Resident" also includes pages of files,
such as libraries; the kernel takes these back if memory is short. The script prints the medians of
every tenth of the run, the maxima, and the sizes of the written files.
"""

import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from absl import flags

from ddpm_jax.runs import metrics
from ddpm_jax.runs.workdir import WorkDir
from experiments import command

STEPS = flags.DEFINE_integer("steps", 10_000, "Number of training steps of the run.")
INTERVAL = 0.2  # seconds between two looks

TINY = {
    "process.schedule": "cosine",
    "process.num_timesteps": 4,
    "model.channels": 8,
    "model.channel_multipliers": "(1,)",
    "model.attention_resolutions": "()",
    "model.num_groups": 4,
    "model.num_res_blocks": 1,
    "optim.warmup_steps": 5,
    "train.batch_size": 8,
    "train.num_samples": 4,
    "train.log_every": 50,
    "eval.num_examples": 64,
}


def tiny_run(workdir: pathlib.Path, **overrides: object) -> list[str]:
    """Return the command of a tiny run with `section__field=value` changes."""
    changes = TINY | {name.replace("__", "."): value for name, value in overrides.items()}
    return [
        sys.executable,
        "-m",
        "experiments.train",
        "--config=experiments/digits.py",
        f"--workdir={workdir}",
        *[f"--config.{key}={value}" for key, value in changes.items()],
    ]


def main() -> None:
    n = STEPS.value
    with tempfile.TemporaryDirectory() as root:
        workdir = WorkDir(pathlib.Path(root) / "run")
        every = max(1, n // 40)
        words = tiny_run(
            workdir.root, train__num_steps=n, train__checkpoint_every=every, eval__every=2 * every
        )
        looks = []  # (step, own MiB, resident MiB, open files)
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            start = time.perf_counter()
            os.set_blocking(process.stdout.fileno(), False)
            step = 0
            while process.poll() is None:
                for line in process.stdout.readlines():
                    if line.startswith("step "):
                        step = int(line.split()[1].split("/")[0])
                if look := _look(process.pid):
                    looks.append((step, *look))
                time.sleep(INTERVAL)
            seconds = time.perf_counter() - start
        if process.returncode:
            raise SystemExit(process.returncode)
        print(f"{'steps':>15}  looks  own MiB  resident MiB  open files")
        for tenth in range(10):
            low, high = tenth * n // 10, (tenth + 1) * n // 10
            part = [look for look in looks if low <= look[0] < high]
            own, resident, files = (statistics.median(x) for x in list(zip(*part, strict=True))[1:])
            print(
                f"{low:7,}..{high:6,}  {len(part):5}  {own:7.1f}  {resident:12.1f}  {files:10.0f}"
            )
        most = [max(x) for x in list(zip(*looks, strict=True))[1:]]
        print("at most: own memory {:.1f} MiB, resident {:.1f} MiB, open files {}".format(*most))
        rows = len(metrics.read(workdir.metrics))
        print(f"{n} steps in {seconds:.0f} s")
        print(f"metrics.jsonl: {rows} rows, {workdir.metrics.stat().st_size / 1e3:.0f} kB")
        for path in (workdir.tensorboard, workdir.checkpoints):
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            print(f"{path.name}: {size / 1e3:.0f} kB")


def _look(pid: int) -> tuple[float, float, int] | None:
    """Return a process's own and resident MiB and open files; None if it has just ended."""
    try:
        lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
        kib = {words[0]: int(words[1]) for line in lines if (words := line.split())[-1:] == ["kB"]}
        own, resident = kib["RssAnon:"] + kib["VmSwap:"], kib["VmRSS:"]
        return own / 1024, resident / 1024, len(os.listdir(f"/proc/{pid}/fd"))
    except (OSError, KeyError):  # a process that has ended has no memory
        return None


if __name__ == "__main__":
    command.run(main)
