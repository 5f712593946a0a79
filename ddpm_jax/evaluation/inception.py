"""The Inception network of FID as a feature network, with its published weights."""

import os

import jax.numpy as jnp
import numpy as np

from ddpm_jax.evaluation.features import FeatureNetwork
from ddpm_jax.pretrained import inception
from ddpm_jax.pretrained.torch_file import read_tensors
from ddpm_jax.runtime.files import Archive, fetch, sha256
from ddpm_jax.types import Array, Params

# The release of torch-fidelity; pytorch-fid's pt_inception-2015-12-05-6726825d.pth is the same file
WEIGHTS = Archive(
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",
    95_628_359,
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)


def load(directory: str, path: str = "") -> FeatureNetwork:
    """Return the network that defines FID, KID and the Inception score.

    The features are the 2048 pooled features. The head gives the 1008 logits without their bias, as
    the Inception score uses them. Images of one channel are grey.

    The checksum was not computed here from the published file. Several projects give this checksum
    for the file, and the name of the file contains its first digits.

    Args:
      directory: the directory where the 96 MB are kept after the download. You can also place them
        by hand in `<directory>/manual`.
      path: a file to read instead; "" is no file. If one byte differs from the published file, the
        network is called "inception_<start of its SHA-256>", because its distance is not the FID.

    Raises:
      UserError: there are no weights and the download fails; the weights differ from the published
        file; or the file at `path` is not a torch file or has other tensors.
    """
    file = os.path.expanduser(path) or fetch(WEIGHTS, "inception", directory)
    params = inception.from_state(read_tensors(file))
    digest = sha256(file)
    name = "inception" if digest == WEIGHTS.sha256 else f"inception_{digest[:8]}"
    weights = params["params"]["fc"]["kernel"]
    head = (weights, np.zeros(weights.shape[1], np.float32))
    return FeatureNetwork(name, digest[:16], _pool, params, head)


def _pool(params: Params, images: Array) -> Array:
    """Return the pooled features [B, 2048] of images: uint8 [B, H, W, 1 or 3]."""
    if images.shape[-1] == 1:
        images = jnp.repeat(images, 3, axis=-1)
    return inception.inception_features(params, images)["pool"]
