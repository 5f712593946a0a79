"""Novel views of a run: drawn one after the other, and compared with the true views.

`compare` gives each method one view of every held-out object and asks for some others:

    given view copied                  the given view itself, whatever the camera
    mean training image                the same picture for every question
    regression                         a run that predicts the mean of the views that fit
    without stochastic conditioning    every view is drawn from the given one
    with stochastic conditioning       each view is drawn from the given one and those drawn before

The figures are PSNR (`pixels.psnr`) and SSIM (`evaluation.similarity`). The error is the standard
error over the objects, each with the mean over its views. It does not include the variance of the
training.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import novel_views
from ddpm_jax.data import Dataset, Views
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.distances import Estimate, standard_error
from ddpm_jax.evaluation.similarity import SIDE, ssim
from ddpm_jax.pixels import psnr, to_uint8, to_x_0
from ddpm_jax.runs import Run
from ddpm_jax.runtime.progress import Progress, silent
from ddpm_jax.sampling import sample_in_chunks
from ddpm_jax.scenes.cameras import Camera
from ddpm_jax.types import PRNGKey

NUM_MEAN = 1024  # training images; their mean is a baseline
BASELINES = ("given view copied", "mean training image")


class Questions(NamedTuple):
    """What `compare` asks: for each of n objects, one view and m others.

    Attributes:
      given: [n, H, W, C] uint8.
      given_camera: [n].
      asked: [n, m, H, W, C] uint8, the true views.
      asked_camera: [n, m].
    """

    given: np.ndarray
    given_camera: Camera
    asked: np.ndarray
    asked_camera: Camera


class Method(NamedTuple):
    """The figures of a method; `images` are its answers [n, m, H, W, C] uint8."""

    psnr: Estimate
    ssim: Estimate | None
    images: np.ndarray


def camera_of(views: Views, indices: np.ndarray) -> Camera:
    """Return the cameras of some images: [*indices.shape]."""
    return Camera(views.pose[indices], views.focal[indices], views.centre[indices])


def views_of(views: Views, number: int) -> np.ndarray:
    """Return the indices of the images of an object, from the lowest camera to the highest.

    The order of the records would be another one on every machine.

    Args:
      views: the cameras of all images.
      number: the object.
    """
    (own,) = np.nonzero(views.object == number)
    return own[np.lexsort(views.pose[own, :3, 3].T)]


def questions(dataset: Dataset, num_objects: int, num_asked: int) -> Questions:
    """Return questions about held-out objects, with the views of each in a random order.

    The objects are evenly spaced in their order, which is that of the classes. The views depend on
    the data only.

    Args:
      dataset: the data of the run.
      num_objects: n at most; 0 is all objects.
      num_asked: m, the other views of each object.

    Raises:
      UserError: no images are held out, or an object has too few views.
    """
    if dataset.test is None or dataset.test_views is None:
        raise UserError("novel views are compared on held-out objects; set data.test_split")
    views = dataset.test_views
    indices, objects = [], np.unique(views.object)
    n = min(num_objects or len(objects), len(objects))
    for found in objects[np.linspace(0, len(objects) - 1, n).astype(int)]:
        own = views_of(views, found)
        if len(own) < num_asked + 1:
            raise UserError(
                f"object {found} has {len(own)} views, but one given and {num_asked} asked are "
                f"needed; ask for at most {len(own) - 1}"
            )
        random = np.random.default_rng(int(found))
        indices.append(random.permutation(own)[: num_asked + 1])
    rows = np.array(indices)  #                                                    [n, 1 + m]
    images, _ = dataset.test.read(rows.ravel())
    images = images.reshape(*rows.shape, *images.shape[1:])
    first, others = rows[:, 0], rows[:, 1:]
    return Questions(images[:, 0], camera_of(views, first), images[:, 1:], camera_of(views, others))


def draw_in_turn(
    run: Run,
    sample: Callable,
    key: PRNGKey,
    given: np.ndarray,
    given_camera: Camera,
    asked: Camera,
    *,
    stochastic: bool = True,
    what: str = "drawing views",
    progress: Progress = silent,
) -> np.ndarray:
    """Draw m views of n objects, one after the other: [n, m, H, W, C] uint8.

    Args:
      run: a run of novel views.
      sample: `run.sample_fn(cond_at=novel_views.random_view)`.
      key: one key; view j of image i has its own.
      given: [n, H, W, C] uint8, the view of each object that is known.
      given_camera: [n], its camera.
      asked: [n, m], the cameras of the views to draw, in this order.
      stochastic: whether each view is drawn from all views so far; otherwise from the given one.
      what: the words for `progress`, which receives the number of views that are drawn.
    """
    n, m = asked.focal.shape
    views = np.zeros((n, m, *given.shape[1:]), np.float32)  # the given one, and all but the last
    views[:, 0] = to_x_0(given)
    cameras = Camera(
        *(
            np.concatenate([np.asarray(first)[:, None], np.asarray(others)[:, : m - 1]], axis=1)
            for first, others in zip(given_camera, asked, strict=True)
        )
    )
    drawn = []
    progress(what, 0, n * m)
    for j in range(m):
        count = np.full(n, 1 + j if stochastic else 1, np.int32)
        target = Camera(*(np.asarray(part)[:, j] for part in asked))
        cond = novel_views.conditioning(jnp.asarray(views), jnp.asarray(count), target, cameras)
        chunks = sample_in_chunks(
            sample, run.params, jax.random.fold_in(key, j), n, run.config.sample.chunk_size, cond
        )
        images = []
        for chunk in chunks:
            images.append(to_uint8(chunk))
            progress(what, n * j + sum(map(len, images)), n * m)
        drawn.append(np.concatenate(images))
        if j + 1 < m:
            views[:, j + 1] = to_x_0(drawn[-1])
    return np.stack(drawn, axis=1)


def compare(
    run: Run,
    dataset: Dataset,
    asked: Questions,
    *,
    regression: Run | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Method]:
    """Return the figures of every method by its name, as the module explains.

    Args:
      run: a run of novel views.
      dataset: its data.
      asked: the questions.
      regression: a run of a regression network, or None.
      seed: seed of the samples.
      progress: receives the number of views that are drawn.
    """
    shape, key = asked.asked.shape, jax.random.key(seed)
    some = np.random.default_rng(0).permutation(len(dataset.train))[:NUM_MEAN]
    mean = np.round(dataset.train.read(some)[0].mean(axis=0)).astype(np.uint8)
    simple = np.broadcast_to(asked.given[:, None], shape), np.broadcast_to(mean, shape)
    answers: dict[str, np.ndarray] = dict(zip(BASELINES, simple, strict=True))
    own = run, run.sample_fn(cond_at=novel_views.random_view)
    drawn = {"without stochastic conditioning": (*own, False)}
    drawn["with stochastic conditioning"] = (*own, True)
    if regression is not None:
        other = regression.sample_fn(cond_at=novel_views.random_view)
        drawn = {"regression": (regression, other, False)} | drawn
    for name, (drawer, sample, stochastic) in drawn.items():
        answers[name] = draw_in_turn(
            drawer,
            sample,
            key,
            asked.given,
            asked.given_camera,
            asked.asked_camera,
            stochastic=stochastic,
            what=f"drawing views: {name}",
            progress=progress,
        )
    return {name: _measured(images, asked.asked) for name, images in answers.items()}


def _measured(images: np.ndarray, truth: np.ndarray) -> Method:
    """Return the figures of answers [n, m, H, W, C] uint8; SSIM is None for images that are small.

    An answer that equals the truth has the PSNR of half a grey level, which keeps the mean finite.
    """
    n, m, *shape = truth.shape
    flat = images.reshape(n * m, *shape), truth.reshape(n * m, *shape)

    def over_objects(values: np.ndarray) -> Estimate:
        means = values.reshape(n, m).mean(axis=1)
        return Estimate(float(means.mean()), standard_error(means))

    decibels = np.asarray(psnr(*map(to_x_0, flat)))
    found = over_objects(np.minimum(decibels, 20 * np.log10(2 * 255)))
    similar = over_objects(ssim(*flat)) if min(shape[:2]) >= SIDE else None
    return Method(found, similar, images)
