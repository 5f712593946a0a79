"""Time and memory of a train step.

    python -m benchmarks.train_step --config=experiments/cifar10.py

The script runs the real train step of a config (loss, gradient, clip, Adam, EMA) on random images
of the right size. It times each step after compilation. It prints the median time of a step,
images/s, the time to compile, and the peak memory of the process. It prints the peak memory of the
device if JAX reports it.
"""

import resource
import statistics
import time

import jax
import numpy as np
from absl import flags

from ddpm_jax.config import from_dict
from ddpm_jax.runtime import compiler, devices, sharding
from ddpm_jax.training.parts import build_parts
from experiments import command, config_flag

CONFIG = config_flag.define("The experiment's config file.")
SHAPE = flags.DEFINE_list("shape", ["32", "32", "3"], "Shape of the images: H,W,C.")
CLASSES = flags.DEFINE_integer("classes", 10, "Number of classes of the data set.")
STEPS = flags.DEFINE_integer("steps", 10, "Number of train steps to time.")


def main() -> None:
    config = from_dict(CONFIG.value)
    shape = tuple(int(side) for side in SHAPE.value)
    mesh = devices.make_mesh(config)
    parts = build_parts(config, shape, CLASSES.value)
    state = jax.jit(parts.init, out_shardings=sharding.replicated(mesh))()
    options = compiler.options(compiler.of_network(state.params))
    step = jax.jit(parts.train_step, donate_argnums=0, compiler_options=options)
    rng = np.random.default_rng(0)
    size = config.train.batch_size
    batch = {
        "image": rng.integers(0, 256, (size, *shape), np.uint8),
        "label": rng.integers(0, CLASSES.value, size, np.int32),
    }
    batch = jax.device_put(batch, sharding.over_batch(mesh))

    start = time.perf_counter()
    state, metrics = jax.block_until_ready(step(state, batch))
    compile_seconds = time.perf_counter() - start
    seconds = []
    for _ in range(STEPS.value):
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state, batch))
        seconds.append(time.perf_counter() - start)

    median = statistics.median(seconds)
    print(devices.describe_devices())
    print(f"batch {size}, images {shape}, {config.model.dtype}, {STEPS.value} steps")
    print(f"step: median {median * 1e3:.1f} ms, min {min(seconds) * 1e3:.1f}")
    print(f"speed: {size / median:,.1f} images/s")
    print(f"first step with compilation: {compile_seconds:.1f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of the process: {peak:.2f} GiB")
    if stats := jax.devices()[0].memory_stats():
        print(f"peak memory of the device: {stats['peak_bytes_in_use'] / 2**30:.2f} GiB")


if __name__ == "__main__":
    command.run(main)
