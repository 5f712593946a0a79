"""The inputs of a network other than x_t and t, and the null form of each input.

    cond entry                    how the network uses it                null form
    label         int32 [B]       a learned row, added to embedding(t)   negative, if there is one
    embedding     [B, D]          Dense, added to embedding(t)           all zero
    context       [B, L, D]       cross-attention after self-attention   no position in context_mask
    context_mask  bool [B, L]     which positions of context exist
    image         [B, H, W, C']   concatenated to x_t                    none: always required
    view          [B, H, W, C]    the second frame (`models.xunet`)      where pose is all zero
    pose          [B, 2, 4, 4]    rays of both frames                    all zero
    focal         [B, 2]          rays of both frames                    where pose is all zero
    centre        [B, 2, 2]       rays of both frames                    where pose is all zero

The null form means "unconditional". The network replaces it by learned parameters (Ho & Salimans
2022): a row of the table of labels, a vector instead of the zeros, one position instead of the
empty context. If cond lacks an entry, the entry is null for all images of the batch. A network
without a null class needs labels; a negative label makes its output NaN.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp

from ddpm_jax.errors import UserError, unknown
from ddpm_jax.models.attention import fan_avg
from ddpm_jax.types import Array

# For each entry of cond: why a network may have no input for it.
LACKING = {
    "label": "no input for classes (model.class_conditional is False)",
    "embedding": "no input for an embedding (model.embedding_dim is 0)",
    "context": "no cross-attention (model.context_dim is 0)",
    "context_mask": "no cross-attention (model.context_dim is 0)",
    "image": "no input for an image (model.super_resolution is 0)",
    **dict.fromkeys(
        ("view", "pose", "focal", "centre"), "no input for views (model.name is not xunet)"
    ),
}
_null = nn.initializers.normal(1.0)  # the size of the entries that it replaces


class EmbeddedVector(nn.Module):
    """A Dense layer on one vector per image; a learned vector replaces each zero vector."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, rows: Array) -> Array:
        """Map rows [B, D] float to [B, features]."""
        null = self.param("null", _null, (1, rows.shape[-1]))
        absent = ~jnp.any(rows != 0, axis=-1, keepdims=True)
        rows = jnp.where(absent, null, rows.astype(jnp.float32))
        dense = nn.Dense(self.features, dtype=self.dtype, kernel_init=fan_avg, name="dense")
        return dense(rows.astype(self.dtype))


class ContextOrNull(nn.Module):
    """A context with one more, learned position that is attended to only if the context is empty.

    An image's context is empty if its row of the mask is all False.
    """

    @nn.compact
    def __call__(self, context: Array, mask: Array) -> tuple[Array, Array]:
        """Return the context [B, 1 + L, D] and its mask [B, 1 + L]; masked vectors become 0.

        Args:
          context: [B, L, D] float, L at least 0.
          mask: bool [B, L].
        """
        batch, _, width = context.shape
        null = jnp.broadcast_to(self.param("null", _null, (1, 1, width)), (batch, 1, width))
        absent = ~jnp.any(mask, axis=1, keepdims=True)
        context = jnp.where(mask[:, :, None], context.astype(jnp.float32), 0.0)  # 0 * NaN is NaN
        return jnp.concatenate([null, context], axis=1), jnp.concatenate([absent, mask], axis=1)


def check_cond(cond: Mapping[str, Array], wanted: Mapping[str, tuple[int | None, ...]]) -> None:
    """Check the names, shapes and types of a conditioning.

    Args:
      cond: the conditioning.
      wanted: the shape of each entry that the network has an input for; None is any length.

    Raises:
      UserError: an entry is unknown, has no input, or is of another shape; only one of "context"
        and "context_mask" is given, or the two do not fit each other.
    """
    for name, value in cond.items():
        if name not in LACKING:
            raise unknown("entry of cond", name, LACKING)
        if name not in wanted:
            raise UserError(
                f"cond[{name!r}] is given, but the network has {LACKING[name]}; leave it out"
            )
        shape = wanted[name]
        fits = len(shape) == value.ndim and all(
            n in (None, m) for n, m in zip(shape, value.shape, strict=True)
        )
        if not fits:
            text = ", ".join("L" if n is None else str(n) for n in shape)
            raise UserError(
                f"cond[{name!r}] must be of shape [{text}] for this network and batch, found "
                f"{list(value.shape)}"
            )
    pair = [name for name in ("context", "context_mask") if name in cond]
    if len(pair) == 1:
        raise UserError(
            f"cond has only {pair[0]!r}; pass both 'context' [B, L, D] and 'context_mask' bool "
            "[B, L] (all True if every position exists)"
        )
    if pair and cond["context"].shape[:2] != cond["context_mask"].shape:
        raise UserError(
            f"cond['context_mask'] must be of shape {list(cond['context'].shape[:2])}, the first "
            f"two axes of cond['context'], found {list(cond['context_mask'].shape)}"
        )
    if pair and cond["context_mask"].dtype != jnp.bool_:
        raise UserError(f"cond['context_mask'] must be bool, found {cond['context_mask'].dtype}")


def label_or_null(
    label: Array | None, shape: tuple[int, ...], null_class: bool, initializing: bool
) -> Array:
    """Return the label of each image, int32 [B]; -1 for all if there is no label.

    Args:
      label: int32 [B], or None.
      shape: (B,).
      null_class: whether the network has a null class. Otherwise None is allowed only while
        `initializing`.
      initializing: whether this call only finds the shapes of the parameters.

    Raises:
      UserError: there is neither a label nor a null class.
    """
    if label is None and not (null_class or initializing):
        raise UserError(
            "the network needs cond['label'], because it has no null class (model.null_class is "
            f"False); pass cond={{'label': int32 [{shape[0]}]}}"
        )
    return jnp.full(shape, -1) if label is None else label


def concatenate_image(x: Array, image: Array | None, channels: int, initializing: bool) -> Array:
    """Append the channels of an image to x.

    Args:
      x: [B, H, W, C].
      image: [B, H, W, channels]; None is allowed only while `initializing`, and gives zeros.
      channels: channels of the image.
      initializing: whether this call only finds the shapes of the parameters.

    Returns:
      [B, H, W, C + channels], of the dtype of x.

    Raises:
      UserError: there is no image.
    """
    if image is None:
        if not initializing:
            raise UserError(
                "the network needs cond['image'] (model.super_resolution), but none is given; pass "
                f"cond={{'image': images [B, {x.shape[1]}, {x.shape[2]}, {channels}] in [-1, 1]}}"
            )
        image = jnp.zeros((*x.shape[:-1], channels), x.dtype)
    return jnp.concatenate([x, image.astype(x.dtype)], axis=-1)
