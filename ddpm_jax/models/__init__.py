"""Networks, written in Flax Linen.

The rest of the code uses a `Model`, a pair of pure functions: `init(key) -> params` and
`apply(params, x_t, t, cond, *, train, key) -> output`. A network of any other library can be
wrapped in the same way.
"""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.models.classifier import Classifier
from ddpm_jax.models.discriminator import Discriminator
from ddpm_jax.models.unet import UNet
from ddpm_jax.models.xunet import XUNet
from ddpm_jax.types import ApplyFn, Array, Conditioning, Params, PRNGKey

__all__ = [
    "Classifier",
    "Discriminator",
    "Model",
    "UNet",
    "XUNet",
    "as_model",
    "count_parameters",
    "digest",
]


class Model(NamedTuple):
    """A network as two pure functions.

    Attributes:
      init: key -> params, a tree of float32 arrays.
      apply: (params, x_t [B, H, W, C], t [B], cond, *, train, key) -> output.
    """

    init: Callable[[PRNGKey], Params]
    apply: ApplyFn


def as_model(module: nn.Module, image_shape: tuple[int, int, int]) -> Model:
    """Wrap a Linen module `(x, t, cond, *, train) -> output` as a `Model`.

    Args:
      module: the network, for instance `UNet()`.
      image_shape: (H, W, C) of one image.

    Returns:
      A `Model`. Its `apply` needs `key`, for dropout, if `train` is True.
    """

    def init(key: PRNGKey) -> Params:
        x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        t = jax.ShapeDtypeStruct((1,), jnp.int32)
        return module.lazy_init(key, x, t)["params"]  # only shapes: runs no forward pass

    def apply(
        params: Params,
        x_t: Array,
        t: Array,
        cond: Conditioning | None = None,
        *,
        train: bool = False,
        key: PRNGKey | None = None,
    ) -> Array:
        rngs: Any = {"dropout": key} if train else None
        output: Any = module.apply({"params": params}, x_t, t, cond, train=train, rngs=rngs)
        return output

    return Model(init, apply)


def digest(arrays: Any) -> str:
    """Return a hash of the shapes, types and bytes of a pytree of arrays: 16 hexadecimal digits."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(arrays)):
        leaf = np.ascontiguousarray(leaf)
        found.update(f"{leaf.shape}{leaf.dtype}".encode() + leaf.tobytes())
    return found.hexdigest()[:16]


def count_parameters(params: Params) -> int:
    """Return the number of scalars in a tree of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
