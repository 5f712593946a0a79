"""The `Sampler` type, and the loop that walks a sampler down a grid of timesteps.

x_T --init--> state --step(t_0, t_1)--> state --step(t_1, t_2)--> ... --> state.x = x_0
                      |  each step calls denoise_fn, the network, on x_t
                      `--> collect(t, s, state, prediction): what to keep of this step
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ddpm_jax.errors import UserError
from ddpm_jax.process import GaussianProcess
from ddpm_jax.randomness import draw_noise, fold_in
from ddpm_jax.timesteps import check_grid
from ddpm_jax.types import Array, DenoiseFn, Prediction, PRNGKey, Timesteps


class State(Protocol):
    """A sampler's state: a pytree of arrays that keeps its structure from step to step."""

    @property
    def x(self) -> Array:
        """The sample at the timestep that the sampler has reached: [B, ...]."""
        ...


class Noise(Protocol):
    """The source of the noise of a sampler's steps.

    The default is `normal`. Pass another function to follow another implementation step by step,
    for instance `lambda key, t, shape: recorded[t]`.
    """

    def __call__(self, key: PRNGKey, t: Array, shape: tuple[int, ...]) -> Array:
        """Return the noise that one step adds to the whole batch: float32 of this shape.

        Args:
          key: [B] keys, one for each image. No other call receives them. The function may ignore
            them.
          t: int32 scalar, the timestep that the step leaves. It is traced, so it can index arrays
            but not Python lists.
          shape: (B, ...), the shape of the batch.
        """
        ...


def normal(key: PRNGKey, t: Array, shape: tuple[int, ...]) -> Array:
    """Draw noise from N(0, I), each image from its own key. Arguments and result as in `Noise`."""
    return draw_noise(key, shape[1:])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Sampler:
    """A way from noise to data, one step at a time.

    A sampler is a pytree: its process is data, its other fields are static. A compiled program can
    take a sampler as an argument. Two samplers share this program if they have the same options
    and the same T:

      other = dataclasses.replace(sampler, process=other_process)

    Attributes:
      process: the chain that the steps walk.
      init: x_T: [B, ...] -> the state at t = T.
      advance: (process, denoise_fn, noise, key, state, t, s) -> (state at s, prediction at t). The
        method `step` calls it.
      noise: the source of the steps' noise. A step calls it once for each draw. A step that draws
        no noise does not call it.
      direction: the grids that the sampler accepts: "down" is descending, "up" is ascending, "both"
        is any.
    """

    process: GaussianProcess
    init: Callable[[Array], Any] = dataclasses.field(metadata=dict(static=True))
    advance: Callable[..., tuple[Any, Prediction]] = dataclasses.field(metadata=dict(static=True))
    noise: Noise = dataclasses.field(default=normal, metadata=dict(static=True))
    direction: str = dataclasses.field(default="down", metadata=dict(static=True))

    def step(
        self, denoise_fn: DenoiseFn, key: PRNGKey, state: State, t: Array, s: Array
    ) -> tuple[State, Prediction]:
        """Return the state at s, and the prediction made at t.

        Args:
          denoise_fn: the denoiser.
          key: [B] keys, one for each image, for this step only.
          state: the state at t.
          t, s: int32 scalars, the same for the whole batch. s < t, unless the direction allows
            steps up.
        """
        return self.advance(self.process, denoise_fn, self.noise, key, state, t, s)


Collect = Callable[[Array, Array, State, Prediction], Any]


@functools.lru_cache(maxsize=None, typed=True)
def with_options(advance: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Return `advance` with its options bound: the same object for the same options.

    `jax.jit` then recognises two samplers that take the same steps, and compiles them once.
    """
    return functools.partial(advance, **options)


def sample_loop(
    sampler: Sampler,
    denoise_fn: DenoiseFn,
    key: PRNGKey,
    timesteps: Timesteps,
    x_T: Array,
    collect: Collect | None = None,
    num_frames: int | None = None,
) -> Any:
    """Walk x_T down the grid of timesteps to x_0.

    For image i the step that leaves t draws from fold_in(key[i], t). An image therefore depends on
    its own key only. fold_in(key[i], 0) is free for x_T (`randomness.draw_x_T`).

    Args:
      sampler: the sampler, which carries its process.
      denoise_fn: the denoiser of the same process.
      key: [B] keys, one for each image.
      timesteps: [K+1] int, strictly descending within 0..T, usually from T to 0. For
        `ddim_inversion` they must ascend. A traced array is not checked.
      x_T: [B, ...] float, the sample at timesteps[0].
      collect: (t, s, state at s, prediction at t) -> the pytree of arrays to keep of a step. None
        keeps nothing.
      num_frames: number of steps to keep, in 1..K. The loop divides the K steps into num_frames
        equal parts and keeps the last step of each. Memory then grows with num_frames, not with K.
        None keeps every step.

    Returns:
      x_0: [B, ...]. With `collect`: a pair of x_0 and the kept arrays, which have a leading axis of
      num_frames.

    Raises:
      UserError: the grid is wrong; num_frames is not in 1..K, or is given without `collect`.
    """
    timesteps = check_grid(timesteps, sampler.process.num_timesteps, sampler.direction)
    num_steps = len(timesteps) - 1
    if num_frames is not None and collect is None:
        raise UserError(
            f"num_frames is {num_frames}, but collect is not given; pass what to keep, "
            "such as collect=samplers.predicted_x_0"
        )
    num_frames = num_steps if num_frames is None else num_frames
    if not 1 <= num_frames <= num_steps:
        raise UserError(f"num_frames must be in 1..{num_steps} (steps), found {num_frames}")

    timesteps = jnp.asarray(timesteps, jnp.int32)
    state = sampler.init(x_T)
    frames = None
    if collect is not None:
        kept = jax.eval_shape(collect, timesteps[0], timesteps[1], state, Prediction(x_T, x_T))
        frames = jax.tree.map(lambda k: jnp.zeros((num_frames, *k.shape), k.dtype), kept)

    def body(carry: tuple[State, Any], xs: tuple[Array, Array, Array]) -> tuple[Any, None]:
        (state, frames), (i, t, s) = carry, xs
        state, prediction = sampler.step(denoise_fn, fold_in(key, t), state, t, s)
        if collect is not None:
            slot = i * num_frames // num_steps  # the last step of a part overwrites the others
            kept = collect(t, s, state, prediction)
            frames = jax.tree.map(lambda f, k: f.at[slot].set(k), frames, kept)
        return (state, frames), None

    xs = (jnp.arange(num_steps, dtype=jnp.int32), timesteps[:-1], timesteps[1:])
    (state, frames), _ = jax.lax.scan(body, (state, frames), xs)
    return state.x if collect is None else (state.x, frames)


def predicted_x_0(t: Array, s: Array, state: State, prediction: Prediction) -> Array:
    """Return x̂_0 at t: [B, ...]. A `collect` for `sample_loop`.

    It keeps the progressive predictions (Ho et al. 2020, section 4.3): [num_frames, B, ...].
    """
    return prediction.x_0


def on_process(sampler: Sampler, process: GaussianProcess) -> Sampler:
    """Return the sampler on `process`, which must equal the sampler's own and may be traced.

    Raises:
      UserError: the sampler was built on another process. If the tables are traced, only T is
        compared.
    """
    own = sampler.process
    if own.num_timesteps != process.num_timesteps:
        raise UserError(
            f"the sampler was built on a process of T = {own.num_timesteps}, but is used with one "
            f"of T = {process.num_timesteps}; build the sampler on the process that you pass"
        )
    tables = own.log_alphas_cumprod, process.log_alphas_cumprod
    if own is not process and not any(isinstance(table, Tracer) for table in tables):
        differ = np.flatnonzero(np.not_equal(*map(np.asarray, tables)))
        if differ.size:
            raise UserError(
                "the sampler was built on another process: alphas_cumprod differs from "
                f"t = {differ[0]} on; build the sampler on the process that you pass"
            )
    return dataclasses.replace(sampler, process=process)
