"""Gain and cost of classifier-free guidance, on a trained run of digits_cond.

    python -m benchmarks.guidance --workdir=runs/digits_cond --out=docs/figures/guidance.png

For each weight w, over several seeds, the script measures three things: how many samples are of the
requested class, as judged by the independent classifier of `benchmarks/digits_quality.py`; the
diversity within a class; and the Fréchet distance to the training images. The picture has a row for
each w, with two digits of each class.
"""

import pathlib

import jax
import numpy as np
from absl import flags

from benchmarks import digits_quality, measures
from ddpm_jax import data, runs
from ddpm_jax.config import DataConfig
from ddpm_jax.figures import grids
from ddpm_jax.pixels import to_uint8, to_x_0
from ddpm_jax.sampling import sample_in_chunks
from experiments import command

WORKDIR = flags.DEFINE_string("workdir", None, "Work directory of a trained run of digits_cond.")
N = flags.DEFINE_integer(
    "n", 500, "Number of images per measurement; they take the classes in turn."
)
WEIGHTS = flags.DEFINE_list(
    "weights", ["0", "0.5", "1", "2", "4", "8"], "Weights w of guidance to measure."
)
SEEDS = flags.DEFINE_integer("seeds", 3, "Number of random seeds per weight.")
NUM_STEPS = flags.DEFINE_integer("num_steps", 15, "Number of sampling steps.")
OUT = flags.DEFINE_string("out", None, "File of the picture (PNG). Default: no picture.")
flags.mark_flag_as_required("workdir")

NUM_CLASSES, SHOWN = 10, 20
CHUNK = 50  # images at once
SAMPLER = {"sampler": "dpm_solver_pp_2m", "stochastic": True, "timesteps": "karras"}


def main() -> None:
    classifier = digits_quality.classifier()
    dataset = data.open_dataset(DataConfig(name="digits"))
    train, held_out = (
        (to_x_0(images), labels)
        for images, labels in (s.read(np.arange(len(s))) for s in (dataset.train, dataset.test))
    )
    real = measures.spread(digits_quality.features(train[0]), train[1])
    rows = held_out[0].reshape(len(held_out[0]), -1)
    print(f"{N.value} images, {SEEDS.value} seeds, {NUM_STEPS.value} steps of {SAMPLER}")
    accuracy = 100 * classifier.score(rows, held_out[1])
    print(f"the classifier on {len(rows)} held-out digits: {accuracy:.1f} %")
    held_out_spread = measures.spread(digits_quality.features(held_out[0]), held_out[1])
    print(f"diversity of the held-out digits: {np.mean(held_out_spread / real):.3f}")

    print("| w | of the requested class, % | diversity | Fréchet distance |\n|---|---|---|---|")
    shown = []
    for w in map(float, WEIGHTS.value):
        options = SAMPLER | {"num_steps": NUM_STEPS.value, "guidance": w}
        sample, params = runs.load(WORKDIR.value, sample=options)
        labels = np.arange(N.value, dtype=np.int32) % NUM_CLASSES
        measured = []
        for seed in range(SEEDS.value):
            key = jax.random.key(seed)
            chunks = sample_in_chunks(sample, params, key, N.value, CHUNK, {"label": labels})
            images = np.concatenate(list(chunks)).astype(np.float64)
            if not seed:
                shown.append(to_uint8(images[np.argsort(labels[:SHOWN], kind="stable")]))
            right = 100 * classifier.score(images.reshape(len(images), -1), labels)
            diversity = np.mean(measures.spread(digits_quality.features(images), labels) / real)
            measured.append((right, diversity, digits_quality.quality(images)))
        means = np.mean(measured, axis=0)
        errors = np.std(measured, axis=0, ddof=1) / np.sqrt(SEEDS.value)
        formats = ("{:.2f} ± {:.2f}", "{:.3f} ± {:.3f}", "{:.2f} ± {:.2f}")
        cells = (f.format(m, e) for f, m, e in zip(formats, means, errors, strict=True))
        print(f"| {w:g} | " + " | ".join(cells) + " |", flush=True)
    if OUT.value:
        picture = grids.make_grid(
            np.concatenate(shown),
            columns=SHOWN,
            side=32,
            column_labels=[str(i) for i in np.sort(np.arange(SHOWN) % NUM_CLASSES)],
            row_labels=[f"w={w}" for w in WEIGHTS.value],
        )
        grids.save_png(pathlib.Path(OUT.value), picture)


if __name__ == "__main__":
    command.run(main)
