"""Time samplers: how training draws the timesteps t of a batch.

  E_{t~uniform}[L_t] = E_{t~p}[L_t / (p_t T)];  p_t ∝ √E[L_t²] has the least variance
                                                          (Nichol & Dhariwal 2021, eq. 17)

A time sampler is three pure functions. Its state, such as past losses, is part of the train state.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.types import Array, PRNGKey


class TimeSampler(NamedTuple):
    """Three functions that draw the timesteps of a batch and learn from its losses.

    Attributes:
      init: () -> state, a pytree; () if the sampler learns nothing.
      draw: (state, key, batch_size) -> (t: int32 [B] in 1..T, weight: float32 [B]). The expectation
        of weight * loss equals the mean of the loss over uniform t.
      update: (state, t: [B], loss: [B]) -> state, with the losses before they are weighted.
    """

    init: Callable[[], Any]
    draw: Callable[[Any, PRNGKey, int], tuple[Array, Array]]
    update: Callable[[Any, Array, Array], Any]


class LossHistory(NamedTuple):
    """The state of `loss_second_moment`.

    Attributes:
      losses: [T, N] float32, a ring buffer of the last N losses at each t; row t - 1 is for t.
      counts: [T] int32, the number of losses so far at each t.
    """

    losses: Array
    counts: Array


def uniform(T: int) -> TimeSampler:
    """Build the sampler that draws each t independently, uniform on 1..T (Ho et al. 2020, alg. 1).

    Args:
      T: number of timesteps.
    """

    def draw(key: PRNGKey, batch_size: int) -> Array:
        return jax.random.randint(key, (batch_size,), 1, T + 1, jnp.int32)

    return _stateless(draw)


def stratified(T: int) -> TimeSampler:
    """Build the sampler that draws one t from each of batch_size equal parts of 1..T, shuffled.

    Each single t is uniform on 1..T, as in `uniform`. Together they cover 1..T evenly, which lowers
    the variance of the batch's loss.

    Args:
      T: number of timesteps.
    """

    def draw(key: PRNGKey, batch_size: int) -> Array:
        key_offset, key_order = jax.random.split(key)
        offset = jax.random.uniform(key_offset, (batch_size,))
        part = jax.random.permutation(key_order, batch_size).astype(jnp.float32)
        u = (part + offset) / batch_size
        return jnp.minimum(jnp.floor(u * T).astype(jnp.int32) + 1, T)  # u * T can round up to T

    return _stateless(draw)


def loss_second_moment(T: int, *, remember: int = 10, uniform_share: float = 1e-3) -> TimeSampler:
    """Build the sampler with p_t ∝ √E[L_t²], estimated from the last losses at each t.

    It is uniform until it has seen every t `remember` times. Use it for the variational bound: its
    terms differ by orders of magnitude. For L_hybrid the authors found no benefit (Nichol &
    Dhariwal 2021, section 3.3).

    Args:
      T: number of timesteps.
      remember: number of losses kept at each t.
      uniform_share: share of p that stays uniform, in [0, 1], so that every t is still drawn.
    """

    def init() -> LossHistory:
        return LossHistory(jnp.zeros((T, remember)), jnp.zeros(T, jnp.int32))

    def probabilities(history: LossHistory) -> Array:
        root = jnp.sqrt(jnp.square(history.losses).mean(axis=1))
        total = root.sum()
        known = (history.counts >= remember).all() & (total > 0.0)
        p = jnp.where(known, root / jnp.where(known, total, 1.0), 1.0 / T)
        return (1.0 - uniform_share) * p + uniform_share / T

    def draw(history: LossHistory, key: PRNGKey, batch_size: int) -> tuple[Array, Array]:
        p = probabilities(history)
        index = jax.random.choice(key, T, (batch_size,), p=p)
        return index.astype(jnp.int32) + 1, 1.0 / (T * p[index])

    def update(history: LossHistory, t: Array, loss: Array) -> LossHistory:
        order = jnp.argsort(t, stable=True)  # equal t are neighbours, in the batch's order
        t, loss = t[order], loss[order].astype(jnp.float32)
        first, end = (jnp.searchsorted(t, t, side) for side in ("left", "right"))
        rank = jnp.arange(t.size) - first
        last_ones = rank >= end - first - remember  # if there are more than fit, the last ones
        row = jnp.where(last_ones, t - 1, T)  # T is out of range, so it is dropped
        slot = (history.counts[t - 1] + rank) % remember
        return LossHistory(
            history.losses.at[row, slot].set(loss, mode="drop"), history.counts.at[t - 1].add(1)
        )

    return TimeSampler(init, draw, update)


def _stateless(draw_t: Callable[[PRNGKey, int], Array]) -> TimeSampler:
    """Return the time sampler that has no state and gives every t weight 1."""

    def draw(state: tuple[()], key: PRNGKey, batch_size: int) -> tuple[Array, Array]:
        return draw_t(key, batch_size), jnp.ones(batch_size)

    return TimeSampler(tuple, draw, lambda state, t, loss: state)
