"""Memory of a train step by the compiler's plan. Nothing is allocated, and no data are read.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m benchmarks.memory \\
        --config=experiments/lsun_bedroom_256.py --shape=256,256,3 --config.mesh.fsdp=8

The script compiles the train step of a config for the available devices, here eight devices that
the CPU simulates. It prints the plan that `experiments.train` prints before it allocates: the bytes
on each device, split into the state with one batch, and the memory used within the step. The plan
holds for one backend: XLA's CPU backend undoes recomputation (`model.remat`). So the script also
prints the bytes per image that the network keeps from its forward to its backward pass, as JAX
traces it. `--trace` prints only this.
"""

import math
import time

import jax
import jax.numpy as jnp
from absl import flags

from ddpm_jax import build
from ddpm_jax.config import Config, from_dict
from ddpm_jax.models import count_parameters
from ddpm_jax.runtime import devices, memory
from ddpm_jax.training.parts import build_parts
from ddpm_jax.training.programs import Programs
from experiments import command, config_flag

CONFIG = config_flag.define("The experiment's config file.")
SHAPE = flags.DEFINE_list("shape", ["32", "32", "3"], "Shape of the images: H,W,C.")
CLASSES = flags.DEFINE_integer("classes", 10, "Number of classes of the data set.")
TRACE = flags.DEFINE_bool("trace", False, "Trace only; compile nothing and print no plan.")


def kept_per_image(config: Config, shape: tuple[int, ...], num_classes: int) -> int:
    """Return the bytes per image that the network keeps from its forward to its backward pass.

    Without dropout, and with the convolutions that accelerators use in training.
    """
    model = build.model(config.model, shape, num_classes)
    params = jax.eval_shape(model.init, jax.random.key(0))

    def forward(params, x, t):
        return jax.vjp(lambda p: model.apply(p, x, t, train=False), params)[1]

    def kept(n: int) -> int:
        x, t = jax.ShapeDtypeStruct((n, *shape), jnp.float32), jax.ShapeDtypeStruct((n,), jnp.int32)
        leaves = jax.tree.leaves(jax.eval_shape(forward, params, x, t))
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)

    return kept(2) - kept(1)


def main() -> None:
    config = from_dict(CONFIG.value)
    shape = tuple(int(side) for side in SHAPE.value)
    print(
        f"{config.model.dtype}, remat {config.model.remat} (keeps {config.model.remat_keep}): "
        f"kept per image {kept_per_image(config, shape, CLASSES.value) / memory.GIB:.2f} GiB"
    )
    if TRACE.value:
        return
    mesh = devices.make_mesh(config)
    parts = build_parts(config, shape, CLASSES.value, mesh=mesh)
    programs = Programs(config, parts, mesh, jax.ShapeDtypeStruct(shape, jnp.uint8), {})
    start = time.perf_counter()
    planned = memory.of_step(programs.step(None))
    print(
        f"{count_parameters(programs.state.params):,} parameters, batch {config.train.batch_size}, "
        f"mesh {dict(mesh.shape)}, accumulate {config.train.accumulate}: "
        f"{memory.describe(planned, memory.capacity())}; "
        f"compiled in {time.perf_counter() - start:.0f} s"
    )


if __name__ == "__main__":
    command.run(main)
