"""Growth of time and memory with the size of the work.

    python -m benchmarks.growth --what=batch

--what is one of

    batch       a train step of CIFAR-10's U-Net with 32 channels, against the images in its batch
    width       a train step of CIFAR-10's U-Net, batch 4, against its channels
    resolution  a train step of the 256x256 U-Net with 32 channels, batch 1, against the image side
    attention   a train step of CIFAR-10's U-Net with 32 channels, batch 1, against the image side;
                the second level of four has attention at every side
    steps       a whole run of a tiny network against its steps, minus the time of a run of one step
    sampling    64 digits against the number of sampling steps; 25 steps against n, at once and in
                chunks
    memory      peak memory of a process that draws n images in chunks of 16, and all at once

The U-Nets have one residual block per level, not two, because they compile in half the time. Every
point is the median of --repeats calls after compilation, in float32. Each table ends with the
exponent a of y ~ x^a, fitted in logarithms, with its standard error. The exponent between the last
two points follows; fixed costs disturb it least. Programs come from the compilation cache if they
are there. Call the script once before, so that nothing compiles during the measurement.
"""

import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import jax
import numpy as np
from absl import flags

from benchmarks.endurance import tiny_run
from benchmarks.measures import exponent
from ddpm_jax import build
from ddpm_jax import sampling as api
from ddpm_jax.config import Config, from_dict
from ddpm_jax.runtime import compiler, devices
from ddpm_jax.training.parts import build_parts
from experiments import celeba_hq_256, cifar10, command, digits

REPEATS = flags.DEFINE_integer("repeats", 5, "Number of timed calls per point.")
LARGEST = flags.DEFINE_integer("largest", 0, "Largest x to measure; 0 is no limit.")
CHUNK = 16  # images at once where memory is measured


def main() -> None:
    if DRAW.value:
        return _draw(*map(int, DRAW.value))
    print(devices.describe_devices())
    MEASURES[WHAT.value]()


def _batch() -> None:
    def step(n: int) -> float:
        return _step_seconds(_config(cifar10, batch=n, channels=32), 32)

    _table("images", (1, 4, 16, 64), step, "images/s", lambda n, s: n / s)


def _width() -> None:
    def step(channels: int) -> float:
        return _step_seconds(_config(cifar10, batch=4, channels=channels), 32)

    _table("channels", (16, 32, 64, 128), step, "images/s", lambda n, s: 4 / s)


def _resolution() -> None:
    config = _config(celeba_hq_256, batch=1, channels=32)
    _table(
        "side",
        (32, 64, 128, 256),
        lambda side: _step_seconds(config, side),
        "images/s",
        lambda n, s: 1 / s,
    )


def _attention() -> None:
    def step(side: int) -> float:
        attends = {"attention_resolutions": (side // 2,)}
        return _step_seconds(_config(cifar10, batch=1, channels=32, **attends), side)

    _table("side", (32, 64, 128), step, "images/s", lambda n, s: 1 / s)


def _steps() -> None:
    """Real commands, from start to end."""
    _run_seconds(1)  # compiles
    fixed = _run_seconds(1)
    print(f"a run of one step: {fixed:.1f} s")
    _table(
        "steps",
        (1000, 2000, 4000, 8000),
        lambda n: _run_seconds(n) - fixed,
        "ms a step",
        lambda n, s: 1e3 * s / n,
    )


def _sampling() -> None:
    def drawing(num_steps: int) -> Callable[[int], Callable[[], Any]]:
        sample, params = _sampler(_config(digits, sample={"num_steps": num_steps}), (8, 8, 1))
        return lambda n: lambda: sample(params, jax.random.key(0), n)

    def per_step(n: int, s: float) -> float:
        return 1e3 * s / n

    _table("steps", (25, 50, 100, 200, 400), lambda n: _median(drawing(n)(64)), "ms/step", per_step)
    draw = drawing(25)
    counts = (16, 32, 64, 128, 256)
    _table("n at once", counts, lambda n: _median(draw(n)), "ms/image", per_step)
    sample, params = _sampler(_config(digits, sample={"num_steps": 25}), (8, 8, 1))

    def in_chunks(n: int) -> Callable[[], Any]:
        return lambda: list(api.sample_in_chunks(sample, params, jax.random.key(0), n, 64))

    counts = (64, 128, 256, 512)
    _table("n by 64", counts, lambda n: _median(in_chunks(n)), "ms/image", per_step)


def _memory() -> None:
    """Measure each n in a process of its own, because a peak never falls."""
    for name, chunked, counts in (
        (f"n by {CHUNK}", True, (16, 64, 256, 1024)),
        ("n at once", False, (16, 64, 256)),
    ):
        print(f"{name:>10}  resident MiB at most  arrays on the device, MiB at most")
        peaks = []
        for n in _allowed(counts):
            words = [
                sys.executable,
                "-m",
                "benchmarks.growth",
                f"--draw={n},{CHUNK if chunked else n}",
            ]
            out = subprocess.run(words, check=True, capture_output=True, text=True).stdout
            resident, arrays = map(float, out.split())
            peaks.append(resident)
            print(f"{n:10,}  {resident:20.1f}  {arrays:33.2f}")
        print(f"from the smallest n to the largest: {peaks[-1] - peaks[0]:+.1f} MiB resident\n")


def _draw(n: int, chunk: int) -> None:
    """Draw n images, read each chunk and drop it; print both peaks in MiB."""
    config = _config(cifar10, channels=32, sample={"num_steps": 2})
    sample, params = _sampler(config, (32, 32, 3))
    jax.block_until_ready(sample(params, jax.random.key(0), chunk))  # compiled
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins here (Linux)
    arrays = 0
    for images in api.sample_in_chunks(sample, params, jax.random.key(0), n, chunk):
        assert np.isfinite(images).all()
        arrays = max(arrays, sum(array.nbytes for array in jax.live_arrays()))
    status = pathlib.Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0])
    print(peak / 2**10, arrays / 2**20)


def _config(
    experiment: ModuleType, *, batch: int = 1, sample: dict[str, Any] | None = None, **model: Any
) -> Config:
    """Return an experiment's config with another batch, sampler or model."""
    config = experiment.get_config()
    config.train.batch_size = batch
    config.sample.update(sample or {})
    config.model.num_groups = 8  # divides every width here
    config.model.num_res_blocks = 1  # compiles in half the time
    config.model.update(model)
    return from_dict(config)


def _step_seconds(config: Config, side: int) -> float:
    """Time the real train step (loss, gradient, clip, Adam, EMA) on random images."""
    shape = (side, side, 3)
    parts = build_parts(config, shape, 0)
    for_network = compiler.options(compiler.NETWORK)
    step = jax.jit(parts.train_step, donate_argnums=0, compiler_options=for_network)
    state = jax.jit(parts.init, compiler_options=compiler.options(compiler.ONCE))()
    n = config.train.batch_size
    images = np.random.default_rng(0).integers(0, 256, (n, *shape), np.uint8)
    batch = jax.device_put({"image": images, "label": np.zeros(n, np.int32)})

    def call() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics

    return _median(call)


def _sampler(config: Config, shape: tuple[int, int, int]) -> tuple[Callable, Any]:
    """Return a run's sampling function and the weights it would start with."""
    model = build.model(config.model, shape, 0)
    init = jax.jit(model.init, compiler_options=compiler.options(compiler.ONCE))
    sample = build.sample_fn(config, build.process(config.process), model, shape)
    return sample, init(jax.random.key(0))


def _run_seconds(steps: int) -> float:
    """Time a whole run; return the median of two. Checkpoints and logs have their usual spacing."""
    seconds = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as root:
            changes = {"train__num_steps": steps, "optim__decay": "constant", "eval__every": 0}
            words = tiny_run(pathlib.Path(root), **changes)
            start = time.perf_counter()
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _median(call: Callable[[], Any]) -> float:
    """Return the median seconds of a call that is already compiled."""
    jax.block_until_ready(call())
    seconds = []
    for _ in range(REPEATS.value):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _allowed(points: Sequence[int]) -> list[int]:
    return [n for n in points if not LARGEST.value or n <= LARGEST.value]


def _table(
    name: str,
    points: Sequence[int],
    measure: Callable[[int], float],
    unit: str,
    per: Callable[[int, float], float],
) -> None:
    """Measure the seconds at every point; print them, the rates, and the exponent of the growth."""
    print(f"{name:>10}  {'seconds':>9}  {unit:>10}")
    x, y = _allowed(points), []
    for n in x:
        y.append(measure(n))
        print(f"{n:10,}  {y[-1]:9.4f}  {per(n, y[-1]):10.3f}", flush=True)
    last = np.log(y[-1] / y[-2]) / np.log(x[-1] / x[-2])
    fitted, error = exponent(np.array(x), np.array(y))
    print(f"seconds ~ {name}^a: a = {fitted:.3f} ± {error:.3f}; last two points: {last:.3f}\n")


MEASURES = {
    "batch": _batch,
    "width": _width,
    "resolution": _resolution,
    "attention": _attention,
    "steps": _steps,
    "sampling": _sampling,
    "memory": _memory,
}
WHAT = flags.DEFINE_enum("what", "batch", list(MEASURES), "Quantity that grows, explained above.")
DRAW = flags.DEFINE_list("draw", [], "Internal: n,chunk of one process of --what=memory.")

if __name__ == "__main__":
    command.run(main)
