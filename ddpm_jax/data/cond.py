"""The conditioning of a run: which entries of a batch the network receives with x_t and t.

    cond entry              the network receives it if             it comes from
    label                   model.class_conditional                the labels of the set
    embedding               model.embedding_dim > 0                the texts, encoded (`text_rows`)
    context, context_mask   model.context_dim > 0                  the texts, encoded (`text_rows`)
    image                   model.super_resolution > 0             the image itself, made coarse
    image                   model.name is autoencoder              the image itself
    view                    model.name is xunet                    another image of the object
    pose, focal, centre     model.name is xunet                    the cameras of both images

`models.inputs` gives their shapes.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.config import Config
from ddpm_jax.data.datasets import Dataset
from ddpm_jax.data.prepared import data_directory
from ddpm_jax.data.sources import Source
from ddpm_jax.data.views import Pairs
from ddpm_jax.errors import UserError
from ddpm_jax.pixels import to_x_0
from ddpm_jax.pretrained import text_encoder
from ddpm_jax.types import Array, Conditioning

CHUNK = 512  # number of images read at a time
OF_VIEWS = ("view", "pose", "focal", "centre")


def coarse(x_0: Array, factor: int) -> Array:
    """Replace each block of factor x factor pixels by its mean; the shape stays.

    This is the low-resolution image that conditions super-resolution (Ho et al. 2022, "Cascaded
    diffusion models").

    Deviates from the paper, which upsamples bilinearly: here the mean is repeated.

    Args:
      x_0: [B, H, W, C] float; `factor` divides H and W.
      factor: side of a block in pixels, at least 1.

    Returns:
      [B, H, W, C] float.
    """
    batch, height, width, channels = x_0.shape
    blocks = x_0.reshape(batch, height // factor, factor, width // factor, factor, channels)
    means = blocks.mean(axis=(2, 4), keepdims=True)
    return jnp.broadcast_to(means, blocks.shape).reshape(x_0.shape)


def cond_names(config: Config) -> tuple[str, ...]:
    """Return the names of the cond entries that the network of this config receives."""
    model = config.model
    names = {
        "label": model.class_conditional,
        "embedding": model.embedding_dim > 0,
        "context": model.context_dim > 0,
        "context_mask": model.context_dim > 0,
        "image": model.super_resolution > 0 or model.name == "autoencoder",
        **dict.fromkeys(OF_VIEWS, model.name == "xunet"),
    }
    return tuple(name for name, wanted in names.items() if wanted)


def make_cond_fn(config: Config):
    """Return a function from a batch to cond: the entries that the network receives.

    The function returns None if the network has no conditioning. The batch's "image" is the
    training target; cond["image"] is its coarse version (`coarse`), float in [-1, 1]. So is
    cond["view"].
    """
    names, factor = cond_names(config), max(config.model.super_resolution, 1)

    def cond_fn(batch: Mapping[str, Any]) -> Conditioning | None:
        cond = {name: batch[name] for name in names if name != "image"}
        if "image" in names:
            cond["image"] = coarse(to_x_0(batch["image"]), factor)
        if "view" in names:
            cond["view"] = to_x_0(batch["view"])
        return cond or None

    return cond_fn


def rows_of(
    config: Config, dataset: Dataset
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return all inputs of the network that are not images or labels, with one row per image.

    Args:
      config: the config of the run.
      dataset: the data of the run.

    Returns:
      {name of an entry of a batch: array [N, ...]} of the training images, and of the held-out
      images: the encoded texts (`text_rows`), and the other view with the cameras (`Pairs.fixed`).

    Raises:
      UserError: as `pairs_of`.
    """
    rows = text_rows(config, dataset)
    for own, pairs in zip(rows, pairs_of(config, dataset), strict=True):
        own.update({} if pairs is None else pairs.fixed())
    return rows


def pairs_of(config: Config, dataset: Dataset) -> tuple[Pairs | None, Pairs | None]:
    """Return the pairs of views of the training images and of the held-out images.

    Both are None for a network that receives no view; the second also if no images are held out.

    Raises:
      UserError: the network needs views, but the data have no cameras, or an object has one view.
    """
    if "view" not in cond_names(config):
        return None, None
    if dataset.train_views is None:
        raise UserError(
            f"model.name is xunet, which needs the camera of every image, but data.name="
            f"{config.data.name} has none; set data.name to solids or srn"
        )
    sides = (dataset.train, dataset.train_views), (dataset.test, dataset.test_views)
    train, test = (Pairs(*side) if None not in side else None for side in sides)
    return train, test


def text_rows(
    config: Config, dataset: Dataset
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the encoded texts of the training images and of the held-out images.

    Each is {name of a cond entry: array with one row per image}, and {} without texts. The arrays
    are computed once per set and cached in data.data_dir.
    """
    directory = pathlib.Path(data_directory(config.data.data_dir)) / "encoded_texts"
    names = cond_names(config)

    def rows(texts: tuple[str, ...]) -> dict[str, np.ndarray]:
        encoded = text_encoder.cached_conditioning(texts, directory) if texts else {}
        return {name: value for name, value in encoded.items() if name in names}

    return rows(dataset.train_texts), rows(dataset.test_texts)


def cond_of(
    config: Config, source: Source, rows: Mapping[str, np.ndarray], indices: np.ndarray
) -> Conditioning | None:
    """Return the cond of some images of a source; None if the network has no conditioning.

    Args:
      config: the config of the run.
      source: the images.
      rows: the other inputs of all images of the source (`rows_of`).
      indices: [n] int, which images.

    Returns:
      numpy arrays with n rows.
    """
    images, labels = source.read(indices)
    batch = {"image": images, "label": labels} | {k: v[indices] for k, v in rows.items()}
    return jax.device_get(make_cond_fn(config)(batch))


def grid_cond(
    config: Config,
    dataset: Dataset,
    train_rows: Mapping[str, np.ndarray],
    test_rows: Mapping[str, np.ndarray],
) -> Mapping[str, Any] | None:
    """Return the cond of the train.num_samples images in a run's sample grids, or None.

    If the label is the only entry, the classes come in turn: 0, 1, 2, ... Otherwise the cond is
    taken from the first held-out images, or from the first training images if none are held out.
    """
    names, n = cond_names(config), config.train.num_samples
    if names in ((), ("label",)):
        return {name: np.arange(n, dtype=np.int32) % dataset.num_classes for name in names} or None
    source, rows = (dataset.test, test_rows) if dataset.test else (dataset.train, train_rows)
    return cond_of(config, source, rows, np.arange(n) % len(source))


def drawn_cond(
    config: Config,
    source: Source,
    rows: Mapping[str, np.ndarray],
    n: int,
    seed: int,
) -> dict[str, np.ndarray] | None:
    """Return the cond of n images of a split, in random order; None without conditioning.

    Every image is taken once before any is taken twice. So if n is a multiple of the number of
    images, each class is as frequent as in the data.

    Args:
      config: the config of the run.
      source: the images of the split.
      rows: the encoded texts of all images of the split (`text_rows`).
      n: number of rows to return, at least 1.
      seed: seed of the order.
    """
    if not cond_names(config):
        return None
    cond_fn, parts = make_cond_fn(config), []
    order = np.random.default_rng(seed).permutation(len(source))
    order = np.tile(order, math.ceil(n / len(order)))[:n]
    for start in range(0, n, CHUNK):  # in chunks, because the images may not fit in memory
        indices = order[start : start + CHUNK]
        images, labels = source.read(indices)
        batch = {"image": images, "label": labels} | {k: v[indices] for k, v in rows.items()}
        parts.append(jax.device_get(cond_fn(batch)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def check(config: Config, image_shape: tuple[int, int, int]) -> None:
    """Check that the data provide the conditioning that the config asks for.

    Args:
      config: the config of the run.
      image_shape: (H, W, C) of the images.

    Raises:
      UserError: texts are missing, unused or of another width than the network's input; or
        super-resolution by a factor that does not divide the images.
    """
    model, width = config.model, text_encoder.WIDTH
    dims = {"model.embedding_dim": model.embedding_dim, "model.context_dim": model.context_dim}
    if config.data.text and not any(dims.values()):
        raise UserError(
            f"data.text is True, but the network has no input for texts; set "
            f"model.embedding_dim={width} or model.context_dim={width}, or set data.text=False"
        )
    for key, dim in dims.items():
        if dim and not config.data.text:
            raise UserError(
                f"{key} is {dim}, but data.text is False, so there are no texts to encode; set "
                f"data.text=True (needs data.name='emoji' or another set with names), or {key}=0"
            )
        if dim not in (0, width):
            raise UserError(
                f"{key} is {dim}, but the encoded texts are {width} wide; set {key}={width}"
            )
    if model.name == "xunet" and config.data.flip:
        raise UserError(
            "data.flip is True, but a mirrored image does not fit its camera, which model.name="
            "xunet receives; set data.flip=False"
        )
    factor, (rows, columns, _) = model.super_resolution, image_shape
    if factor and (factor < 2 or rows % factor or columns % factor):
        raise UserError(
            f"model.super_resolution must be 0 (off), or a factor of at least 2 that divides both "
            f"sides of the {rows}x{columns} images, found {factor}"
        )
