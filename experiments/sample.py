"""Draw samples from a trained run.

    python -m experiments.sample --workdir=runs/digits --n=64

The program uses the EMA weights and, by default, the sampler of the run's config. It writes a grid
of the images (PNG) and an .npz file. Their names say what differs from the run's own settings. The
.npz has `images`, uint8 [n, H, W, C], and `settings`, a string of JSON. It also has `labels` if the
model is class-conditional, and `lowres` if the model does super-resolution.

Other flags:

  --sampler=dpm_solver_pp_2m --num_steps=20
      Use another sampler: a row of SAMPLERS in ddpm_jax/build/sampling.py.
  --label=3 --guidance=1.5
      Draw one class, with classifier-free guidance of weight w = 1.5 (scale 2.5 in other codes).
  --text="a red heart" --guidance=3
      For a model of texts. Without --text, the model receives no text.
  --image=small.png
      For a super-resolution model: enlarge this image. Without --image, the program takes held-out
      images of the data set, makes them small, and enlarges them.
  --label=3 --classifier=runs/digits_classifier --classifier_scale=3
      Use classifier guidance.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from ddpm_jax.build.guidance import guidable
from ddpm_jax.config import Config
from ddpm_jax.data import open_dataset
from ddpm_jax.data.cond import coarse, cond_names
from ddpm_jax.data.images import decode
from ddpm_jax.errors import UserError
from ddpm_jax.figures import grids
from ddpm_jax.models import digest
from ddpm_jax.pixels import to_uint8, to_x_0
from ddpm_jax.pretrained import text_encoder
from ddpm_jax.randomness import MAX_SEED
from ddpm_jax.runs.open import Run, open_run, sample_of
from ddpm_jax.runs.workdir import (
    DatasetFacts,
    open_for_reading,
    read_config,
    read_facts,
    warn_if_changed,
)
from ddpm_jax.runtime.files import absolute
from ddpm_jax.runtime.progress import Progress
from ddpm_jax.sampling import sample_in_chunks
from ddpm_jax.types import Conditioning, Params
from experiments import command, outputs
from experiments.progress import ProgressLine, chunk_size

WORKDIR = flags.DEFINE_string("workdir", None, "Work directory of the trained run.", required=True)
N = flags.DEFINE_integer("n", 64, "Number of images to draw.", lower_bound=1)
SEED = flags.DEFINE_integer(
    "seed",
    0,
    "Random seed. Image i depends only on the seed and on i.",
    lower_bound=0,
    upper_bound=MAX_SEED,
)
STEP = flags.DEFINE_integer(
    "step", None, "Training step of the checkpoint to load. Default: the newest checkpoint."
)
LABEL = flags.DEFINE_integer(
    "label", None, "Class of all images, from 0 on. Default: the images take the classes in turn."
)
TEXT = flags.DEFINE_string(
    "text", None, "For a model of texts: the text that all images should show. Default: no text."
)
IMAGE = flags.DEFINE_string(
    "image",
    None,
    "For a super-resolution model: file of the small image to enlarge. Default: held-out images of "
    "the data set, made small.",
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
GUIDANCE = flags.DEFINE_float(
    "guidance", None, "Weight w of classifier-free guidance; 0 is off. Default: the run's own."
)
CLASSIFIER = flags.DEFINE_string(
    "classifier", None, "Work directory of a trained classifier. Default: no classifier guidance."
)
CLASSIFIER_SCALE = flags.DEFINE_float(
    "classifier_scale", None, "Scale of classifier guidance; needs --classifier. Default: 1."
)
OUT = flags.DEFINE_string(
    "out",
    None,
    "Path of the output files, or a directory for them. Default: <workdir>/samples.",
)


def main() -> None:
    workdir = open_for_reading(WORKDIR.value)
    config, facts = read_config(workdir), read_facts(workdir)
    chosen = {"sampler": SAMPLER, "num_steps": NUM_STEPS, "timesteps": TIMESTEPS}
    overrides = {name: flag.value for name, flag in chosen.items() if flag.value is not None}
    if GUIDANCE.value is not None:
        if GUIDANCE.value and not guidable(config.model):
            raise UserError(
                f"--guidance={GUIDANCE.value:g} is given, but the model has no classes or texts to "
                "guide to; leave out --guidance"
            )
        overrides["guidance"] = GUIDANCE.value
    scale = CLASSIFIER_SCALE.value
    if scale is not None and CLASSIFIER.value is None:
        raise UserError(f"--classifier_scale={scale:g} is given, but --classifier is missing")
    run = open_run(workdir.root, STEP.value, sample=overrides)
    sample, params = sample_of(run, CLASSIFIER.value, 1.0 if scale is None else scale)
    conditional = config.model.class_conditional or CLASSIFIER.value is not None
    labels = _labels(conditional, facts.num_classes)
    cond = {} if labels is None else {"label": labels}
    cond |= _text(config) | _images(config, facts)
    guided = config.sample.guidance if GUIDANCE.value is None else GUIDANCE.value
    if guided and config.model.name == "xunet":
        raise UserError(
            f"guidance is {guided:g}, but this program gives a model of novel views no view to "
            "guide to; use experiments.views, or --guidance=0"
        )
    if guided and not set(cond) - {"image"}:
        raise UserError(f"guidance is {guided:g}, but there is no text to guide to; add --text")
    out = outputs.stem(OUT.value, workdir.samples, _name(config, run, params))
    start = time.perf_counter()
    with ProgressLine() as progress:
        images = np.concatenate(list(_draw(sample, params, cond or None, run, progress)))
    seconds = time.perf_counter() - start

    arrays = {"images": images} if labels is None else {"images": images, "labels": labels}
    if "image" in cond:
        arrays["lowres"] = to_uint8(cond["image"])
    print(f"{N.value} images in {seconds:.1f} s (compilation included)")
    picture = grids.grid_of_labelled(images, _names(labels, facts), side=32)
    outputs.write(out, OUT.value, picture, arrays, _settings(run, params))


def _names(labels: np.ndarray | None, facts: DatasetFacts) -> list[str]:
    """Return the name of each image's class; all alike if the images have no classes."""
    if labels is None:
        return [""] * N.value
    names = facts.class_names or range(facts.num_classes)  # imported runs have no names
    return [str(names[label]) for label in labels]


def _draw(
    sample: Callable[..., Any],
    params: Params,
    cond: Conditioning | None,
    run: Run,
    progress: Progress,
) -> Iterator[np.ndarray]:
    """Yield the images in chunks, uint8, and report how many are drawn."""
    chosen, n, done = run.config.sample, N.value, 0
    steps = chosen.num_steps or run.process.num_timesteps
    what = f"drawing images by {chosen.sampler}, {steps} steps"
    progress(what, 0, n)
    size = chunk_size(n, chosen.chunk_size)
    for chunk in sample_in_chunks(sample, params, jax.random.key(SEED.value), n, size, cond):
        yield to_uint8(chunk)
        done += len(chunk)
        progress(what, done, n)


def _name(config: Config, run: Run, params: Params) -> str:
    """Return the default name of the files: of two settings, two names."""
    own, chosen = config.sample, run.config.sample
    return outputs.join(
        f"samples_step{run.step}_n{N.value}_seed{SEED.value}",
        *outputs.sampling_words(own, chosen),
        None if LABEL.value is None else f"label{LABEL.value}",
        None if TEXT.value is None else outputs.word(TEXT.value),
        None if IMAGE.value is None else outputs.file_word(IMAGE.value),
        None if CLASSIFIER.value is None else f"classifier-{digest(params['classifier'])}",
        None if CLASSIFIER_SCALE.value is None else f"scale{CLASSIFIER_SCALE.value}",
    )


def _settings(run: Run, params: Params) -> dict[str, Any]:
    """Return all that the images depend on."""
    classifier = None
    if CLASSIFIER.value is not None:
        classifier = {
            "workdir": str(absolute(CLASSIFIER.value)),
            "weights": digest(params["classifier"]),
            "scale": 1.0 if CLASSIFIER_SCALE.value is None else CLASSIFIER_SCALE.value,
        }
    return {
        "workdir": str(absolute(WORKDIR.value)),
        "step": run.step,
        "n": N.value,
        "seed": SEED.value,
        "label": LABEL.value,
        "text": TEXT.value,
        "image": IMAGE.value and str(absolute(IMAGE.value)),
        "classifier": classifier,
        "sample": dataclasses.asdict(run.config.sample),
    }


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
    """Return the entries of cond for --text, one row per image."""
    if TEXT.value is None:
        return {}
    if not config.data.text:
        raise UserError(
            f"--text={TEXT.value!r} is given, but the model takes no text (data.text is False)"
        )
    rows = text_encoder.conditioning([TEXT.value])
    return {k: np.repeat(v, N.value, axis=0) for k, v in rows.items() if k in cond_names(config)}


def _images(config: Config, facts: DatasetFacts) -> dict[str, np.ndarray]:
    """Return the small images as an entry of cond; their pixels are repeated to full size."""
    factor, (height, width, channels) = config.model.super_resolution, facts.image_shape
    if not factor:
        if IMAGE.value is not None:
            raise UserError(
                f"--image={IMAGE.value} is given, but the model does not do super-resolution "
                "(model.super_resolution is 0)"
            )
        return {}
    if IMAGE.value is None:
        dataset = open_dataset(config.data)
        warn_if_changed(absolute(WORKDIR.value), facts, dataset.digest)
        source = dataset.test or dataset.train
        pixels, _ = source.read(np.arange(N.value) % len(source))
        return {"image": np.asarray(coarse(to_x_0(jnp.asarray(pixels)), factor))}
    try:
        small = decode(absolute(IMAGE.value).read_bytes(), 0, channels)
    except (OSError, ValueError) as error:
        raise UserError(f"--image={IMAGE.value} cannot be read: {error}") from error
    if small.shape[:2] != (height // factor, width // factor):
        raise UserError(
            f"--image={IMAGE.value} must have {height // factor}x{width // factor} pixels, "
            f"found {small.shape[0]}x{small.shape[1]}"
        )
    large = np.asarray(to_x_0(jnp.asarray(small))).repeat(factor, axis=0).repeat(factor, axis=1)
    return {"image": np.repeat(large[None], N.value, axis=0)}


if __name__ == "__main__":
    command.run(main)
