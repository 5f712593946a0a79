"""Export a sampler of a trained run as a program that JAX calls without this library.

    python -m experiments.export --workdir=runs/digits --sampler=dpm_solver_pp_2m --num_steps=20

The program is the whole chain with the EMA weights, for CPU, CUDA and TPU and for any number of
images. docs/interop.md shows how to call it. The export needs the packages of
`pip install -e '.[export]'`.
"""

import time

from absl import flags

from ddpm_jax.interop import to_stablehlo
from ddpm_jax.interop.stablehlo import PLACES, PLATFORMS, PROGRAM, check_new
from ddpm_jax.runs.open import open_run
from ddpm_jax.runs.workdir import open_for_reading, read_config
from experiments import command, outputs
from experiments.progress import ProgressLine

WORKDIR = flags.DEFINE_string("workdir", None, "Work directory of the trained run.", required=True)
STEP = flags.DEFINE_integer(
    "step", None, "Training step of the checkpoint to load. Default: the newest checkpoint."
)
SAMPLER = flags.DEFINE_string("sampler", None, "Name of the sampler. Default: the run's own.")
NUM_STEPS = flags.DEFINE_integer(
    "num_steps", None, "Number of sampling steps. Default: the run's own.", lower_bound=1
)
TIMESTEPS = flags.DEFINE_string(
    "timesteps",
    None,
    "Grid of the sampling timesteps: uniform, trailing, leading, quadratic, karras or log_snr. "
    "Default: the run's own.",
)
TARGETS = flags.DEFINE_list(
    "platforms", "cpu,cuda,tpu", f"Where the program can run: some of {', '.join(PLATFORMS)}."
)
WEIGHTS = flags.DEFINE_enum(
    "weights",
    "beside",
    list(PLACES),
    "Where the weights are. beside: in weights.safetensors, next to the program. inside: in the "
    "program itself.",
)
OUT = flags.DEFINE_string(
    "out", None, "Folder to write. Default: a folder in <workdir>/exported, named by the settings."
)


def main() -> None:
    workdir = open_for_reading(WORKDIR.value)
    own = read_config(workdir).sample
    chosen = {"sampler": SAMPLER, "num_steps": NUM_STEPS, "timesteps": TIMESTEPS}
    overrides = {name: flag.value for name, flag in chosen.items() if flag.value is not None}
    run = open_run(workdir.root, STEP.value, sample=overrides)
    name = outputs.join(f"step{run.step}", *outputs.sampling_words(own, run.config.sample))
    out = check_new(OUT.value or workdir.root / "exported" / name)
    outputs.check_writable(out.parent, OUT.value)
    start = time.perf_counter()
    with ProgressLine() as progress:
        what = f"exporting the sampler {run.config.sample.sampler}"
        progress(what, 0, 1)
        to_stablehlo(run, out, platforms=TARGETS.value, weights=WEIGHTS.value)
        progress(what, 1, 1)
    size = (out / PROGRAM).stat().st_size
    print(
        f"a program of {size / 1e6:.1f} MB for {', '.join(TARGETS.value)} in "
        f"{time.perf_counter() - start:.1f} s"
    )
    print(f"folder: {out}")


if __name__ == "__main__":
    command.run(main)
