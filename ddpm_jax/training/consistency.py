"""How well pictures of an object agree on one shape (Watson et al. 2022, 3D consistency score).

A radiance field is fitted to some of the pictures, by squared error. Its PSNR on the others says
how consistent they are. What the field cannot show lowers the PSNR too, so compare it with that of
true pictures. Blurred pictures are easy to predict: grey pictures are perfectly consistent.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpm_jax.config import OptimConfig
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.distances import Estimate, standard_error
from ddpm_jax.evaluation.novel_views import Questions
from ddpm_jax.models import radiance_field
from ddpm_jax.pixels import psnr, to_x_0
from ddpm_jax.runtime.progress import Progress, silent
from ddpm_jax.scenes import cameras
from ddpm_jax.scenes.cameras import Camera
from ddpm_jax.training.optimizer import make_optimizer
from ddpm_jax.types import Array, Params, PRNGKey

RESOLUTIONS = (8, 16, 32)
NUM_SAMPLES = 32  # along a ray
NUM_STEPS = 200
NUM_RAYS = 1024  # in a step
OPTIM = OptimConfig(learning_rate=0.1, warmup_steps=0, decay="cosine", clip_norm=0.0)
ALBEDOS = (0.0, 1.0)


def fit(colours: Array, origins: Array, directions: Array) -> Params:
    """Return the grids of a radiance field that shows these colours.

    Args:
      colours: [N, 3] float in [-1, 1].
      origins, directions: [N, 3] float, the rays.
    """
    optimizer = make_optimizer(OPTIM, NUM_STEPS)

    def loss(params: Params, key: PRNGKey) -> Array:
        which_key, place_key = jax.random.split(key)
        i = jax.random.randint(which_key, (NUM_RAYS,), 0, len(colours))
        found = _colour(params, origins[i], directions[i], place_key)
        return jnp.square(found - colours[i]).mean()

    def step(number: Array, carry: tuple[Params, Any]) -> tuple[Params, Any]:
        params, moments = carry
        gradient = jax.grad(loss)(params, jax.random.fold_in(jax.random.key(0), number))
        moves, moments = optimizer.update(gradient, moments, params)
        return optax.apply_updates(params, moves), moments

    params = radiance_field.init(RESOLUTIONS, 1.0, -3.5)
    return jax.lax.fori_loop(0, NUM_STEPS, step, (params, optimizer.init(params)))[0]


@functools.partial(jax.jit, static_argnames="num_fitted")
def score(images: Array, camera: Camera, num_fitted: int) -> Array:
    """Return the PSNR of a field on the views that it was not fitted to: [m - num_fitted], in dB.

    Args:
      images: [m, H, W, 3] float in [-1, 1], views of one object.
      camera: [m].
      num_fitted: the field is fitted to this number of views, the first ones.
    """
    origins, directions = cameras.rays(camera, *images.shape[1:3])
    rays = images, origins, directions
    params = fit(*(part[:num_fitted].reshape(-1, 3) for part in rays))
    found = _colour(params, origins[num_fitted:], directions[num_fitted:], None)
    return psnr(found, images[num_fitted:])


def check_views(m: int, channels: int) -> None:
    """Raise `UserError` if an object has fewer than 4 views, or they have no colours."""
    if m < 4 or channels != 3:
        raise UserError(
            "the consistency is measured on at least 4 views with 3 channels, the given one "
            f"included; found {m} with {channels}"
        )


def consistency(
    images: np.ndarray,
    camera: Camera,
    *,
    what: str = "consistency",
    progress: Progress = silent,
) -> np.ndarray:
    """Return the mean `score` of each object, fitted to the first three quarters of its views: [n].

    Args:
      images: [n, m, H, W, 3] uint8, m views of n objects, at least 4.
      camera: [n, m].
      what: the words for `progress`, which receives the number of objects that are done.

    Raises:
      UserError: see `check_views`.
    """
    n, m, *_, channels = images.shape
    check_views(m, channels)
    found = np.zeros(n)
    progress(what, 0, n)
    for i in range(n):
        own = Camera(*(jnp.asarray(part[i]) for part in camera))
        found[i] = score(to_x_0(images[i]), own, 3 * m // 4).mean()
        progress(what, i + 1, n)
    return found


def compare_consistency(
    asked: Questions, answers: dict[str, np.ndarray], progress: Progress = silent
) -> dict[str, Estimate]:
    """Return how consistent the views of each method are (`consistency`), and the true ones, in dB.

    Args:
      asked: the questions.
      answers: {method: [n, m, H, W, C] uint8}; the given view joins them.
      progress: receives the number of objects that are done.

    Raises:
      UserError: there are too few views, or they have no colours.
    """
    pairs = zip(asked.given_camera, asked.asked_camera, strict=True)
    camera = Camera(*(np.concatenate([one[:, None], other], axis=1) for one, other in pairs))
    found = {}
    for name, images in ({"true views": asked.asked} | answers).items():
        views = np.concatenate([asked.given[:, None], images], axis=1)
        each = consistency(
            views, camera, what=f"fitting radiance fields: {name}", progress=progress
        )
        found[name] = Estimate(float(each.mean()), standard_error(each))
    return found


def _colour(params: Params, origins: Array, directions: Array, key: PRNGKey | None) -> Array:
    picture = radiance_field.render(
        params, origins, directions, num_samples=NUM_SAMPLES, albedos=ALBEDOS, key=key
    )
    return 2.0 * picture.colour - 1.0
