"""Features of images: any function from pixels to vectors, run on all local devices.

    images uint8 [n, H, W, C] --network.apply, sharded--> features float32 [n, D]
    logits = features @ weights + bias, where the network has such a head

The network is a seam: `FeatureNetwork("mine", digest, lambda params, images: f(images))` will do.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax.runtime import rows
from ddpm_jax.types import Array


class FeatureNetwork(NamedTuple):
    """A network that gives the features in which images are compared.

    Attributes:
      name: what it is called in tables: "classifier", "inception".
      digest: of its weights; what was computed with it is kept under this key.
      apply: (params, images uint8 [B, H, W, C]) -> [B, D] float32, pure; jitted here.
      params: a pytree of arrays.
      head: (weights [D, K], bias [K]) from features to the logits of classes, or None.
    """

    name: str
    digest: str
    apply: Callable[[Any, Array], Array]
    params: Any = ()
    head: tuple[np.ndarray, np.ndarray] | None = None


def digest(arrays: Any) -> str:
    """Return a short hash of a pytree of arrays: of their shapes, types and bytes."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(arrays)):
        leaf = np.ascontiguousarray(leaf)
        found.update(f"{leaf.shape}{leaf.dtype}".encode() + leaf.tobytes())
    return found.hexdigest()[:16]


def make_features(
    network: FeatureNetwork, *, batch_size: int = 256, devices: Sequence[Any] | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """Build `features(images) -> [n, D]`, from uint8 [n, H, W, C] on the host and back to it.

    Images go through in batches that the devices share; the last one is filled up and cut, so
    that it compiles once. The result does not depend on the batch size or the devices, but for
    rounding in float32.

    Args:
      network: the network.
      batch_size: images at once, rounded up to a multiple of the devices.
      devices: which; None is all local ones.
    """
    count, replicated, _ = rows.local_devices(devices)
    params = jax.device_put(network.params, replicated)
    size = math.ceil(batch_size / count) * count
    apply = rows.over_local_devices(network.apply, devices=devices)

    def start(batch: np.ndarray) -> Array:
        return apply(params, rows.pad(batch, size))

    def features(images: np.ndarray) -> np.ndarray:
        batches = [images[i : i + size] for i in range(0, len(images), size)]
        ahead, found = start(batches[0]), []
        for i, batch in enumerate(batches):
            current = ahead
            ahead = start(batches[i + 1]) if i + 1 < len(batches) else None
            found.append(np.asarray(current, np.float32)[: len(batch)])
        return np.concatenate(found)

    return features
