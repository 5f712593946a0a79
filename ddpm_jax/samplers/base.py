"""What a sampler is, and the loop that walks it down a grid of timesteps.

x_T --init--> state --step(t_0, t_1)--> state --step(t_1, t_2)--> ... --> state.x = x_0
                      |  looks at x_t through denoise_fn: the network
                      `--> collect(t, s, state, prediction): what is kept along the way
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from ddpm_jax.errors import UserError
from ddpm_jax.randomness import fold_in
from ddpm_jax.types import Array, DenoiseFn, Prediction, PRNGKey


class State(Protocol):
    """A pytree of arrays, of the same structure before and after every step."""

    x: Array  # [B, ...], the sample where the sampler now stands


class Sampler(NamedTuple):
    """A way from noise to data, one step at a time.

    Attributes:
      init: x_T: [B, ...] -> the state at t = T.
      step: (denoise_fn, key, state, t, s) -> (state at s, the prediction made at t). `key` holds
        one key per image, [B], for this step alone; t and s < t are int32 scalars, one for the
        whole batch.
    """

    init: Callable[[Array], State]
    step: Callable[[DenoiseFn, PRNGKey, State, Array, Array], tuple[State, Prediction]]


Collect = Callable[[Array, Array, State, Prediction], Any]


def sample_loop(
    sampler: Sampler,
    denoise_fn: DenoiseFn,
    key: PRNGKey,
    timesteps: Array,
    x_T: Array,
    collect: Collect | None = None,
    num_frames: int | None = None,
) -> Array | tuple[Array, Any]:
    """Walk x_T down the grid of timesteps to x_0.

    The step that leaves t draws from fold_in(key[i], t) for image i, so an image depends on its
    own key alone, and fold_in(key[i], 0) is free for x_T (`draw_x_T`).

    Args:
      sampler: the sampler.
      denoise_fn: the denoiser.
      key: [B] keys, one per image.
      timesteps: [K+1] int32, strictly descending, usually from T to 0; ascending for
        `ddim_inversion` alone.
      x_T: [B, ...] float, the sample at timesteps[0].
      collect: what to keep: a function (t, s, state at s, prediction at t) -> pytree of arrays.
      num_frames: how many of the K steps to keep, in 1..K: the last of each of num_frames equal
        parts, so that memory grows with num_frames and not with K. None is every step.

    Returns:
      x_0: [B, ...]; with collect a pair of x_0 and what was kept, with a leading axis of frames.

    Raises:
      UserError: num_frames is not in 1..K, or given without collect.
    """
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
        step_key = fold_in(key, t)
        state, prediction = sampler.step(denoise_fn, step_key, state, t, s)
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
