"""Features of images by the FID's Inception: its published weights, and images batch by batch."""

import functools
import os
from collections.abc import Callable

import jax
import numpy as np

from ddpm_jax import compiler
from ddpm_jax.download import Archive, fetch
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.torch_file import read_tensors
from ddpm_jax.models.inception import from_state, inception_features
from ddpm_jax.types import Params

# torch-fidelity's release; pytorch-fid publishes the same bytes as pt_inception-2015-12-05-...
WEIGHTS = Archive(
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",
    95_628_359,
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)


def load_params(directory: str, path: str | os.PathLike = "") -> Params:
    """Return the parameters of the FID's Inception, downloading them if they are not there.

    Args:
      directory: where the 96 MB are kept; `<directory>/manual` is where they may be placed by
        hand. A file there is used if its SHA-256 is the published one's.
      path: a file of the user's own instead, of the same tensors. It is taken as it is: numbers
        measured with other weights than the published ones are not FIDs.

    Raises:
      UserError: there is no such file and no network, or it is not the published one; a file of
        the user's own is not one of torch's, or of other tensors.
    """
    return from_state(read_tensors(path or fetch(WEIGHTS, "inception", directory)))


def features(params: Params, images: np.ndarray, batch_size: int = 64) -> dict[str, np.ndarray]:
    """Return the features of any number of images.

    All batches run the one program: the last is filled up, and what filled it thrown away.

    Args:
      params: of `load_params`.
      images: uint8 [N, H, W, 3], RGB.
      batch_size: images at once, about 60 MB each.

    Returns:
      Of `models.inception.inception_features`, of all images in their order.

    Raises:
      UserError: there are no images, or they are of another type or shape.
    """
    if not len(images):
        raise UserError("there are no images to take features of")
    run, params = _run(), jax.device_put(params)
    parts = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        filled = np.resize(batch, (min(batch_size, len(images)), *batch.shape[1:]))
        parts.append({k: np.asarray(v)[: len(batch)] for k, v in run(params, filled).items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@functools.cache
def _run() -> Callable:
    """Compiled once a shape, for as long as the process lives."""
    return jax.jit(inception_features, compiler_options=compiler.options(compiler.NETWORK))
