"""Errors of super-resolution, on a trained run of digits_superres.

    python -m benchmarks.superres --workdir=runs/digits_superres --sampler=dpm_solver_pp_2m \
        --timesteps=karras --num_steps=25 --out=docs/figures/superres.png

Each held-out digit is made small, and enlarged several times by the model. The script prints root
mean square differences in units of [-1, 1]:

  - of the samples to the large image;
  - of the samples, made small again, to the small image;
  - of the mean of the samples to the large image. The mean is the best guess in this measure.

The baselines are repeated pixels and bicubic interpolation of the small image. The classifier of
`benchmarks/digits_quality.py` judges how many digits are still right. The picture of --out has the
small images at the top, then samples, and the large images at the bottom.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import Image

from benchmarks import digits_quality
from benchmarks.measures import rms
from ddpm_jax import data, runs
from ddpm_jax.data.cond import coarse
from ddpm_jax.errors import UserError
from ddpm_jax.figures import grids
from ddpm_jax.pixels import to_uint8, to_x_0
from ddpm_jax.runs.workdir import open_for_reading, read_config
from ddpm_jax.sampling import sample_in_chunks
from experiments import command

WORKDIR = flags.DEFINE_string(
    "workdir", None, "Work directory of a trained run of digits_superres."
)
DRAWS = flags.DEFINE_integer("draws", 8, "Number of samples per image.", lower_bound=2)
SAMPLER = flags.DEFINE_string("sampler", None, "Name of the sampler. Default: the run's own.")
NUM_STEPS = flags.DEFINE_integer(
    "num_steps", None, "Number of sampling steps. Default: the run's own."
)
TIMESTEPS = flags.DEFINE_string(
    "timesteps", None, "Grid of the sampling timesteps. Default: the run's own."
)
OUT = flags.DEFINE_string("out", None, "File of the picture (PNG). Default: no picture.")
flags.mark_flag_as_required("workdir")

SHOWN, SHOWN_DRAWS = 16, 3  # images in the picture, and samples of each


def bicubic(images: np.ndarray, factor: int) -> np.ndarray:
    """Interpolate images [N, H, W, 1] of repeated pixels, from one pixel of each block."""
    size = images.shape[2], images.shape[1]
    small = images[:, ::factor, ::factor, 0].astype(np.float32)
    large = [np.asarray(Image.fromarray(i).resize(size, Image.Resampling.BICUBIC)) for i in small]
    return np.clip(np.stack(large)[..., None], -1.0, 1.0)


def main() -> None:
    config = read_config(open_for_reading(WORKDIR.value))
    factor = config.model.super_resolution
    if not factor:
        raise UserError(
            f"--workdir={WORKDIR.value} is not a run of super-resolution "
            "(model.super_resolution is 0); train experiments/digits_superres.py"
        )
    test = data.open_dataset(config.data).test
    images, labels = test.read(np.arange(len(test)))
    large = np.asarray(to_x_0(jnp.asarray(images)))
    small = np.asarray(coarse(jnp.asarray(large), factor))

    chosen = {"sampler": SAMPLER, "num_steps": NUM_STEPS, "timesteps": TIMESTEPS}
    options = {name: flag.value for name, flag in chosen.items() if flag.value is not None}
    sample, params = runs.load(WORKDIR.value, sample=options)
    cond = {"image": np.concatenate([small] * DRAWS.value)}
    n = len(cond["image"])
    chunks = list(sample_in_chunks(sample, params, jax.random.key(0), n, 256, cond))
    draws = np.concatenate(chunks).reshape(DRAWS.value, *large.shape)

    print(
        f"{len(large)} held-out images, {DRAWS.value} samples of each, {options or 'run sampler'}"
    )
    print("| | to the large image | made small, to the small image | digits still right, % |")
    print("|---|---|---|---|")
    rows = {
        "the large image itself": large,
        "repeated pixels": small,
        "bicubic": bicubic(small, factor),
        "samples": draws,
        "mean of the samples": draws.mean(axis=0),
    }
    for name, found in rows.items():
        found = found.reshape(-1, *large.shape)
        squares = (found - large) ** 2, (_small(found, factor) - small) ** 2
        cells = [rms(s.mean(axis=0) ** 0.5, np.zeros_like(large)) for s in squares]
        classes = digits_quality.classifier().predict(found.reshape(-1, large[0].size))
        right = 100 * np.mean(classes == np.tile(labels, len(found)))
        measured = " | ".join(f"{root:.3f} ± {error:.3f}" for root, error in cells)
        print(f"| {name} | {measured} | {right:.1f} |")
    deviation = draws.std(axis=0, ddof=1)
    print(f"RMS deviation of a pixel between samples: {rms(deviation, 0 * deviation)[0]:.3f}")
    if OUT.value:
        rows = np.concatenate([small[None], draws[:SHOWN_DRAWS], large[None]])[:, :SHOWN]
        cells = to_uint8(rows.reshape(-1, *large.shape[1:]))
        labels = ["given", *["sample"] * (len(rows) - 2), "original"]
        picture = grids.make_grid(cells, columns=SHOWN, side=32, row_labels=labels)
        grids.save_png(pathlib.Path(OUT.value), picture)


def _small(images: np.ndarray, factor: int) -> np.ndarray:
    """Return images [k, N, H, W, C] made small, and enlarged again by repeating pixels."""
    flat = jnp.asarray(images.reshape(-1, *images.shape[2:]))
    return np.asarray(coarse(flat, factor)).reshape(images.shape)


if __name__ == "__main__":
    command.run(main)
