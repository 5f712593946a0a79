"""What a network may be told besides x_t and t, and how it hears that it is told nothing.

    cond entry                    enters by                              null
    label         int32 [B]       a learned row, added to embedding(t)   negative
    embedding     [B, D]          Dense, added to embedding(t)           all zero
    context       [B, L, D]       cross-attention where blocks attend    masked out, all of it
    context_mask  bool [B, L]     which positions of context are there
    image         [B, H, W, C']   concatenated to x_t                    none: it is always needed

Null rows are learned (Ho & Salimans 2022): a row of the label's table, a vector in place of the
zeros, one position in place of the context that is not there. An entry that is absent is null in
all rows.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp

from ddpm_jax.errors import UserError, unknown
from ddpm_jax.models.attention import fan_avg
from ddpm_jax.types import Array

LACKING = {
    "label": "no classes (model.class_conditional is False)",
    "embedding": "no embedding (model.embedding_dim is 0)",
    "context": "no cross-attention (model.context_dim is 0)",
    "context_mask": "no cross-attention (model.context_dim is 0)",
    "image": "no image to look at (model.super_resolution is 0)",
}
_null = nn.initializers.normal(1.0)  # of the size of what it stands for


class EmbeddedVector(nn.Module):
    """Dense of a vector per image, or of a learned vector where it is zero."""

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
    """A context with one more position, learned, which is seen only where there is no other."""

    @nn.compact
    def __call__(self, context: Array, mask: Array) -> tuple[Array, Array]:
        """Return context [B, 1 + L, D] and mask [B, 1 + L]; what is masked out becomes 0."""
        batch, _, width = context.shape
        null = jnp.broadcast_to(self.param("null", _null, (1, 1, width)), (batch, 1, width))
        absent = ~jnp.any(mask, axis=1, keepdims=True)
        context = jnp.where(mask[:, :, None], context.astype(jnp.float32), 0.0)  # 0 * NaN is NaN
        return jnp.concatenate([null, context], axis=1), jnp.concatenate([absent, mask], axis=1)


def check_cond(cond: Mapping[str, Array], wanted: Mapping[str, tuple[int | None, ...]]) -> None:
    """Raise `UserError` where the network cannot take the conditioning.

    Args:
      cond: the conditioning.
      wanted: the shape of each entry that the network knows; None is any length.
    """
    for name, value in cond.items():
        if name not in LACKING:
            raise unknown("entry of cond", name, LACKING)
        if name not in wanted:
            raise UserError(f"cond[{name!r}] is given, but the network has {LACKING[name]}")
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
            f"cond has {pair[0]!r} alone; 'context' [B, L, D] and 'context_mask' bool [B, L] come "
            "together (all True: every position is there)"
        )
    if pair and cond["context"].shape[:2] != cond["context_mask"].shape:
        raise UserError(
            f"cond['context_mask'] must be of shape {list(cond['context'].shape[:2])}, as "
            f"cond['context'] is long, found {list(cond['context_mask'].shape)}"
        )
    if pair and cond["context_mask"].dtype != jnp.bool_:
        raise UserError(f"cond['context_mask'] must be bool, found {cond['context_mask'].dtype}")


def concatenate_image(x: Array, image: Array | None, channels: int, initializing: bool) -> Array:
    """Return x [B, H, W, C] with the image [B, H, W, channels] behind it.

    Raises `UserError` where there is none; only while the parameters' shapes are found it is zeros.
    """
    if image is None:
        if not initializing:
            raise UserError(
                "the network looks at an image (model.super_resolution), but none is given; pass "
                f"cond={{'image': images [B, {x.shape[1]}, {x.shape[2]}, {channels}] in [-1, 1]}}"
            )
        image = jnp.zeros((*x.shape[:-1], channels), x.dtype)
    return jnp.concatenate([x, image.astype(x.dtype)], axis=-1)
