"""The FID's Inception as a network of features, with the weights that others publish."""

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
    """Return the network that FID, KID and Inception score are defined by.

    Its features are the 2048 pooled ones; its head gives the 1008 logits without their bias, as
    the Inception score takes them. Images of one channel are taken for grey.

    The checksum was not computed here, from the published file, but is what several projects give
    for it; its first digits stand in the file's name.

    Args:
      directory: where the 96 MB are kept once downloaded; they may be placed by hand in
        `<directory>/manual`.
      path: a file to read instead, "" for none. Unless it is the published one, byte for byte, the
        network is called "inception_<start of its SHA-256>": what it measures is no FID.

    Raises:
      UserError: there are no weights and no network to fetch them by, they are not the published
        ones, or a file of the user's own is not torch's or holds other tensors.
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
