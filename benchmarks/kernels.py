"""Where the time of a train step goes on a GPU: its kernels by kind, from a trace.

    python -m benchmarks.kernels --config=experiments/cifar10.py --shape=32,32,3 \\
        --config.model.dtype=bfloat16 --dir=trace
    python -m benchmarks.kernels --config=... --dir=trace --read --steps=20

The first command runs the step as a training does, traces --steps of them into --dir, and prints a
table. The second reads the table from a trace that is there, without a GPU. A kernel of a fusion
has the name of the fusion, so the kinds can be compared with `benchmarks.program`.
"""

import collections
import pathlib
import re

import jax
from absl import flags
from jax.profiler import ProfileData
from rich.table import Table

from benchmarks import peer_torch
from ddpm_jax.config import from_dict
from ddpm_jax.errors import UserError
from experiments import command, tables

DIR = flags.DEFINE_string("dir", None, "Directory of the trace.", required=True)
READ = flags.DEFINE_bool("read", False, "Read the trace that is in --dir.")

LIBRARY = re.compile("sm90|sm80|cudnn|cutlass|xmma|nvjet|implicit|Padding|nhwc", re.IGNORECASE)
SHORT = 4000  # nanoseconds: a kernel below it is mostly its start


def kind(kernel: str) -> str:
    """Return the kind of a kernel, from its name."""
    if LIBRARY.search(kernel):
        return "convolutions and products of libraries"
    if "gemm_fusion" in kernel:
        return "products by Triton"
    if "reduce" in kernel:
        return "sums"
    return re.sub(r"[_.\s\d]+$", "", kernel)


def read(directory: pathlib.Path) -> list[tuple[str, float]]:
    """Return the name and the nanoseconds of each kernel of a trace.

    Raises:
      UserError: the directory has no trace of a GPU.
    """
    found = []
    for path in sorted(directory.rglob("*.xplane.pb")):
        for plane in ProfileData.from_file(str(path)).planes:
            if plane.name.startswith("/device:GPU"):
                for line in plane.lines:
                    found += [(event.name, event.duration_ns) for event in line.events]
    if not found:
        raise UserError(f"--dir={directory} has no trace of a GPU; trace a step on a GPU first")
    return found


def main() -> None:
    directory, steps = pathlib.Path(DIR.value), peer_torch.STEPS.value
    if not READ.value:
        config = from_dict(peer_torch.CONFIG.value)
        shape = tuple(int(side) for side in peer_torch.SHAPE.value)
        turn, _ = peer_torch.ours(config, shape, "train", steps)
        turn(steps)  # the first call is slower
        with jax.profiler.trace(str(directory)):
            turn(steps)
    kernels = read(directory)
    counts, times = collections.Counter(), collections.Counter()
    for name, nanoseconds in kernels:
        counts[kind(name)] += 1
        times[kind(name)] += nanoseconds
    table = Table("kernels", box=None)
    for title in ("in a step", "ms"):
        table.add_column(title, justify="right")
    for name, nanoseconds in times.most_common(15):
        table.add_row(name, f"{counts[name] / steps:,.0f}", f"{nanoseconds / steps / 1e6:.2f}")
    short = [nanoseconds for _, nanoseconds in kernels if nanoseconds < SHORT]
    for name, values in (("all", [n for _, n in kernels]), ("of these under 4 us", short)):
        table.add_row(name, f"{len(values) / steps:,.0f}", f"{sum(values) / steps / 1e6:.2f}")
    tables.console().print(table)


if __name__ == "__main__":
    command.run(main)
