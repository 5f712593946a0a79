"""Time and memory of one train step: python benchmarks/train_step.py --config=experiments/cifar10.py

Runs the real step of a config (loss, gradient, clip, Adam, EMA) on random images of the right size,
after compilation, waiting for each step. Prints the median time of a step, images/s, the time to
compile and the peak memory of the process (host) and of the device where JAX can tell.
"""

import pathlib
import resource
import statistics
import sys
import time

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from ddpm_jax import build  # noqa: E402
from ddpm_jax.config import from_dict  # noqa: E402
from ddpm_jax.training import devices  # noqa: E402
from ddpm_jax.training.optimizer import make_optimizer  # noqa: E402
from ddpm_jax.training.state import init_state  # noqa: E402
from ddpm_jax.training.step import make_train_step  # noqa: E402
from experiments import command  # noqa: E402

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's config file.")
SHAPE = flags.DEFINE_list("shape", ["32", "32", "3"], "H,W,C of the images.")
CLASSES = flags.DEFINE_integer("classes", 10, "Number of classes of the data.")
STEPS = flags.DEFINE_integer("steps", 10, "Steps to time.")
flags.mark_flag_as_required("config")


def main() -> None:
    config = from_dict(CONFIG.value)
    shape = tuple(int(side) for side in SHAPE.value)
    mesh = devices.make_mesh(config)
    process = build.process(config.process)
    model = build.model(config.model, shape, CLASSES.value)
    optimizer = make_optimizer(config.optim, config.train.num_steps)
    train_step = make_train_step(
        build.loss_fn(config.loss, process, model),
        build.time_sampler(config.loss, process.num_timesteps),
        optimizer,
        num_timesteps=process.num_timesteps,
        loss_config=config.loss,
        optim_config=config.optim,
        conditional=config.model.class_conditional,
        accumulate=config.train.accumulate,
        unroll=jax.default_backend() == "cpu",
        key=jax.random.key(0),
    )
    step = jax.jit(train_step, donate_argnums=0)
    init = jax.jit(
        lambda key: init_state(model, optimizer, key), out_shardings=devices.replicated(mesh)
    )
    state = init(jax.random.key(0))
    rng = np.random.default_rng(0)
    size = config.train.batch_size
    batch = {
        "image": rng.integers(0, 256, (size, *shape), np.uint8),
        "label": rng.integers(0, CLASSES.value, size, np.int32),
    }
    batch = jax.device_put(batch, devices.over_batch(mesh))

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
