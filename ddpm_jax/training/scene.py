"""Grow a radiance field from a diffusion model alone (DreamFusion: Poole et al. 2022).

In each step, random cameras see the field x = g(θ) under random lights. With weights λ,

    L = L_SDS(x; y_view) + λ_o Σ_pixels √(opacity² + 0.01) + λ_n Σ_pixels Σ_i w_i max(0, n_i · d)²

L_SDS is that of `ddpm_jax.distillation`, with noise in pairs ε and -ε. The condition y_view names
the class and the view that the camera sees (`scenes.sides`). Some pictures show the albedo without
a light. The others are shaded, some of them without colours (Poole et al. 2022, section 3.2). The
first steps light all surfaces alike and leave out the term of the normals n_i. In a fog, normals
turn to imitate colours. A step is a function of the state, the key and its number, so a resumed
field is the same field, bit for bit.

Deviates from Poole et al. 2022: the field is a grid of voxels, the background is the white of the
training images instead of a learned one, and the cameras have one distance.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpm_jax import distillation
from ddpm_jax.config import Config, OptimConfig
from ddpm_jax.config_checks import (
    ANY,
    COUNT,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    Range,
    check_section,
)
from ddpm_jax.data import solids
from ddpm_jax.data.cond import cond_names
from ddpm_jax.errors import UserError, look_up
from ddpm_jax.guidance import Denoiser
from ddpm_jax.models import radiance_field
from ddpm_jax.models.radiance_field import Picture
from ddpm_jax.pretrained import text_encoder
from ddpm_jax.process import GaussianProcess
from ddpm_jax.randomness import image_keys
from ddpm_jax.runtime import compiler
from ddpm_jax.scenes import cameras, sides
from ddpm_jax.scenes.solids import AMBIENT
from ddpm_jax.training.optimizer import make_optimizer
from ddpm_jax.types import Array, Conditioning, Params, PRNGKey


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a field is grown; the section `field` of a config."""

    resolutions: tuple[int, ...] = (8, 16, 32)  # points along a side of each grid of voxels
    num_samples: int = 32  # samples along a ray
    blob: float = 1.0  # slope of u before training; the density is softplus(u)
    offset: float = -3.5  # added to u: light passes through the field before training
    num_steps: int = 450  # optimisation steps
    batch_size: int = 4  # cameras in a step
    learning_rate: float = 0.03  # of Adam, of the first step; a cosine to 0
    colour_rate: float = 0.1  # of the learning rate, for the albedo
    guidance: float = 1.0  # weight w of classifier-free guidance; above 1 colours become black
    # no guidance above this fraction of T: there it moves the mean shape of the class out of place
    guidance_high: float = 0.65
    weighting: str = "x_0_error"  # w(t), a row of WEIGHTINGS
    t_range: tuple[float, ...] = (0.5, 0.92)  # of T, the timesteps of the noise in the first step
    t_range_end: tuple[float, ...] = (0.2, 0.55)  # in the last step; both ends fall linearly
    shaded: float = 1.0  # fraction of the pictures that are shaded; the others show the albedo
    colourless: float = 0.5  # fraction of the shaded pictures that show no colours
    # fraction of the steps, the first ones, that light all surfaces alike: a fog has no surface yet
    flat_until: float = 0.35
    opacity_weight: float = 0.005  # keeps empty space empty; at 0.02 thin parts stay a haze
    normal_weight: float = 0.01  # weight of visible normals that point away from the camera
    checkpoint_every: int = 200  # steps between states that are kept
    num_seeds: int = 1  # fields of each class and arm: the seeds 0, 1, ...


@dataclasses.dataclass(frozen=True)
class JudgeSettings:
    """The settings of the classifier that judges fields; the section `judge` of a config."""

    channels: int = 32  # channels of the first convolution
    num_steps: int = 1500  # training steps
    batch_size: int = 64  # images in a step
    learning_rate: float = 2e-3  # of the first step; a cosine to 0


RANGES = {
    "field.resolutions": Range("[)", 2),
    "field.num_samples": COUNT,
    "field.blob": NOT_NEGATIVE,
    "field.offset": ANY,
    "field.num_steps": COUNT,
    "field.batch_size": COUNT,
    "field.learning_rate": POSITIVE,
    "field.colour_rate": NOT_NEGATIVE,
    "field.guidance": NOT_NEGATIVE,
    "field.guidance_high": FRACTION,
    "field.t_range": FRACTION,
    "field.t_range_end": FRACTION,
    "field.shaded": FRACTION,
    "field.colourless": FRACTION,
    "field.flat_until": FRACTION,
    "field.opacity_weight": NOT_NEGATIVE,
    "field.normal_weight": NOT_NEGATIVE,
    "field.checkpoint_every": COUNT,
    "field.num_seeds": COUNT,
}
WEIGHTINGS = {
    "sigma_squared": distillation.sigma_squared,
    "uniform": distillation.uniform,
    "x_0_error": distillation.x_0_error,
}
JUDGE_RANGES = {
    "judge.channels": COUNT,
    "judge.num_steps": COUNT,
    "judge.batch_size": COUNT,
    "judge.learning_rate": POSITIVE,
}


class Arm(NamedTuple):
    """A way to grow fields; a row of `ARMS`.

    Attributes:
      views: the condition names the view that the camera sees.
      grown: False leaves the field as it is before the first step.
    """

    views: bool = True
    grown: bool = True


ARMS = {
    "views": Arm(),
    "no_views": Arm(views=False),
    "not_grown": Arm(grown=False),
}


class State(NamedTuple):
    """A field that grows.

    Attributes:
      params: its grids.
      moments: the state of the optimiser.
    """

    params: Params
    moments: Any


class Grower(NamedTuple):
    """How fields grow from one prior. All fields share one compiled step.

    Attributes:
      init: () -> the state before the first step; it is the same for every seed.
      step: (state, prior, rows, key, number) -> the state after the step. `prior` are the weights
        of the prior, `rows` the conditions (`rows_of`), `number` that of the step. The old state
        must not be used again.
    """

    init: Callable[[], State]
    step: Callable[[State, Params, Conditioning, PRNGKey, int], State]


def from_dict(mapping: Mapping[str, Any]) -> Settings:
    """Return checked settings.

    Args:
      mapping: {field: value}; fields that are absent keep their defaults.

    Raises:
      UserError: an unknown field, a value of the wrong type, or a number out of its range.
    """
    settings = check_section("field", Settings, mapping, RANGES)
    look_up(WEIGHTINGS, "field.weighting", settings.weighting)
    if not settings.resolutions:
        raise UserError("config.field.resolutions is empty; name at least one number")
    for name in ("t_range", "t_range_end"):
        ends = getattr(settings, name)
        if len(ends) != 2 or ends[0] > ends[1]:
            raise UserError(
                f"config.field.{name} must be (low, high) with low <= high, found {ends}"
            )
    return settings


def sample_of(settings: Settings, num_timesteps: int) -> dict[str, Any]:
    """Return the fields of `config.sample` with which the prior denoises.

    They guide it. They do not clip its x_0: where x_0 is clipped at white, a haze stays.

    Args:
      settings: the settings.
      num_timesteps: T of the prior.
    """
    last = max(1, round(settings.guidance_high * num_timesteps))
    return {
        "guidance": settings.guidance,
        "guidance_interval": (1, last) if settings.guidance else (),
        "clip_x_0": False,
        "clip_latents": 0.0,
        "dynamic_threshold": 0.0,
    }


def rows_of(config: Config, text: str, label: int, *, with_views: bool) -> dict[str, Array]:
    """Return the condition of each view, after that of the hidden view.

    Args:
      config: the config of the prior.
      text: a text for the object; only a prior of texts receives it, with the words for the view.
      label: the class; only a prior of classes receives it.
      with_views: False gives every view the condition of the hidden one.

    Returns:
      {name of an entry of cond: array with 25 rows}.

    Raises:
      UserError: the text encoder is not installed.
    """
    views = np.arange(sides.HIDDEN, sides.NUM_VIEWS)
    if config.data.text:
        rows = text_encoder.conditioning([sides.caption(text, int(view)) for view in views])
    else:
        rows = {"label": sides.label_of(label, views).astype(np.int32)}
    chosen = np.arange(len(views)) if with_views else np.zeros_like(views)
    return {name: jnp.asarray(rows[name][chosen]) for name in cond_names(config)}


def make_grower(
    process: GaussianProcess,
    denoiser: Denoiser,
    encode: Callable[[Array], Array],
    side: int,
    settings: Settings,
) -> Grower:
    """Build the functions that grow fields.

    Args:
      process: the chain of the prior.
      denoiser: (weights, cond) -> DenoiseFn, with its guidance (`build.sampling.denoiser`).
      encode: images [B, H, W, 3] in [-1, 1] -> what the prior sees, images or latents.
      side: height and width of the pictures in pixels.
      settings: the settings.
    """
    c = settings
    optim = OptimConfig(
        learning_rate=c.learning_rate, warmup_steps=0, decay="cosine", b2=0.99, clip_norm=0.0
    )
    rates = jnp.array([1.0, *3 * [c.colour_rate]])  # of density and albedo
    optimizer, weighting = make_optimizer(optim, c.num_steps), WEIGHTINGS[c.weighting]

    def loss(params: Params, prior: Params, rows: Conditioning, key: PRNGKey, far: Array) -> Array:
        pose_key, light_key, mode_key, ray_key, noise_key = jax.random.split(key, 5)
        azimuth, elevation = draw_angles(pose_key, c.batch_size)
        flat = far < c.flat_until
        mode, colourless = jax.random.uniform(mode_key, (2, c.batch_size))
        picture = view(
            params,
            azimuth,
            elevation,
            draw_lights(light_key, c.batch_size),
            side,
            c.num_samples,
            ambient=jnp.where(mode < c.shaded, AMBIENT, 1.0),
            colourless=(mode < c.shaded) & (colourless < c.colourless),
            flat=flat,
            key=ray_key,
        )
        x = encode(2.0 * picture.colour - 1.0)
        seen = 1 + sides.view_of(azimuth, elevation)
        cond = {name: jnp.asarray(row)[seen] for name, row in rows.items()}
        low, high = (a + (b - a) * far for a, b in zip(c.t_range, c.t_range_end, strict=True))
        keys = image_keys(noise_key, jnp.arange(c.batch_size))
        t = distillation.draw_times(keys, process.num_timesteps, low, high)
        found = distillation.gradient(
            process, denoiser(prior, cond), keys, x, t, weighting, antithetic=True
        )
        opacity = jnp.sqrt(jnp.square(picture.opacity) + 0.01)
        turned_away = jnp.where(flat, 0.0, picture.turned_away)
        per_pixel = c.opacity_weight * opacity + c.normal_weight * turned_away
        return distillation.surrogate(x, found) + per_pixel.sum() / c.batch_size

    def update(
        state: State, prior: Params, rows: Conditioning, key: PRNGKey, number: Array
    ) -> State:
        far = number / c.num_steps
        own = jax.random.fold_in(key, number)
        gradient = jax.grad(loss)(state.params, prior, rows, own, far)
        moves, moments = optimizer.update(gradient, state.moments, state.params)
        moves = jax.tree.map(lambda move: move * rates, moves)
        return State(optax.apply_updates(state.params, moves), moments)

    def init() -> State:
        params = radiance_field.init(c.resolutions, c.blob, c.offset)
        return State(params, optimizer.init(params))

    options = compiler.options(compiler.NETWORK)
    return Grower(init, jax.jit(update, donate_argnums=0, compiler_options=options))


def view(
    params: Params,
    azimuth: Array,
    elevation: Array,
    light: Array,
    side: int,
    num_samples: int,
    **options: Any,
) -> Picture:
    """Return what the cameras of the set `solids` see of a field: [n, side, side].

    Args:
      params: the grids of the field.
      azimuth, elevation: [n] float, in radians.
      light: [n, 3] float, unit directions towards the light.
      side: height and width of the pictures in pixels.
      num_samples: samples along a ray.
      **options: options of `radiance_field.render`; arrays are [n].
    """
    camera = cameras.orbit(azimuth, elevation, solids.RADIUS, solids.FIELD_OF_VIEW, side)
    origins, directions = cameras.rays(camera, side, side)
    rows = {
        name: value[:, None, None] if name in ("ambient", "colourless") else value
        for name, value in options.items()
    }
    return radiance_field.render(
        params,
        origins,
        directions,
        num_samples=num_samples,
        light=light[:, None, None],
        **rows,
    )


def draw_angles(key: PRNGKey, n: int) -> tuple[Array, Array]:
    """Return random azimuths and elevations, as in the set `solids`: [n] each."""
    azimuth_key, elevation_key = jax.random.split(key)
    low, high = solids.ELEVATIONS
    return (
        jax.random.uniform(azimuth_key, (n,), minval=-jnp.pi, maxval=jnp.pi),
        jax.random.uniform(elevation_key, (n,), minval=low, maxval=high),
    )


def draw_lights(key: PRNGKey, n: int) -> Array:
    """Return random unit directions towards a light above, as in the set `solids`: [n, 3]."""
    light = jax.random.normal(key, (n, 3))
    light = light.at[:, 2].set(jnp.abs(light[:, 2]))
    return light / jnp.linalg.norm(light, axis=-1, keepdims=True)
