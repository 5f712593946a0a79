"""Memory of a train step by the compiler's plan: nothing is allocated, no data are read.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m benchmarks.memory \\
        --config=experiments/lsun_bedroom_256.py --shape=256,256,3 --config.mesh.fsdp=8

compiles the step of a config for the devices at hand (here eight that the CPU pretends to be) and
prints what `experiments.train` prints before it allocates: the bytes on each device, the state and
one batch apart from what lives within the step. The plan is that of the backend it is compiled
for: a GPU's or TPU's differs in what lives within the step.
"""

import time

import jax
from absl import flags
from ml_collections import config_flags

from ddpm_jax.config import from_dict
from ddpm_jax.models import count_parameters
from ddpm_jax.training import devices, memory
from ddpm_jax.training.parts import build_parts
from ddpm_jax.training.programs import Programs
from experiments import command

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's config file.")
SHAPE = flags.DEFINE_list("shape", ["32", "32", "3"], "H,W,C of the images.")
CLASSES = flags.DEFINE_integer("classes", 10, "Number of classes of the data.")
flags.mark_flag_as_required("config")


def main() -> None:
    config = from_dict(CONFIG.value)
    shape = tuple(int(side) for side in SHAPE.value)
    mesh = devices.make_mesh(config)
    on_cpu = jax.default_backend() == "cpu"
    parts = build_parts(config, shape, CLASSES.value, unroll=on_cpu, mesh=mesh)
    programs = Programs(config, parts, mesh, shape, {})
    start = time.perf_counter()
    planned = memory.of_step(programs.step(None))
    print(
        f"{count_parameters(programs.state.params):,} parameters, batch {config.train.batch_size}, "
        f"mesh {dict(mesh.shape)}, {config.model.dtype}, remat {config.model.remat} "
        f"(keeps {config.model.remat_keep}), accumulate {config.train.accumulate}: "
        f"{memory.describe(planned, memory.capacity())}; "
        f"compiled in {time.perf_counter() - start:.0f} s"
    )


if __name__ == "__main__":
    command.run(main)
