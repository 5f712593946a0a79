"""Features of images: any function from pixels to vectors, run on all local devices.

    images uint8 [n, H, W, C] --network.apply, sharded--> features float32 [n, D]
    logits = features @ weights + bias, if the network has such a head

Any network fits: `FeatureNetwork("mine", digest, lambda params, images: f(images))`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax.runtime import rows
from ddpm_jax.types import Array


class FeatureNetwork(NamedTuple):
    """A network that computes the features in which images are compared.

    Attributes:
      name: the name of the network in tables, such as "classifier" or "inception".
      digest: a hash of the weights; it is part of the key of cached results.
      apply: (params, images uint8 [B, H, W, C]) -> [B, D] float32, pure; `make_features` jits it.
      params: a pytree of arrays.
      head: (weights [D, K], bias [K]) from features to the logits of classes, or None.
    """

    name: str
    digest: str
    apply: Callable[[Any, Array], Array]
    params: Any = ()
    head: tuple[np.ndarray, np.ndarray] | None = None


def make_features(
    network: FeatureNetwork, *, batch_size: int = 256, devices: Sequence[Any] | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """Build `features(images)`: uint8 [n, H, W, C] -> float32 [n, D], both on the host.

    The devices share each batch of images. The last batch is padded, and its result is cut, so the
    network compiles once. The result does not depend on the batch size or the devices, except for
    rounding in float32.

    Args:
      network: the feature network.
      batch_size: number of images in a batch, rounded up to a multiple of the devices.
      devices: the devices to use; None is all local devices.
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
