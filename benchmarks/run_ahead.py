"""Does the bound on how far the host runs ahead of the devices cost speed?

    python -m benchmarks.run_ahead --config=experiments/digits.py

The script runs the real train step of a config on random images. In turn, it runs a round of steps
with the bound of `ddpm_jax/training/in_flight.py` and a round without it. The first of each is not
counted. It prints the median time of a step for both, and the median and the range of the ratios of
neighbouring rounds. It also prints how long the host waits at the end of a round: a request to stop
waits as long.
"""

import statistics
import time

import jax
import numpy as np
from absl import flags

from ddpm_jax.config import from_dict
from ddpm_jax.runtime import compiler, devices, sharding
from ddpm_jax.training.in_flight import InFlight
from ddpm_jax.training.parts import build_parts
from experiments import command, config_flag

CONFIG = config_flag.define("The experiment's config file.")
SHAPE = flags.DEFINE_list("shape", ["8", "8", "1"], "Shape of the images: H,W,C.")
STEPS = flags.DEFINE_integer("steps", 60, "Number of train steps of a round.")
ROUNDS = flags.DEFINE_integer("rounds", 10, "Number of rounds with the bound, and without it.")


def main() -> None:
    config = from_dict(CONFIG.value)
    shape = tuple(int(side) for side in SHAPE.value)
    mesh = devices.make_mesh(config)
    parts = build_parts(config, shape, 10)
    state = jax.jit(parts.init, out_shardings=sharding.replicated(mesh))()
    options = compiler.options(compiler.of_network(state.params))
    step = jax.jit(parts.train_step, donate_argnums=0, compiler_options=options)
    rng = np.random.default_rng(0)
    size = config.train.batch_size
    images = [rng.integers(0, 256, (size, *shape), np.uint8) for _ in range(8)]
    label = np.zeros(size, np.int32)

    def rounds():
        nonlocal state
        for bounded in [True, False] * (ROUNDS.value + 1):
            flight = InFlight()
            start = time.perf_counter()
            for i in range(STEPS.value):
                batch = {"image": images[i % len(images)], "label": label}
                state, metrics = step(state, jax.device_put(batch, sharding.over_batch(mesh)))
                if bounded:
                    flight.add(metrics)
            sent = time.perf_counter()
            jax.block_until_ready(state)
            end = time.perf_counter()
            yield (end - start) / STEPS.value, end - sent

    found = list(rounds())[2:]
    with_bound, without = found[0::2], found[1::2]
    ratios = [a[0] / b[0] for a, b in zip(with_bound, without, strict=True)]
    print(devices.describe_devices())
    for name, rows in (("with", with_bound), ("without", without)):
        seconds, waits = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{name} the bound: step {seconds * 1e3:.2f} ms; wait at the end {waits:.2f} s")
    print(
        f"step with the bound / without: {statistics.median(ratios):.3f} "
        f"[{min(ratios):.3f}, {max(ratios):.3f}], {len(ratios)} pairs of {STEPS.value} steps"
    )


if __name__ == "__main__":
    command.run(main)
