"""What a sampler is, and the loop that walks it down a grid of timesteps.

x_T --init--> state --step(t_0, t_1)--> state --step(t_1, t_2)--> ... --> state.x = x_0
                      |  looks at x_t through denoise_fn: the network
                      `--> collect(t, s, state, prediction): what is kept along the way
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
    """A pytree of arrays, of the same structure before and after every step."""

    @property
    def x(self) -> Array:
        """The sample at the timestep that the sampler has reached: [B, ...]."""
        ...


class Noise(Protocol):
    """Where the noise of a sampler's steps comes from.

    `normal` is the default. Give another function to follow an implementation that draws in its
    own way, step by step, for instance `lambda key, t, shape: recorded[t]`.
    """

    def __call__(self, key: PRNGKey, t: Array, shape: tuple[int, ...]) -> Array:
        """Return the noise that a step adds to a whole batch: float32 of this shape.

        Args:
          key: [B] keys, one for each image, which no other call gets. The function may ignore it.
          t: int32 scalar, the timestep that the step leaves. It is traced: index arrays by it.
          shape: (B, ...), the shape of the batch.
        """
        ...


def normal(key: PRNGKey, t: Array, shape: tuple[int, ...]) -> Array:
    """Draw from N(0, I), each image from its own key (`Noise`)."""
    return draw_noise(key, shape[1:])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Sampler:
    """A way from noise to data, one step at a time.

    It is a pytree: its process is data, all else is static. Two samplers with the same options
    share the programs that take them as arguments, if their processes have the same T:

      other = dataclasses.replace(sampler, process=other_process)

    Attributes:
      process: the chain that the steps walk.
      init: x_T: [B, ...] -> the state at t = T.
      advance: (process, denoise_fn, noise, key, state, t, s) -> (state at s, the prediction made at
        t), the function behind `step`.
      noise: where the steps' noise comes from. A step calls it once for each draw. A step that
        draws nothing does not call it.
      direction: "down" for a descending grid, "up" for an ascending one, "both" for any walk.
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
          t, s: int32 scalars, s < t: one step for the whole batch.
        """
        return self.advance(self.process, denoise_fn, self.noise, key, state, t, s)


Collect = Callable[[Array, Array, State, Prediction], Any]


@functools.lru_cache(maxsize=None, typed=True)
def with_options(advance: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Return advance with its options bound: the same function again for the same options.

    So `jax.jit` sees that two samplers take the same steps, and compiles them once.
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

    The step that leaves t draws from fold_in(key[i], t) for image i, so an image depends on its
    own key only, and fold_in(key[i], 0) is free for x_T (`randomness.draw_x_T`).

    Args:
      sampler: the sampler, which carries its process.
      denoise_fn: the denoiser of the same process.
      key: [B] keys, one for each image.
      timesteps: [K+1] int, strictly descending within 0..T, usually from T to 0. For
        `ddim_inversion` it ascends. A traced array is not checked.
      x_T: [B, ...] float, the sample at timesteps[0].
      collect: what to keep: a function (t, s, state at s, prediction at t) -> pytree of arrays.
      num_frames: how many of the K steps to keep, in 1..K: the last of each of num_frames equal
        parts, so that memory grows with num_frames and not with K. None is every step.

    Returns:
      x_0: [B, ...]; with collect a pair of x_0 and what was kept, with a leading axis of frames.

    Raises:
      UserError: a wrong grid; num_frames is not in 1..K, or given without collect.
    """
    timesteps = check_grid(timesteps, sampler.process.num_timesteps, sampler.direction)
    num_steps = len(timesteps) - 1
    if num_frames is not None and collect is None:
        raise UserError("num_frames is given but collect is not: say what to keep")
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
            slot = i * num_frames // num_steps  # later steps of a part overwrite earlier ones
            kept = collect(t, s, state, prediction)
            frames = jax.tree.map(lambda f, k: f.at[slot].set(k), frames, kept)
        return (state, frames), None

    xs = (jnp.arange(num_steps, dtype=jnp.int32), timesteps[:-1], timesteps[1:])
    (state, frames), _ = jax.lax.scan(body, (state, frames), xs)
    return state.x if collect is None else (state.x, frames)


def predicted_x_0(t: Array, s: Array, state: State, prediction: Prediction) -> Array:
    """Return x_0-hat at t: a `collect` that keeps the progressive predictions (Ho et al. 2020,
    section 4.3), [num_frames, B, ...] in memory and not one for each t."""
    return prediction.x_0


def on_process(sampler: Sampler, process: GaussianProcess) -> Sampler:
    """Return the sampler with its process replaced by an equal one, which may be traced.

    Raises:
      UserError: the sampler was built on another process. Only T is compared where tables are
        traced.
    """
    own = sampler.process
    if own.num_timesteps != process.num_timesteps:
        raise UserError(
            f"the sampler was built on a process of T = {own.num_timesteps}, but is used with one "
            f"of T = {process.num_timesteps}; build it on the same process"
        )
    tables = own.log_alphas_cumprod, process.log_alphas_cumprod
    if own is not process and not any(isinstance(table, Tracer) for table in tables):
        differ = np.flatnonzero(np.not_equal(*map(np.asarray, tables)))
        if differ.size:
            raise UserError(
                "the sampler was built on another process: alphas_cumprod differs from "
                f"t = {differ[0]} on; build it on the same process"
            )
    return dataclasses.replace(sampler, process=process)
