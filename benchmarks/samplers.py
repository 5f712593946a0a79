"""Quality against network evaluations for every sampler, on a trained run of the digits.

    python -m benchmarks.samplers --workdir=runs/digits --results=samplers.json \
        --out=docs/figures/samplers.png

The quality is the Fréchet distance of `benchmarks/digits_quality.py`. For each seed, all samplers
start from the same noise. They have the same number of network evaluations, not of steps. The
reference is the whole chain by ancestral sampling, from several seeds. --results keeps the results.
The same command, started again, continues the measurement, or only draws the plot if everything is
measured. The plot can also be drawn from the table of a page, without a run:

    python -m benchmarks.samplers --table=docs/samplers.md --out=docs/figures/samplers.png
"""

import functools
import json
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.digits_quality import quality
from ddpm_jax import build, runs, samplers
from ddpm_jax.config import SampleConfig
from ddpm_jax.errors import UserError
from ddpm_jax.figures.curves import quality as draw
from ddpm_jax.randomness import draw_x_T, fold_in, image_keys
from ddpm_jax.runtime import compiler
from ddpm_jax.runtime.files import absolute
from experiments import command, outputs

TRAILING, ALL = ("trailing",), ("trailing", "log_snr", "karras")  # grids

WORKDIR = flags.DEFINE_string("workdir", None, "Work directory of a trained run of digits.")
N = flags.DEFINE_integer("n", 1000, "Number of images per measurement; affects the distance.")
EVALUATIONS = flags.DEFINE_list(
    "evaluations", ["10", "20", "50"], "Numbers of network evaluations to measure."
)
SEEDS = flags.DEFINE_integer("seeds", 3, "Number of seeds, for the parts candidates and whole.")
PARTS = flags.DEFINE_list(
    "parts",
    ["table", "candidates", "whole"],
    "Parts to measure. table: all samplers, one seed. candidates: the best ones, --seeds seeds. "
    "whole: the whole chain, --seeds seeds.",
)
GRIDS = flags.DEFINE_list("grids", list(ALL), "Grids, for the parts table and candidates.")
RESULTS = flags.DEFINE_string("results", None, "JSON file of results; the script adds to it.")
OUT = flags.DEFINE_string("out", None, "File of the plot (PNG). Default: no plot.")
TABLE = flags.DEFINE_string(
    "table",
    None,
    "Markdown file with the table that this script prints: measure nothing, only draw its plot.",
)

CHUNK = 50  # images at once: their activations fit in the CPU's caches
ONE, TWO = (
    (lambda e: e),
    (lambda e: (e + 1) // 2),
)  # evaluations -> steps; Heun's last step takes one
SAMPLERS = {  # name -> (process -> sampler, evaluations -> steps, grids)
    "ancestral, fixed_small": (lambda p: samplers.ancestral(p, "fixed_small"), ONE, TRAILING),
    "ancestral, fixed_large": (lambda p: samplers.ancestral(p, "fixed_large"), ONE, TRAILING),
    "ddim, eta 0": (lambda p: samplers.ddim(p), ONE, ALL),
    "ddim, eta 0.5": (lambda p: samplers.ddim(p, 0.5), ONE, TRAILING),
    "heun": (lambda p: samplers.heun(p), TWO, ALL),
    "dpm_solver_pp_2m": (lambda p: samplers.dpm_solver_pp_2m(p), ONE, ALL),
    "dpm_solver_pp_2m, SDE": (lambda p: samplers.dpm_solver_pp_2m(p, True), ONE, ALL),
    "dpm_solver_pp_3m": (lambda p: samplers.dpm_solver_pp_3m(p), ONE, ALL),
    "dpm_solver_pp_2s": (lambda p: samplers.dpm_solver_pp_2s(p), TWO, ALL),
    "unipc, order 2": (lambda p: samplers.unipc(p, 2), ONE, ALL),
    "unipc, order 3": (lambda p: samplers.unipc(p, 3), ONE, ALL),
    "predictor_corrector": (lambda p: samplers.predictor_corrector(p), lambda e: e // 2, TRAILING),
}
WHOLE = ("ancestral, fixed_large", "ancestral, fixed_small")
CANDIDATES = ("dpm_solver_pp_2m", "dpm_solver_pp_2m, SDE", "unipc, order 2")
BUDGET = 20  # evaluations of the candidates

Results = dict[str, float]
Table = dict[tuple[str, str], dict[int, float]]  # (sampler, grid) -> evaluations -> distance


def main() -> None:
    if TABLE.value is not None:
        _save_plot(_read(pathlib.Path(TABLE.value)))
        return
    for flag in (WORKDIR, RESULTS):
        if flag.value is None:
            raise UserError(f"--{flag.name} is missing; only --table needs no run")
    run = runs.open_run(WORKDIR.value)
    path = pathlib.Path(RESULTS.value)
    results = json.loads(path.read_text()) if path.exists() else {}
    evaluations = [int(e) for e in EVALUATIONS.value]
    T = run.process.num_timesteps
    walks = {name: functools.cache(functools.partial(_walker, run, name)) for name in SAMPLERS}

    def measure(name: str, grid: str, evaluations: int, seed: int) -> None:
        key = _key(name, grid, evaluations, seed)
        if key in results:
            return
        steps = SAMPLERS[name][1](evaluations)
        timesteps = build.grid(SampleConfig(num_steps=steps, timesteps=grid), run.process)
        results[key] = quality(walks[name]()(timesteps, seed))
        path.write_text(json.dumps(results, indent=1))
        print(f"{key}: {results[key]:.3f}", flush=True)

    seeds = range(SEEDS.value)
    rows = [(n, g) for n, (_, _, grids) in SAMPLERS.items() for g in grids if g in GRIDS.value]
    asked = {
        "table": [(*row, e, 0) for e in evaluations for row in rows],
        "candidates": [(*row, BUDGET, i) for row in rows if row[0] in CANDIDATES for i in seeds],
        "whole": [(name, "trailing", T, i) for name in WHOLE for i in seeds],
    }
    for part in PARTS.value:
        for what in asked[part]:
            measure(*what)

    table = {
        row: {e: results[_key(*row, e, 0)] for e in evaluations if _key(*row, e, 0) in results}
        for row in ((n, g) for n, (_, _, grids) in SAMPLERS.items() for g in grids)
    }
    _report(table, evaluations, results, T)
    whole = [value for name in WHOLE for value in _seeds(results, name, "trailing", T)]
    label = f"ancestral, all {T} steps, {len(whole)} runs"
    _save_plot(table, (label, min(whole), max(whole)) if whole else None)


def _key(name: str, grid: str, evaluations: int, seed: int) -> str:
    return f"{name}; {grid}; {evaluations}; n {N.value}; seed {seed}"


def _walker(run: runs.Run, name: str) -> Callable[[np.ndarray, int], np.ndarray]:
    """Return (timesteps, seed) -> images [n, H, W, C]: what `make_sample` draws.

    Only the step is compiled, not the chain, so that a sampler compiles once for all its grids.
    """
    sampler = SAMPLERS[name][0](run.process)
    denoiser = build.denoiser(run.config, run.process, run.model)

    @functools.partial(jax.jit, compiler_options=compiler.options(compiler.NETWORK))
    def step(params, keys, state, t, s):
        step_keys = fold_in(keys, t)
        return sampler.step(denoiser(params, None), step_keys, state, t, s)[0]

    @jax.jit
    def start(key, index):
        keys = image_keys(key, index)
        return keys, sampler.init(draw_x_T(keys, run.facts.image_shape))

    def walk(timesteps: np.ndarray, seed: int) -> np.ndarray:
        images = []
        for first in range(0, N.value, CHUNK):
            keys, state = start(jax.random.key(seed), np.arange(first, first + CHUNK))
            for t, s in zip(timesteps[:-1], timesteps[1:], strict=True):
                state = step(run.params, keys, state, jnp.int32(t), jnp.int32(s))
            images.append(np.asarray(state.x))
        return np.concatenate(images)[: N.value]

    return walk


def _seeds(results: Results, name: str, grid: str, evaluations: int) -> list[float]:
    """Return the result of each seed that was measured."""
    keys = (_key(name, grid, evaluations, seed) for seed in range(SEEDS.value))
    return [results[key] for key in keys if key in results]


def _mean(values: list[float]) -> str:
    """Return the mean and its standard error over seeds."""
    if len(values) < 2:
        return " ".join(f"{v:.3f}" for v in values)
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.3f} ± {error:.3f} ({len(values)} seeds)"


def _report(table: Table, evaluations: list[int], results: Results, T: int) -> None:
    """Print the table in Markdown, and the means over seeds."""
    print("| sampler | grid | " + " | ".join(map(str, evaluations)) + " |")
    print("|---|---|" + "---|" * len(evaluations))
    for (name, grid), found in table.items():
        cells = (f"{found[e]:.2f}" if e in found else "-" for e in evaluations)
        print(f"| {name} | {grid} | " + " | ".join(cells) + " |")
    for name in CANDIDATES:
        for grid in SAMPLERS[name][2]:
            print(f"{name}, {grid}, {BUDGET}: {_mean(_seeds(results, name, grid, BUDGET))}")
    for name in WHOLE:
        print(f"{name}, all {T} steps: {_mean(_seeds(results, name, 'trailing', T))}")


def _read(path: pathlib.Path) -> Table:
    """Read the table that `_report` prints from a Markdown file."""
    rows = [line.strip("|").split("|") for line in path.read_text().splitlines() if line[:1] == "|"]
    cells = [[cell.strip() for cell in row] for row in rows]
    heads = [row for row in cells if row[:2] == ["sampler", "grid"] and row[2].isdigit()]
    if not heads:
        raise UserError(f"--table={path} has no table with the columns sampler, grid and numbers")
    evaluations = [int(e) for e in heads[0][2:]]
    return {
        (name, grid): {e: float(v) for e, v in zip(evaluations, values, strict=True) if v != "-"}
        for name, grid, *values in cells
        if name in SAMPLERS and len(values) == len(evaluations)
    }


def _save_plot(table: Table, band: tuple[str, float, float] | None = None) -> None:
    """Draw distance against evaluations, a panel for each grid; the band is the whole chain."""
    if OUT.value is None:
        return
    panels = {
        f"{grid} grid": {n: found for (n, g), found in table.items() if g == grid and found}
        for grid in ALL
    }
    figure = draw(panels, f"Fréchet distance, {N.value} images", band)
    outputs.save_figure(absolute(OUT.value), figure, OUT.value)
    print(f"plot: {absolute(OUT.value)}")


if __name__ == "__main__":
    command.run(main)
