"""From a `DataConfig` to images: `open_dataset`."""

import dataclasses
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from ddpm_jax.config import DataConfig
from ddpm_jax.data import images, prepared
from ddpm_jax.data.digits import Digits
from ddpm_jax.data.sources import RecordSource, Source, load
from ddpm_jax.errors import UserError, unknown

BUILDERS = {"digits": Digits}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """An opened set.

    Attributes:
      train: the training images.
      test: the held-out images, or None.
      image_shape: (H, W, C) of every image.
      num_classes: 0 where there are no labels.
      class_names: one per class.
    """

    train: Source
    test: Source | None
    image_shape: tuple[int, int, int]
    num_classes: int
    class_names: tuple[str, ...]


def open_dataset(config: DataConfig) -> Dataset:
    """Open the set that the config names, preparing it first where that has not been done.

    Raises `UserError` for whatever the user can mend: a name, a split, a missing archive.
    """
    _check(config)
    data_dir = prepared.data_directory(config.data_dir)
    builder = prepared.prepare(
        BUILDERS[config.name](data_dir=data_dir, file_format=prepared.FORMAT)
    )
    shape = _image_shape(builder.info, config)
    label = dict(builder.info.features).get("label")
    class_names = tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else ()

    def decode(record: dict[str, Any]) -> tuple[np.ndarray, int]:
        image = images.decode(record["image"], config.image_size, shape[2], config.crop)
        return image, int(record["label"]) if class_names else 0

    splits = [config.train_split, config.test_split]
    sources = [
        RecordSource(prepared.records(builder, split, key), decode) if split else None
        for split, key in zip(splits, ("data.train_split", "data.test_split"), strict=True)
    ]
    num_bytes = sum(len(source) for source in sources if source) * int(np.prod(shape))
    if num_bytes <= config.ram_limit_gb * 1e9:
        sources = [source and load(source, shape) for source in sources]
    return Dataset(*sources, shape, len(class_names), class_names)


def _check(config: DataConfig) -> None:
    """Refuse values that no set can have."""
    if config.channels not in (0, *images.MODES):
        raise UserError(f"data.channels must be 1, 3, 4, or 0, found {config.channels}")
    if config.image_size < 0:
        raise UserError(f"data.image_size must be positive, or 0, found {config.image_size}")
    if config.crop not in images.CROPS:
        raise unknown("data.crop", config.crop, images.CROPS)


def _image_shape(info: tfds.core.DatasetInfo, config: DataConfig) -> tuple[int, int, int]:
    """Return (H, W, C) of the images as the config wants them."""
    feature = dict(info.features).get("image")
    if not isinstance(feature, tfds.features.Image) or feature.np_dtype != np.uint8:
        found = ", ".join(info.features)
        raise UserError(f"{info.name} has no 8-bit feature 'image'; its features are: {found}")
    height, width, channels = feature.shape
    if config.image_size:
        height = width = config.image_size
    if height is None or width is None:
        raise UserError(
            f"the images of {info.name} differ in size; set data.image_size to the side in pixels "
            "that they shall have, for example 64"
        )
    return height, width, config.channels or channels
