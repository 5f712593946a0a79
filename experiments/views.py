"""Draw novel views of an object from one image, with a trained run of model.name=xunet.

    python -m experiments.views --workdir=runs/solids_views

The program takes one image of a held-out object and draws the object from all around: the camera
moves around the vertical axis, as on a turntable. Each view is drawn from the given image and all
views before it (stochastic conditioning; Watson et al. 2022, section 3.1). It writes a strip (PNG)
with the given image at the left, a GIF, and an .npz with `images`, uint8 [n, H, W, C], and
`settings`, a string of JSON.

Other flags:

  --object=3 --view=2
      Take another held-out object, and another of its images.
  --image=cars_test/OBJECT/rgb/000000.png
      Take an image file in the layout of SRN: its pose and intrinsics.txt are read beside it.
  --evaluate
      Instead of a turntable, ask for --targets other views of each of --objects held-out objects.
      Print PSNR and SSIM of the drawn views, with and without stochastic conditioning, beside those
      of simple answers, and write them to <out>.json. The strip has one row for each method.
  --evaluate --regression=runs/solids_regression
      Compare with a run of the config solids_views.py:regression too.
  --evaluate --consistency --targets=15 --objects=16
      Fit a radiance field to three quarters of the views that each method draws of an object, and
      print its PSNR on the others. A field takes some seconds.
"""

import dataclasses
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from ddpm_jax import novel_views
from ddpm_jax.data import Dataset, open_dataset, srn
from ddpm_jax.data.images import decode
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.novel_views import (
    BASELINES,
    Questions,
    camera_of,
    compare,
    draw_in_turn,
    questions,
    views_of,
)
from ddpm_jax.figures import grids
from ddpm_jax.randomness import MAX_SEED
from ddpm_jax.runs import Run, open_run
from ddpm_jax.runs.workdir import open_for_reading, warn_if_changed
from ddpm_jax.runtime.files import absolute, replacing, to_json
from ddpm_jax.runtime.progress import Progress
from ddpm_jax.scenes.cameras import Camera, turned
from ddpm_jax.training.consistency import check_views, compare_consistency
from experiments import command, outputs
from experiments.progress import ProgressLine

WORKDIR = flags.DEFINE_string("workdir", None, "Work directory of the trained run.", required=True)
STEP = flags.DEFINE_integer(
    "step", None, "Training step of the checkpoint to load. Default: the newest checkpoint."
)
OBJECT = flags.DEFINE_integer(
    "object", 0, "Which of the held-out objects to draw, from 0 on.", lower_bound=0
)
VIEW = flags.DEFINE_integer(
    "view", 0, "Which image of the object is given, from 0 on.", lower_bound=0
)
IMAGE = flags.DEFINE_string(
    "image",
    None,
    "File of the given image in the layout of SRN, .../rgb/NAME.png, beside .../pose/NAME.txt and "
    ".../intrinsics.txt. Default: an image of the held-out objects.",
)
FRAMES = flags.DEFINE_integer(
    "frames", 12, "Number of views of the turntable, the given image included.", lower_bound=2
)
SEED = flags.DEFINE_integer(
    "seed", 0, "Random seed of the views.", lower_bound=0, upper_bound=MAX_SEED
)
NUM_STEPS = flags.DEFINE_integer(
    "num_steps", None, "Number of sampling steps. Default: the run's own.", lower_bound=1
)
GUIDANCE = flags.DEFINE_float(
    "guidance", None, "Weight w of classifier-free guidance; 0 is off. Default: the run's own."
)
EVALUATE = flags.DEFINE_bool(
    "evaluate", False, "Measure the views of held-out objects instead of drawing a turntable."
)
OBJECTS = flags.DEFINE_integer(
    "objects", 0, "For --evaluate: number of held-out objects; 0 is all.", lower_bound=0
)
TARGETS = flags.DEFINE_integer(
    "targets", 4, "For --evaluate: number of views that are asked of each object.", lower_bound=1
)
REGRESSION = flags.DEFINE_string(
    "regression",
    None,
    "For --evaluate: work directory of a regression network. Default: no regression.",
)
CONSISTENCY = flags.DEFINE_bool(
    "consistency", False, "For --evaluate: measure how consistent the views of an object are."
)
OUT = flags.DEFINE_string(
    "out",
    None,
    "Path of the output files, or a directory for them. Default: <workdir>/samples.",
)

SHOWN = 8  # objects in the picture of --evaluate
SIDE = 64  # pixels of an image in a picture


def main() -> None:
    start = time.perf_counter()
    other = ("object", "view", "image", "frames") if EVALUATE.value else ()
    command.check_unused(other or ("objects", "targets", "regression", "consistency"), _what())
    run = _open(WORKDIR.value, "workdir")
    workdir = open_for_reading(WORKDIR.value)
    regression = _open(REGRESSION.value, "regression") if REGRESSION.value else None
    dataset = None
    if IMAGE.value is None:
        dataset = open_dataset(run.config.data)
        warn_if_changed(workdir.root, run.facts, dataset.digest)
    out = outputs.stem(OUT.value, workdir.samples, _name(run))
    work = _evaluate if EVALUATE.value else _turntable
    with ProgressLine() as progress:
        picture, images, report = work(run, dataset, regression, progress)
    outputs.write(out, OUT.value, picture, {"images": images}, _settings(run))
    if EVALUATE.value:
        path = out.with_name(out.name + ".json")
        with replacing(path) as part:
            part.write_text(to_json(report | {"settings": _settings(run)}, indent=2))
        print(f"figures: {path}")
    else:
        path = out.with_name(out.name + ".gif")
        grids.save_gif(path, images, 0.2, SIDE)
        print(f"turntable: {path}")
    print(f"all this took {time.perf_counter() - start:.0f} s")


def _turntable(
    run: Run, dataset: Dataset | None, regression: Run | None, progress: Progress
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Draw the views of a turntable; return the strip and the views, the given one first."""
    given, camera = _of_file(run, str(IMAGE.value)) if dataset is None else _of_object(dataset)
    m = FRAMES.value - 1
    angles = 2 * np.pi * np.arange(1, m + 1, dtype=np.float32) / FRAMES.value
    poses = np.asarray(turned(jnp.asarray(camera.pose), angles))[None]
    repeated = (np.repeat(np.asarray(part), m, axis=0)[None] for part in camera[1:])
    sample = run.sample_fn(cond_at=novel_views.random_view)
    what = f"drawing views by {run.config.sample.sampler}"
    drawn = draw_in_turn(
        run,
        sample,
        jax.random.key(SEED.value),
        given[None],
        camera,
        Camera(poses, *repeated),
        what=what,
        progress=progress,
    )
    images = np.concatenate([given[None], drawn[0]])
    return grids.make_grid(images, columns=len(images), side=SIDE), images, {}


def _evaluate(
    run: Run, dataset: Dataset | None, regression: Run | None, progress: Progress
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Compare methods; return a picture of some answers, the answers and the figures."""
    assert dataset is not None
    if CONSISTENCY.value:
        check_views(1 + TARGETS.value, run.shape[-1])
    asked = questions(dataset, OBJECTS.value, TARGETS.value)
    found = compare(run, dataset, asked, regression=regression, seed=SEED.value, progress=progress)
    n, m = asked.asked.shape[:2]
    print(f"{n} held-out objects, {m} views asked of each from one given view; the errors are")
    print("standard errors over the objects")
    report: dict[str, Any] = {"objects": n, "targets": m, "checkpoint": run.step}
    for name, method in found.items():
        similar = method.ssim
        line = f"{name}: PSNR {method.psnr.value:.2f} ± {method.psnr.error:.2f} dB"
        if similar is not None:
            line += f", SSIM {similar.value:.3f} ± {similar.error:.3f}"
        print(line)
        report[name] = {"psnr": method.psnr._asdict()}
        report[name]["ssim"] = None if similar is None else similar._asdict()
    answers = {name: method.images for name, method in found.items()}
    if CONSISTENCY.value:
        drawn = {name: answers[name] for name in answers if name not in BASELINES}
        consistent = compare_consistency(asked, drawn, progress)
        print("PSNR of a radiance field on views that it was not fitted to:")
        for name, decibels in consistent.items():
            print(f"{name}: {decibels.value:.2f} ± {decibels.error:.2f} dB")
        report["consistency"] = {name: each._asdict() for name, each in consistent.items()}
    return _picture(asked, answers), np.stack(list(answers.values())), report


def _picture(asked: Questions, answers: dict[str, np.ndarray]) -> np.ndarray:
    """Return a grid: the given views, the true views, and the answers of each method."""
    rows = {"given": asked.given, "true": asked.asked[:, 0]}
    rows |= {name: images[:, 0] for name, images in answers.items()}
    n = len(asked.given)
    shown = np.linspace(0, n - 1, min(SHOWN, n)).astype(int)
    images = np.concatenate([images[shown] for images in rows.values()])
    return grids.make_grid(images, columns=len(shown), side=SIDE, row_labels=list(rows))


def _open(root: str, flag: str) -> Run:
    """Open a run of novel views with the sampler of the flags."""
    chosen = {"num_steps": NUM_STEPS.value, "guidance": GUIDANCE.value} if flag == "workdir" else {}
    sample = {name: value for name, value in chosen.items() if value is not None}
    run = open_run(root, STEP.value if flag == "workdir" else None, sample=sample)
    if run.config.model.name != "xunet":
        raise UserError(
            f"--{flag}={root} is a run of model.name={run.config.model.name}, but novel views need "
            "xunet; train one with experiments/solids_views.py"
        )
    return run


def _of_object(dataset: Dataset) -> tuple[np.ndarray, Camera]:
    """Return an image [H, W, C] uint8 of a held-out object, and its camera [1]."""
    if dataset.test is None or dataset.test_views is None:
        raise UserError("the run holds no objects out (data.test_split is ''); pass --image")
    objects = np.unique(dataset.test_views.object)
    if OBJECT.value >= len(objects):
        raise UserError(f"--object must be in 0..{len(objects) - 1}, found {OBJECT.value}")
    own = views_of(dataset.test_views, objects[OBJECT.value])
    if VIEW.value >= len(own):
        raise UserError(f"--view must be in 0..{len(own) - 1}, found {VIEW.value}")
    index = own[VIEW.value : VIEW.value + 1]
    return dataset.test.read(index)[0][0], camera_of(dataset.test_views, index)


def _of_file(run: Run, name: str) -> tuple[np.ndarray, Camera]:
    """Return the image [H, W, C] uint8 of --image, in the size of the run, and its camera [1]."""
    path, (side, _, channels) = absolute(name), run.shape
    try:
        image = decode(path.read_bytes(), side, channels)
    except (OSError, ValueError) as error:
        raise UserError(f"--image={name} cannot be read: {error}") from error
    pose = srn.read_pose(path.parents[1] / "pose" / f"{path.stem}.txt")
    focal, centre, width = srn.read_intrinsics(path.parents[1] / "intrinsics.txt")
    scale = side / width
    numbers = scale * np.array([focal], np.float32), scale * centre[None].astype(np.float32)
    return image, Camera(pose[None], *(part.astype(np.float32) for part in numbers))


def _what() -> str:
    return "--evaluate" if EVALUATE.value else "a turntable (without --evaluate)"


def _name(run: Run) -> str:
    """Return the default name of the files: of two settings, two names."""
    c = run.config.sample
    sampling = f"{c.sampler}{c.num_steps or ''}" + (f"_w{c.guidance:g}" if c.guidance else "")
    if EVALUATE.value:
        what = f"evaluation_objects{OBJECTS.value or 'all'}_targets{TARGETS.value}"
        if CONSISTENCY.value:
            what += "_consistency"
        if REGRESSION.value:
            what += f"_against_{absolute(REGRESSION.value).name}"
    else:
        what = f"object{OBJECT.value}_view{VIEW.value}_frames{FRAMES.value}"
        if IMAGE.value is not None:
            what = f"{outputs.file_word(IMAGE.value)}_frames{FRAMES.value}"
    return outputs.join("views", f"step{run.step}", what, f"seed{SEED.value}", sampling)


def _settings(run: Run) -> dict[str, Any]:
    """Return all that the images depend on."""
    names = "object", "view", "image", "frames", "seed", "objects", "targets", "regression"
    names += ("consistency",)
    chosen = {name: flags.FLAGS[name].value for name in names}
    sample = json.loads(json.dumps(dataclasses.asdict(run.config.sample)))
    return {"workdir": str(absolute(WORKDIR.value)), "step": run.step, "sample": sample} | chosen


if __name__ == "__main__":
    command.run(main)
