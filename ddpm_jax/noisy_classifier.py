"""A classifier of noisy images, as functions of its network: log p(y | x_t), loss, accuracy.

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
    """Return log p(y | x_t): [B] float32, what `guidance.classifier` climbs.

    Args:
      process: the chain.
      apply_fn: the classifier.
      params: its parameters.
      x_t: [B, ...] float.
      t: int32 in 0..T, scalar or [B].
      label: [B] int32; negative is any class, whose log probability is 0.
      train: whether dropout is on.
      key: randomness of a training step; None where `train` is False.
    """
    logits = apply_network(process, apply_fn, params, x_t, t, None, train=train, key=key)
    log_prob = jax.nn.log_softmax(logits)
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
    """Return -log p(y | x_t) at x_t = q_sample(x_0, t, eps): [B]; arguments as there and above."""
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
    """Return whether the likeliest class of x_t is the label: [B] bool."""
    x_t = q_sample(process, x_0, t, eps)
    logits = apply_network(process, apply_fn, params, x_t, t, None, train=False, key=None)
    return logits.argmax(axis=-1) == label
