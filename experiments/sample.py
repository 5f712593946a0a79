"""Sample from a trained run: python -m experiments.sample --workdir=runs/digits --n=64

Writes a grid (PNG) and the images (.npz: `images` uint8 [n, H, W, C], `labels` where the model is
class-conditional, `lowres` where it makes images larger), of the EMA weights, with the sampler of
the run's config.

  --sampler=dpm_solver_pp_2m --num_steps=20    another sampler, of those in config.sample.sampler
  --label=3 --guidance=1.5     one class, guided to with w = 1.5 (other codes' scale 2.5)
  --text="a red heart" --guidance=3    of a model that takes texts; without --text it is told none
  --image=small.png            of a model that makes images larger: from this small image; without,
                               from the held-out images of its data, made small
  --label=3 --classifier=runs/digits_classifier --classifier_scale=3    guided by a classifier
"""

import os
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from ddpm_jax import runs
from ddpm_jax.build.guidance import guidable
from ddpm_jax.config import Config
from ddpm_jax.data import open_dataset
from ddpm_jax.data.cond import coarse, cond_names
from ddpm_jax.data.images import decode
from ddpm_jax.errors import UserError
from ddpm_jax.figures import grids
from ddpm_jax.pixels import to_uint8, to_x_0
from ddpm_jax.pretrained import text_encoder
from ddpm_jax.runs.workdir import open_for_reading, read_config, read_facts
from ddpm_jax.sampling import sample_in_chunks
from experiments import command

WORKDIR = flags.DEFINE_string("workdir", None, "Work directory of a training.")
N = flags.DEFINE_integer("n", 64, "Number of images.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Seed; image i depends on the seed and i alone.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint; the newest if unset.")
LABEL = flags.DEFINE_integer("label", None, "Class of all images; unset goes through the classes.")
TEXT = flags.DEFINE_string("text", None, "What all images shall show; none if unset.")
IMAGE = flags.DEFINE_string("image", None, "Small image to make larger; held-out ones if unset.")
SAMPLER = flags.DEFINE_string("sampler", None, "Sampler; the run's if unset.")
NUM_STEPS = flags.DEFINE_integer("num_steps", None, "Steps of it; the run's if unset.")
TIMESTEPS = flags.DEFINE_string("timesteps", None, "Where they are; the run's if unset.")
GUIDANCE = flags.DEFINE_float("guidance", None, "Classifier-free weight w; the run's if unset.")
CLASSIFIER = flags.DEFINE_string("classifier", None, "Work directory of a classifier to guide by.")
CLASSIFIER_SCALE = flags.DEFINE_float(
    "classifier_scale", None, "Scale of --classifier; 1 if unset."
)
OUT = flags.DEFINE_string("out", None, "Output path without suffix; in <workdir>/samples if unset.")
flags.mark_flag_as_required("workdir")


def main() -> None:
    workdir = open_for_reading(WORKDIR.value)
    config, facts = read_config(workdir), read_facts(workdir)
    chosen = {"sampler": SAMPLER, "num_steps": NUM_STEPS, "timesteps": TIMESTEPS}
    overrides = {name: flag.value for name, flag in chosen.items() if flag.value is not None}
    if GUIDANCE.value is not None:
        if GUIDANCE.value and not guidable(config.model):
            raise UserError(
                f"--guidance={GUIDANCE.value:g} is given, but the model has no classes to guide to"
            )
        overrides["guidance"] = GUIDANCE.value
    scale = CLASSIFIER_SCALE.value
    if scale is not None and CLASSIFIER.value is None:
        raise UserError(f"--classifier_scale={scale:g} is given, but no --classifier")
    sample, params = runs.load(
        workdir.root,
        STEP.value,
        sample=overrides,
        classifier=CLASSIFIER.value,
        classifier_scale=1.0 if scale is None else scale,
    )
    conditional = config.model.class_conditional or CLASSIFIER.value is not None
    labels = _labels(conditional, facts.num_classes)
    cond = {} if labels is None else {"label": labels}
    cond |= _text(config) | _images(config, facts.image_shape)
    guided = config.sample.guidance if GUIDANCE.value is None else GUIDANCE.value
    if guided and not set(cond) - {"image"}:
        raise UserError(f"guidance of {guided:g} is asked for, but nothing to guide to; add --text")
    start = time.perf_counter()
    chunks = sample_in_chunks(
        sample,
        params,
        jax.random.key(SEED.value),
        N.value,
        config.sample.chunk_size,
        cond or None,
    )
    images = np.concatenate([to_uint8(chunk) for chunk in chunks])
    seconds = time.perf_counter() - start

    out = pathlib.Path(OUT.value or workdir.samples / f"samples_n{N.value}_seed{SEED.value}")
    png, npz = (out.with_name(out.name + suffix) for suffix in (".png", ".npz"))
    try:
        grids.save_png(png, grids.make_grid(images, side=32))
        arrays = {"images": images} if labels is None else {"images": images, "labels": labels}
        if "image" in cond:
            arrays["lowres"] = to_uint8(cond["image"])
        np.savez(npz, **arrays)
    except OSError as error:
        raise UserError(f"--out={out} cannot be written ({error.strerror})") from error
    print(f"{N.value} images in {seconds:.1f} s (compilation included)")
    print(f"grid: {png}{os.linesep}images: {npz}")


def _labels(conditional: bool, num_classes: int) -> np.ndarray | None:
    """Return the class of each image, int32 [n], or None for an unconditional model."""
    if not conditional:
        if LABEL.value is not None:
            raise UserError(f"--label={LABEL.value} is given, but the model has no classes")
        return None
    if LABEL.value is None:
        return np.arange(N.value, dtype=np.int32) % num_classes
    if not 0 <= LABEL.value < num_classes:
        raise UserError(f"--label must be in 0..{num_classes - 1}, found {LABEL.value}")
    return np.full(N.value, LABEL.value, np.int32)


def _text(config: Config) -> dict[str, np.ndarray]:
    """Return the entries of cond that tell the model --text, for each image."""
    if TEXT.value is None:
        return {}
    if not config.data.text:
        raise UserError(
            f"--text={TEXT.value!r} is given, but the model takes no text (data.text is False)"
        )
    rows = text_encoder.conditioning([TEXT.value])
    return {k: np.repeat(v, N.value, axis=0) for k, v in rows.items() if k in cond_names(config)}


def _images(config: Config, image_shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Return the small images as an entry of cond, repeated to the model's own size."""
    factor, (height, width, channels) = config.model.super_resolution, image_shape
    if not factor:
        if IMAGE.value is not None:
            raise UserError(
                f"--image={IMAGE.value} is given, but the model does not make images larger "
                "(model.super_resolution is 0)"
            )
        return {}
    if IMAGE.value is None:
        dataset = open_dataset(config.data)
        source = dataset.test or dataset.train
        pixels, _ = source.read(np.arange(N.value) % len(source))
        return {"image": np.asarray(coarse(to_x_0(jnp.asarray(pixels)), factor))}
    try:
        small = decode(pathlib.Path(IMAGE.value).read_bytes(), 0, channels)
    except (OSError, ValueError) as error:
        raise UserError(f"--image={IMAGE.value} cannot be read: {error}") from error
    if small.shape[:2] != (height // factor, width // factor):
        raise UserError(
            f"--image={IMAGE.value} must be of {height // factor}x{width // factor} pixels, "
            f"found {small.shape[0]}x{small.shape[1]}"
        )
    large = np.asarray(to_x_0(jnp.asarray(small))).repeat(factor, axis=0).repeat(factor, axis=1)
    return {"image": np.repeat(large[None], N.value, axis=0)}


if __name__ == "__main__":
    command.run(main)
