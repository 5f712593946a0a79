"""Edit images with a trained run.

    python -m experiments.edit --workdir=runs/digits --edit=inpaint

  --edit=inpaint      Keep one part of each image and draw the rest with RePaint. --mask gives the
                      part to keep: left, center, or a file (PNG, or .npz with `mask`). A file is
                      light where the image is kept.
  --edit=interpolate  Go from one image to another in --frames images. The two images are mixed at
                      the timestep --depth.
  --edit=sdedit       Add noise up to the timestep --depth, and denoise from there. Several depths
                      are possible: --depth=100,250.

The images are held-out images of the run, or those of --images: a PNG, or an .npz with `images`,
uint8 [n, H, W, C], as `experiments.sample` writes it. The program writes a grid (PNG) with one row
per image and the given images at the left. Labels above the columns say what is shown: #1, #2 are
results, 25% is the part of the second image, t=100 is the depth. The program also writes an .npz
with the edited `images`, uint8 [n, k, H, W, C], where k is the number of results per image, and
`settings`, a string of JSON. The names of the files say what differs from the defaults.
"""

import dataclasses
import functools
import zipfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import Image, UnidentifiedImageError

from ddpm_jax import build, data, editing, runs
from ddpm_jax.build import latents
from ddpm_jax.data import images as pictures
from ddpm_jax.errors import UserError
from ddpm_jax.figures import grids
from ddpm_jax.pixels import to_uint8, to_x_0
from ddpm_jax.randomness import MAX_SEED, image_keys
from ddpm_jax.runs.workdir import warn_if_changed
from ddpm_jax.runtime import rows
from ddpm_jax.runtime.files import absolute
from ddpm_jax.runtime.progress import Progress
from experiments import command, outputs
from experiments.progress import ProgressLine, chunk_size

WORKDIR = flags.DEFINE_string("workdir", None, "Work directory of the trained run.", required=True)
EDIT = flags.DEFINE_enum(
    "edit",
    None,
    ["inpaint", "interpolate", "sdedit"],
    "Kind of edit, explained above.",
    required=True,
)
IMAGES = flags.DEFINE_string(
    "images", None, "File of the images to edit, PNG or .npz. Default: the run's held-out images."
)
N = flags.DEFINE_integer(
    "n", 8, "Number of images to edit, or of pairs to interpolate.", lower_bound=1
)
MASK = flags.DEFINE_string(
    "mask",
    "left",
    "For inpaint: the part of the image to keep. left: the left half; center: all but the centre; "
    "or a PNG or .npz that is light where the image is kept.",
)
DEPTH = flags.DEFINE_list(
    "depth",
    None,
    "For interpolate and sdedit: timestep in 1..T up to which noise is added. sdedit takes one or "
    "several, separated by commas. Default: T/2.",
)
FRAMES = flags.DEFINE_integer(
    "frames", 9, "For interpolate: number of mixed images per pair.", lower_bound=2
)
MIX = flags.DEFINE_enum(
    "mix",
    "lerp",
    sorted(editing.MIXES),
    "For interpolate: mix the noisy images linearly (lerp) or along a sphere (slerp).",
)
DRAWS = flags.DEFINE_integer("draws", 4, "For inpaint: number of results per image.", lower_bound=1)
RESAMPLES = flags.DEFINE_integer(
    "num_resamples", 10, "For inpaint: how often RePaint repeats each jump; 1 is no resampling."
)
JUMP = flags.DEFINE_integer(
    "jump_length", 10, "For inpaint: number of sampling steps in one jump of RePaint."
)
LABEL = flags.DEFINE_integer(
    "label",
    None,
    "For a class-conditional model: class of all images, from 0 on. Default: the null class.",
)
NUM_STEPS = flags.DEFINE_integer(
    "num_steps",
    None,
    "Number of sampling steps from T to 0. Default: the run's own. The RePaint paper uses 250.",
    lower_bound=1,
)
SEED = flags.DEFINE_integer(
    "seed",
    0,
    "Random seed of the noise.",
    lower_bound=0,
    upper_bound=MAX_SEED,
)
STEP = flags.DEFINE_integer(
    "step", None, "Training step of the checkpoint to load. Default: the newest checkpoint."
)
OUT = flags.DEFINE_string(
    "out",
    None,
    "Path of the output files, or a directory for them. Default: <workdir>/samples.",
)


USES = {  # the options that not every edit uses
    "inpaint": ("mask", "draws", "num_resamples", "jump_length"),
    "interpolate": ("depth", "frames", "mix"),
    "sdedit": ("depth",),
}


def main() -> None:
    others = {name for names in USES.values() for name in names} - set(USES[EDIT.value])
    command.check_unused(sorted(others), f"--edit={EDIT.value}")
    steps = {} if NUM_STEPS.value is None else {"num_steps": NUM_STEPS.value}
    run = runs.open_run(WORKDIR.value, STEP.value, sample=steps)
    grid = build.grid(run.config.sample, run.process)
    depths = _depths(run.process.num_timesteps)
    label = _label(run)
    x_0 = _images(run)
    mask = None
    if EDIT.value == "inpaint":
        mask = _mask(x_0.shape)
        editing.resampling_grid(grid, RESAMPLES.value, JUMP.value)  # refuses what cannot be
    directory = absolute(WORKDIR.value) / "samples"
    out = outputs.stem(OUT.value, directory, _name(run, depths))
    with ProgressLine() as progress:
        given, edited = _edit(run, _editor(run, label, progress), grid, x_0, mask, depths)
    columns = [given[0], *edited, given[1]] if EDIT.value == "interpolate" else given + edited
    table = to_uint8(np.stack(columns, axis=1))
    picture = grids.make_grid(
        table.reshape(-1, *table.shape[2:]),
        columns=len(columns),
        side=32,
        column_labels=_column_labels(len(edited), depths),
    )
    arrays = {"images": to_uint8(np.stack(edited, axis=1))}
    outputs.write(out, OUT.value, picture, arrays, _settings(run, depths))


def _edit(
    run: runs.Run,
    edit: Callable,
    grid: np.ndarray,
    images: np.ndarray,
    mask: np.ndarray | None,
    depths: list[int],
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the given images and the edited ones, both as columns [n, H, W, C]."""
    x_0 = np.asarray(run.encode(images))
    if mask is not None:
        inpaint = functools.partial(
            editing.inpaint, num_resamples=RESAMPLES.value, jump_length=JUMP.value
        )
        kept = latents.grid_mask(run.codec, mask)
        k, masks = DRAWS.value, np.broadcast_to(kept, (*x_0.shape[:-1], 1))
        edited = edit("inpainting", inpaint, grid, np.arange(k), _tile(x_0, k), _tile(masks, k))
        return [images, np.where(mask, images, 0.0)], edited
    if EDIT.value == "interpolate":
        pairs = len(x_0) // 2
        given, ends = ([x[:pairs], x[pairs : 2 * pairs]] for x in (images, x_0))
        k = FRAMES.value
        weights = np.repeat(np.linspace(0, 1, k, dtype=np.float32), pairs)
        mix = functools.partial(editing.interpolate, mix=MIX.value)
        part = editing.from_depth(grid, depths[0])
        one_draw = np.zeros(k, np.int32)  # a series shares its noise
        ends = (_tile(end, k) for end in ends)
        return given, edit("interpolating", mix, part, one_draw, *ends, weights)
    edited = []
    for depth in depths:
        part, what = editing.from_depth(grid, depth), f"denoising from t = {depth}"
        edited += edit(what, editing.sdedit, part, np.zeros(1, np.int32), x_0)
    return [images], edited


def _column_labels(k: int, depths: list[int]) -> list[str]:
    """Return what the columns of the grid show."""
    if EDIT.value == "inpaint":
        return ["given", "kept", *(f"#{i + 1}" for i in range(k))]
    if EDIT.value == "interpolate":
        return ["given", *(f"{weight:.0%}" for weight in np.linspace(0, 1, k)), "given"]
    return ["given", *(f"t={depth}" for depth in depths)]


def _tile(images: np.ndarray, k: int) -> np.ndarray:
    """Return the images, repeated k times: [k * n, ...]."""
    return np.concatenate([images] * k)


def _editor(run: runs.Run, label: int | None, progress: Progress) -> Callable:
    """Return edit(what, function, grid, draws [k], x_0 [k * n, ...], *others) -> k arrays [n, ...].

    The key of an image depends on its draw and on its place among the n images. The images are
    computed in chunks of one size, and `progress` receives `what` with the number of those done.
    """
    sampler = build.sampler(run.config.sample, run.process)
    denoiser = build.denoiser(run.config, run.process, run.model)

    def edit(
        what: str, function: Callable, grid: np.ndarray, draws: np.ndarray, *arrays: np.ndarray
    ) -> list[np.ndarray]:
        total = len(arrays[0])
        n = total // len(draws)

        def run_all(params, each):
            keys, arrays = each
            cond = None
            if label is not None:
                cond = {"label": jnp.full(len(keys), label, jnp.int32)}
            denoise_fn = denoiser(params, cond)
            return function(run.process, sampler, denoise_fn, keys, *arrays, grid)

        draw_keys = image_keys(jax.random.key(SEED.value), draws)
        keys = jax.vmap(image_keys, (0, None))(draw_keys, np.arange(n))
        spread = rows.over_local_devices(run_all)
        size = chunk_size(total, run.config.sample.chunk_size)
        each, found = (keys.reshape(-1), arrays), []
        progress(what, 0, total)
        for start in range(0, total, size):
            part = jax.tree.map(lambda leaf, start=start: leaf[start : start + size], each)
            images = np.asarray(spread(run.params, rows.pad(part, size)))
            found.append(images[: total - start])
            progress(what, min(start + size, total), total)
        images = np.asarray(run.decode(np.concatenate(found)))
        return list(images.reshape(len(draws), n, *images.shape[1:]))

    return edit


def _depths(T: int) -> list[int]:
    """Return the timesteps of --depth."""
    given = DEPTH.value or [str(max(1, T // 2))]
    try:
        depths = [int(depth) for depth in given]
    except ValueError:
        depths = [0]
    if any(not 1 <= depth <= T for depth in depths):
        raise UserError(f"--depth must be timesteps in 1..{T} (T), found {','.join(given)}")
    if len(depths) > 1 and EDIT.value != "sdedit":
        raise UserError(f"--edit={EDIT.value} takes one --depth, found {','.join(given)}")
    return depths


def _label(run: runs.Run) -> int | None:
    """Return the network's class; -1 is the null class, None is for a model without classes."""
    if not run.config.model.class_conditional:
        if LABEL.value is not None:
            raise UserError(f"--label={LABEL.value} is given, but the model has no classes")
        return None
    if LABEL.value is not None and not 0 <= LABEL.value < run.facts.num_classes:
        raise UserError(f"--label must be in 0..{run.facts.num_classes - 1}, found {LABEL.value}")
    return -1 if LABEL.value is None else LABEL.value


def _images(run: runs.Run) -> np.ndarray:
    """Return the images to edit: [n, H, W, C] float32 in [-1, 1]."""
    n = 2 * N.value if EDIT.value == "interpolate" else N.value
    shape = run.facts.image_shape
    if IMAGES.value is None:
        dataset = data.open_dataset(run.config.data)
        warn_if_changed(absolute(WORKDIR.value), run.facts, dataset.digest)
        source = dataset.test or dataset.train
        images, _ = source.read(np.arange(min(n, len(source))))
    else:
        images = _read("images", IMAGES.value, shape[-1])
        images = images[None] if images.ndim == 3 else images[:n]
    if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
        raise UserError(
            f"--images={IMAGES.value} must hold uint8 images of {shape} (H, W, C), like the "
            f"training images; found {images.dtype} {images.shape[-3:]}"
        )
    if EDIT.value == "interpolate" and len(images) < 2:
        raise UserError(
            f"--edit=interpolate takes two images, but --images={IMAGES.value} has only 1"
        )
    return np.asarray(to_x_0(jnp.asarray(images)))


def _keep_left(height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width, 1), bool)
    mask[:, : width // 2] = True
    return mask


def _keep_all_but_the_centre(height: int, width: int) -> np.ndarray:
    mask = np.ones((height, width, 1), bool)
    mask[height // 4 : height - height // 4, width // 4 : width - width // 4] = False
    return mask


MASKS = {"left": _keep_left, "center": _keep_all_but_the_centre}


def _mask(shape: tuple[int, ...]) -> np.ndarray:
    """Return where images [n, H, W, C] are kept: bool [H, W, 1], or [n, H, W, 1]."""
    height, width = shape[1:3]
    if MASK.value in MASKS:
        return MASKS[MASK.value](height, width)
    if not absolute(MASK.value).is_file():
        raise UserError(
            f"--mask={MASK.value} is not one of {', '.join(MASKS)}, and there is no such file; a "
            "file (PNG or .npz) is light where the image is kept"
        )
    mask = _read("mask", MASK.value, channels=1)
    light = 127 if mask.dtype == np.uint8 and mask.max() > 1 else 0
    mask = (mask if mask.shape[-1] == 1 else mask[..., None]) > light
    if mask.shape[-3:-1] != (height, width) or mask.shape[:-3] not in ((), shape[:1]):
        raise UserError(
            f"--mask={MASK.value} must have {height}x{width} pixels like the images, "
            f"found shape {mask.shape}"
        )
    return mask


def _read(name: str, path: str, channels: int) -> np.ndarray:
    """Read the array `name` of an .npz, or a picture as uint8 [H, W, channels]."""
    file = absolute(path)
    try:
        if file.suffix == ".npz":
            with np.load(file) as arrays:
                return arrays[name]
        with Image.open(file) as image:
            return pictures.to_array(pictures.convert(image, channels))
    except KeyError:
        raise UserError(f"--{name}={path} has no array {name!r}") from None
    except (OSError, ValueError, UnidentifiedImageError, zipfile.BadZipFile) as error:
        raise UserError(f"--{name}={path} cannot be read: {error}") from error


def _options(depths: list[int]) -> dict[str, Any]:
    """Return the options that the chosen edit uses, and what they are."""
    values = flags.FLAGS.flag_values_dict() | {"depth": depths}
    return {name: values[name] for name in USES[EDIT.value]}


def _name(run: runs.Run, depths: list[int]) -> str:
    """Return the default name of the files: of two settings, two names."""
    options = _options(depths)
    words = []
    for name, value in options.items():
        if name == "depth":
            words.append("t" + "-".join(map(str, value)))
        elif value != flags.FLAGS[name].default:
            is_file = name == "mask" and value not in MASKS
            words.append(name + (outputs.file_word(value) if is_file else str(value)))
    return outputs.join(
        f"{EDIT.value}_step{run.step}_n{N.value}_seed{SEED.value}",
        None if IMAGES.value is None else outputs.file_word(IMAGES.value),
        *words,
        None if LABEL.value is None else f"label{LABEL.value}",
        None if NUM_STEPS.value is None else f"{NUM_STEPS.value}steps",
    )


def _settings(run: runs.Run, depths: list[int]) -> dict[str, Any]:
    """Return all that the edited images depend on."""
    return {
        "workdir": str(absolute(WORKDIR.value)),
        "step": run.step,
        "edit": EDIT.value,
        "images": IMAGES.value and str(absolute(IMAGES.value)),
        "n": N.value,
        "seed": SEED.value,
        "label": LABEL.value,
        "sample": dataclasses.asdict(run.config.sample),
        **_options(depths),
    }


if __name__ == "__main__":
    command.run(main)
