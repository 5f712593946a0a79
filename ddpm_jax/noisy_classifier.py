"""A classifier of noisy images x_t: its log probability log p(y | x_t), its loss, its accuracy.

  L = -E log p(y | x_t),  x_t ~ q(x_t | x_0)              (Dhariwal & Nichol 2021, section 4.1)

The network is an `ApplyFn` that returns logits [B, num_classes] instead of an image.
"""

import jax
import jax.numpy as jnp

from ddpm_jax.denoise import apply_network
from ddpm_jax.process import GaussianProcess, q_sample
from ddpm_jax.types import ApplyFn, Array, Params, PRNGKey


def label_log_prob(
    process: GaussianProcess,
    apply_fn: ApplyFn,
    params: Params,
    x_t: Array,
    t: Array,
    label: Array,
    *,
    train: bool = False,
    key: PRNGKey | None = None,
) -> Array:
    """Return log p(y | x_t): [B] float32. `guidance.classifier` follows its gradient.

    Args:
      process: the chain.
      apply_fn: the classifier; it returns logits [B, num_classes].
      params: its parameters.
      x_t: [B, ...] float, noisy images.
      t: int32 in 0..T, scalar or [B], the timestep of x_t.
      label: [B] int32, the class y. A negative label means any class: its log probability is 0.
      train: whether dropout is on.
      key: key of the dropout; None if `train` is False.
    """
    log_prob = jax.nn.log_softmax(_logits(process, apply_fn, params, x_t, t, train, key))
    wanted = jnp.take_along_axis(log_prob, jnp.maximum(label, 0)[:, None], axis=1)[:, 0]
    return jnp.where(label < 0, 0.0, wanted)


def label_loss(
    process: GaussianProcess,
    apply_fn: ApplyFn,
    params: Params,
    x_0: Array,
    t: Array,
    eps: Array,
    label: Array,
    *,
    train: bool = False,
    key: PRNGKey | None = None,
) -> Array:
    """Return -log p(y | x_t) at x_t = q_sample(process, x_0, t, eps): [B] float32.

    Args:
      process: the chain.
      apply_fn: the classifier; it returns logits [B, num_classes].
      params: its parameters.
      x_0: [B, ...] float, clean images in [-1, 1].
      t: int32 in 0..T, scalar or [B].
      eps: [B, ...] float, standard normal.
      label: [B] int32, the class y. A negative label means any class: its loss is 0.
      train: whether dropout is on.
      key: key of the dropout; None if `train` is False.
    """
    x_t = q_sample(process, x_0, t, eps)
    return -label_log_prob(process, apply_fn, params, x_t, t, label, train=train, key=key)


def is_right(
    process: GaussianProcess,
    apply_fn: ApplyFn,
    params: Params,
    x_0: Array,
    t: Array,
    eps: Array,
    label: Array,
) -> Array:
    """Return whether the likeliest class of q_sample(process, x_0, t, eps) is the label: [B] bool.

    Args:
      process, apply_fn, params, x_0, t, eps: as in `label_loss`.
      label: [B] int32, the class y; a negative label is never right.
    """
    logits = _logits(process, apply_fn, params, q_sample(process, x_0, t, eps), t)
    return logits.argmax(axis=-1) == label


def _logits(
    process: GaussianProcess,
    apply_fn: ApplyFn,
    params: Params,
    x_t: Array,
    t: Array,
    train: bool = False,
    key: PRNGKey | None = None,
) -> Array:
    """Return what the classifier finds in x_t: [B, num_classes]. It receives no conditioning."""
    return apply_network(process, apply_fn, params, x_t, t, None, train=train, key=key)
