"""Draws of t for training, with what they learn of the losses.

  E_{t~uniform}[L_t] = E_{t~p}[L_t / (p_t T)];  p_t ∝ √E[L_t²] has the least variance
                                                          (Nichol & Dhariwal 2021, eq. 17)

A time sampler is a triple of pure functions; its state is a leaf of the train state.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.types import Array, PRNGKey


class TimeSampler(NamedTuple):
    """How the times of a batch are drawn.

    Attributes:
      init: () -> state, a pytree; () where nothing is learned.
      draw: (state, key, batch_size) -> (t int32 [B] in 1..T, weight float32 [B]); the mean of
        weight * loss is, over the draws, the mean of the loss over uniform t.
      update: (state, t, loss [B] as it is, without its weight) -> state.
    """

    init: Callable[[], Any]
    draw: Callable[[Any, PRNGKey, int], tuple[Array, Array]]
    update: Callable[[Any, Array, Array], Any]


class LossHistory(NamedTuple):
    """What `loss_second_moment` remembers.

    Attributes:
      losses: [T, N] float32, the last N losses of each t, as a ring.
      counts: [T] int32, how many there have been.
    """

    losses: Array
    counts: Array


def uniform(T: int) -> TimeSampler:
    """Build independent, uniform draws of 1..T (Ho et al. 2020, alg. 1)."""

    def draw(key: PRNGKey, batch_size: int) -> Array:
        return jax.random.randint(key, (batch_size,), 1, T + 1, jnp.int32)

    return _learning_nothing(draw)


def stratified(T: int) -> TimeSampler:
    """Build draws of one t from each of batch_size equal parts of 1..T, shuffled.

    Each t alone is uniform over 1..T, as in `uniform`; together they cover the range evenly, which
    lowers the variance of the batch's loss.
    """

    def draw(key: PRNGKey, batch_size: int) -> Array:
        key_offset, key_order = jax.random.split(key)
        offset = jax.random.uniform(key_offset, (batch_size,))
        part = jax.random.permutation(key_order, batch_size).astype(jnp.float32)
        u = (part + offset) / batch_size
        return jnp.minimum(jnp.floor(u * T).astype(jnp.int32) + 1, T)  # u * T can round up to T

    return _learning_nothing(draw)


def loss_second_moment(T: int, *, remember: int = 10, uniform_share: float = 1e-3) -> TimeSampler:
    """Build draws with p_t ∝ √E[L_t²], from the last losses of each t (Nichol & Dhariwal 2021).

    Uniform until every t has been seen `remember` times. For the bound, whose terms differ by
    orders of magnitude; they found it of no use for L_hybrid (section 3.3).

    Args:
      T: number of timesteps.
      remember: losses of each t that are kept.
      uniform_share: part of p that stays uniform, so that no t is forgotten.
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
        order = jnp.argsort(t, stable=True)  # equal t lie together, in the batch's order
        t, loss = t[order], loss[order].astype(jnp.float32)
        first, end = (jnp.searchsorted(t, t, side) for side in ("left", "right"))
        rank = jnp.arange(t.size) - first
        last_ones = rank >= end - first - remember  # of more than fit in the ring, the last
        row = jnp.where(last_ones, t - 1, T)  # T is out of range, and dropped
        slot = (history.counts[t - 1] + rank) % remember
        return LossHistory(
            history.losses.at[row, slot].set(loss, mode="drop"), history.counts.at[t - 1].add(1)
        )

    return TimeSampler(init, draw, update)


def _learning_nothing(draw_t: Callable[[PRNGKey, int], Array]) -> TimeSampler:
    """Return a sampler without state, of weights 1."""

    def draw(state: tuple[()], key: PRNGKey, batch_size: int) -> tuple[Array, Array]:
        return draw_t(key, batch_size), jnp.ones(batch_size)

    return TimeSampler(tuple, draw, lambda state, t, loss: state)
