"""Quality against evaluations for every sampler, on a trained run of the digits:

python -m benchmarks.samplers --workdir=runs/digits --n=400 --out=docs/figures/samplers.png

The quality is the Fréchet distance of `benchmarks/digits_quality.py`. Every sampler starts from the
same noise, and is given the same number of network evaluations, not of steps. The yardstick is the
whole chain by ancestral sampling, drawn from two seeds: their difference is what chance does.
"""

import pathlib

import jax
import matplotlib
import numpy as np
from absl import flags

from benchmarks.digits_quality import quality
from ddpm_jax import runs, samplers, timesteps
from ddpm_jax.api import make_sample
from experiments import command

WORKDIR = flags.DEFINE_string("workdir", None, "Work directory of a run of the digits.")
N = flags.DEFINE_integer("n", 400, "Images for each measurement; the distance depends on it.")
EVALUATIONS = flags.DEFINE_list("evaluations", ["10", "20", "50"], "Network evaluations.")
OUT = flags.DEFINE_string("out", None, "Where to draw the plot, a PNG; nowhere if unset.")
flags.mark_flag_as_required("workdir")

SAMPLERS = {  # name -> (process -> sampler, evaluations -> steps)
    "ancestral, fixed_small": (lambda p: samplers.ancestral(p, "fixed_small"), lambda e: e),
    "ancestral, fixed_large": (lambda p: samplers.ancestral(p, "fixed_large"), lambda e: e),
    "ddim, eta 0": (lambda p: samplers.ddim(p), lambda e: e),
    "ddim, eta 0.5": (lambda p: samplers.ddim(p, 0.5), lambda e: e),
    "heun": (lambda p: samplers.heun(p), lambda e: (e + 1) // 2),
    "dpm_solver_pp_2m": (lambda p: samplers.dpm_solver_pp_2m(p), lambda e: e),
    "dpm_solver_pp_2m, SDE": (lambda p: samplers.dpm_solver_pp_2m(p, True), lambda e: e),
    "dpm_solver_pp_3m": (lambda p: samplers.dpm_solver_pp_3m(p), lambda e: e),
    "dpm_solver_pp_2s": (lambda p: samplers.dpm_solver_pp_2s(p), lambda e: (e + 1) // 2),
    "unipc, order 2": (lambda p: samplers.unipc(p, 2), lambda e: e),
    "predictor_corrector": (lambda p: samplers.predictor_corrector(p), lambda e: e // 2),
}


def main() -> None:
    run = runs.open_run(WORKDIR.value)
    process, shape = run.process, run.facts.image_shape
    evaluations = [int(e) for e in EVALUATIONS.value]

    def measure(sampler: samplers.Sampler, grid: np.ndarray | None, seed: int = 0) -> float:
        sample = make_sample(
            process,
            run.model.apply,
            shape=shape,
            sampler=sampler,
            kind=run.config.loss.kind,
            timesteps=grid,
        )
        return quality(np.asarray(sample(run.params, jax.random.key(seed), N.value)))

    whole = [measure(samplers.ancestral(process), None, seed) for seed in (0, 1)]
    print(f"{N.value} images; ancestral, {process.num_timesteps} steps, two seeds: {whole}")
    print("| sampler | " + " | ".join(map(str, evaluations)) + " |")
    print("|---|" + "---|" * len(evaluations))
    table = {}
    for name, (build_sampler, steps) in SAMPLERS.items():
        table[name] = []
        for e in evaluations:
            grid = timesteps.trailing(process.num_timesteps, steps(e))
            table[name].append(measure(build_sampler(process), grid))
        cells = " | ".join(f"{value:.2f}" for value in table[name])
        print(f"| {name} | {cells} |", flush=True)
    if OUT.value:
        _plot(table, evaluations, whole, pathlib.Path(OUT.value))


def _plot(
    table: dict[str, list[float]], evaluations: list[int], whole: list[float], out: pathlib.Path
) -> None:
    """Draw distance against evaluations, the whole chain as a band."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for name, values in table.items():
        axes.plot(evaluations, values, marker="o", label=name)
    axes.axhspan(min(whole), max(whole), color="0.8", label="ancestral, whole chain")
    axes.set(xscale="log", yscale="log", xlabel="network evaluations", ylabel="Fréchet distance")
    axes.set_xticks(evaluations, [str(e) for e in evaluations])
    axes.legend(fontsize=7)
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    command.run(main)
