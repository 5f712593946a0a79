"""What of a batch the network is told besides x_t and t, as the config says."""

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
from ddpm_jax.errors import UserError
from ddpm_jax.pixels import to_x_0
from ddpm_jax.pretrained import text_encoder
from ddpm_jax.types import Array, Conditioning

CHUNK = 512  # images read at once


def coarse(x_0: Array, factor: int) -> Array:
    """Return images [B, H, W, C] with each block of factor x factor pixels at its mean.

    The conditioning of super-resolution (Ho et al. 2022, "Cascaded diffusion models"; there the
    upsampling is bilinear): averaging, then repeating, so that the shape stays.
    """
    batch, height, width, channels = x_0.shape
    blocks = x_0.reshape(batch, height // factor, factor, width // factor, factor, channels)
    means = blocks.mean(axis=(2, 4), keepdims=True)
    return jnp.broadcast_to(means, blocks.shape).reshape(x_0.shape)


def cond_names(config: Config) -> tuple[str, ...]:
    """Return the entries of cond that the network of this config takes."""
    model = config.model
    names = {
        "label": model.class_conditional,
        "embedding": model.embedding_dim > 0,
        "context": model.context_dim > 0,
        "context_mask": model.context_dim > 0,
        "image": model.super_resolution > 0,
    }
    return tuple(name for name, wanted in names.items() if wanted)


def make_cond_fn(config: Config):
    """Return batch -> cond: the entries of the batch that the network takes, or None.

    The batch's own "image" is what is to be learned; cond["image"] is its coarse version.
    """
    names, factor = cond_names(config), config.model.super_resolution

    def cond_fn(batch: Mapping[str, Any]) -> Conditioning | None:
        cond = {name: batch[name] for name in names if name != "image"}
        if factor:
            cond["image"] = coarse(to_x_0(batch["image"]), factor)
        return cond or None

    return cond_fn


def text_rows(
    config: Config, dataset: Dataset
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the encoded texts of the training and of the held-out images, a row for each.

    They are computed once for a set and kept in data.data_dir.
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
    """Return what the network is told of some images of a source; None where it is told nothing.

    Args:
      config: the run's.
      source: the images.
      rows: the encoded texts of all of them (`text_rows`).
      indices: [n] int.
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
    """Return what the sample grids of a run are told: each class in turn, where labels are all.

    Texts and coarse images are those of the first held-out images, of training images if none.
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
    """Return what n images of a split, in random order, tell the network; None if nothing.

    Where n is the number of images each is taken once: classes are as frequent as in the data.

    Args:
      config: the run's.
      source: the split's images.
      rows: what else the network is told of each of them (`text_rows`).
      n: how many, with repetition after all have had their turn.
      seed: of the order.
    """
    if not cond_names(config):
        return None
    cond_fn, parts = make_cond_fn(config), []
    order = np.random.default_rng(seed).permutation(len(source))
    order = np.tile(order, math.ceil(n / len(order)))[:n]
    for start in range(0, n, CHUNK):  # the images need not fit in memory
        indices = order[start : start + CHUNK]
        images, labels = source.read(indices)
        batch = {"image": images, "label": labels} | {k: v[indices] for k, v in rows.items()}
        parts.append(jax.device_get(cond_fn(batch)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def check(config: Config, image_shape: tuple[int, int, int]) -> None:
    """Raise `UserError` where the config asks for a conditioning that the data do not give."""
    model, width = config.model, text_encoder.WIDTH
    dims = {"model.embedding_dim": model.embedding_dim, "model.context_dim": model.context_dim}
    if config.data.text and not any(dims.values()):
        raise UserError(
            f"data.text is True, but the model takes no text; set model.embedding_dim={width} "
            f"or model.context_dim={width}, or data.text=False"
        )
    for key, dim in dims.items():
        if dim and not config.data.text:
            raise UserError(
                f"{key} is {dim}, but data.text is False, so there is nothing to feed it; set "
                f"data.text=True (emoji), or {key}=0"
            )
        if dim not in (0, width):
            raise UserError(f"{key} is {dim}, but texts are {width} wide; set {key} to that")
    factor, (rows, columns, _) = model.super_resolution, image_shape
    if factor and (factor < 2 or rows % factor or columns % factor):
        raise UserError(
            f"model.super_resolution must be a factor of at least 2 that divides the images' "
            f"{rows}x{columns}, or 0, found {factor}"
        )
