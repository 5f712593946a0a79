"""The data set `array`: images that you have as an array, in an .npz file or in the program.

    np.savez("mine.npz", images=images, labels=labels)            # then --config.data.path=mine.npz
    ddpm_jax.train(config, "runs/mine", images=images, labels=labels)

images: uint8 [N, H, W, C], where C is 1 (grey), 3 (RGB) or 4 (RGBA); or grey [N, H, W].
labels: integers [N], 0 and above; optional.

The split "test" is the fraction data.holdout of the images. `folder.divide` chooses them, as it
does for the files of a folder. Nothing is prepared or written. `images.py` converts the images if
data.image_size or data.channels differ from the shape of the array.
"""

import dataclasses
import hashlib
import os
import zipfile
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ddpm_jax.config import DataConfig
from ddpm_jax.data import images as conversions
from ddpm_jax.data.folder import divide
from ddpm_jax.data.sources import ArraySource
from ddpm_jax.errors import UserError

NAME = "array"
MAX_LABEL = np.iinfo(np.int32).max


class Arrays(NamedTuple):
    """Checked arrays.

    Attributes:
      images: uint8 [N, H, W, C] with C = 1, 3 or 4.
      labels: int32 [N], at least 0; None if there are no labels.
    """

    images: np.ndarray
    labels: np.ndarray | None


def of_program(config: DataConfig, images: Any, labels: Any = None) -> tuple[DataConfig, Arrays]:
    """Return the config for arrays that the program passes, and the checked arrays.

    Args:
      config: data.name must be "array" or the default; data.path must be empty.
      images: uint8 [N, H, W, C] or [N, H, W].
      labels: integers [N] of at least 0, or None.

    Raises:
      UserError: a config of another data set, or arrays that cannot be used.
    """
    if config.name not in (NAME, DataConfig.name) or config.path:
        raise UserError(
            f"images were given, but the config names another set (data.name={config.name!r}, "
            f"data.path={config.path!r}); set data.name={NAME!r} and leave data.path empty"
        )
    return dataclasses.replace(config, name=NAME), check(images, labels, "")


def read(path: str) -> Arrays:
    """Return the checked arrays of an .npz file.

    Raises:
      UserError: there is no such file, or its arrays cannot be used.
    """
    if not path:
        raise UserError(
            "data.path is empty; set it to an .npz file with images. If the run was trained on "
            "arrays from code, write them with np.savez(file, images=images, labels=labels)"
        )
    try:
        with np.load(os.path.expanduser(path)) as file:
            found = {name: file[name] for name in file.files}
    # For an .npy file, np.load returns an array, which is no context manager.
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"data.path {path} cannot be read as .npz ({reason}); write it with "
            "np.savez(file, images=images, labels=labels)"
        ) from error
    if "images" not in found:
        raise UserError(
            f"data.path {path} has no array 'images', it has: {', '.join(found) or 'none'}; write "
            "it with np.savez(file, images=images, labels=labels)"
        )
    return check(found["images"], found.get("labels"), f" of data.path {path}")


def check(images: Any, labels: Any, where: str) -> Arrays:
    """Return the arrays if they can be used.

    Args:
      images: uint8 [N, H, W, C] or [N, H, W].
      labels: integers [N] of at least 0, or None.
      where: the source of the arrays, for the messages; it follows the words images and labels.

    Raises:
      UserError: images that are not uint8 [N, H, W, C] or [N, H, W], or labels that are not
        integers [N] of at least 0.
    """
    if images is None:
        raise UserError("labels were given without images; pass both, or none")
    images = np.asarray(images)
    found = f"found {images.dtype} {list(images.shape)}"
    if images.dtype != np.uint8:
        raise UserError(
            f"images{where} must be uint8, 0 to 255, {found}; convert those in [-1, 1] with "
            "np.clip(np.round((images + 1) * 127.5), 0, 255).astype(np.uint8)"
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in conversions.MODES or not images.size:
        first = images.ndim == 4 and images.shape[1] in conversions.MODES
        hint = "; the channels must come last: images.transpose(0, 2, 3, 1)" if first else ""
        raise UserError(
            f"images{where} must have the shape [N, H, W, C] with C = 1, 3 or 4, or [N, H, W], and "
            f"must not be empty, {found}{hint}"
        )
    if labels is None:
        return Arrays(images, None)
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
        raise UserError(
            f"labels{where} must be one integer per image, so of the shape [{len(images)}], found "
            f"{labels.dtype} {list(labels.shape)}"
        )
    if labels.min() < 0 or labels.max() > MAX_LABEL:
        bad = labels.min() if labels.min() < 0 else labels.max()
        raise UserError(
            f"labels{where} must be 0 to num_classes - 1, found {bad}; number the classes from 0"
        )
    return Arrays(images, labels.astype(np.int32))


def split(arrays: Arrays, config: DataConfig) -> tuple[ArraySource, ArraySource | None]:
    """Return the training images and the held-out images (or None), converted as the config says.

    Args:
      arrays: the checked arrays.
      config: the config of the data.

    Raises:
      UserError: a split that does not exist, or data.text=True, because arrays have no texts.
    """
    if config.train_split != "train" or config.test_split not in ("test", ""):
        raise UserError(
            f"data.name={NAME!r} has the splits train and test, found "
            f"data.train_split={config.train_split!r} and data.test_split={config.test_split!r}"
        )
    if config.text:
        raise UserError("data.text is True, but arrays have no names; set data.text=False")
    images = convert(arrays.images, config)
    labels = np.zeros(len(images), np.int32) if arrays.labels is None else arrays.labels
    parts = divide([str(i) for i in range(len(images))], config.holdout)
    positions = [np.sort(np.array(part, np.int64)) for part in parts]
    train, test = (ArraySource(images[where], labels[where]) for where in positions)
    return train, test if len(test) and config.test_split else None


def convert(images: np.ndarray, config: DataConfig) -> np.ndarray:
    """Return the images with the size and the channels of the config.

    Args:
      images: uint8 [N, H, W, C].
      config: the config of the data; `image_size` = 0 and `channels` = 0 keep the value.

    Returns:
      [N, H', W', C'] uint8.
    """
    _, height, width, stored = images.shape
    size, channels = config.image_size, config.channels or stored
    if size in (0, height) and size in (0, width) and channels == stored:
        return images
    shape = (len(images), size or height, size or width, channels)
    converted = np.empty(shape, np.uint8)
    for i, pixels in enumerate(images):
        picture = Image.fromarray(pixels[..., 0] if stored == 1 else pixels)
        picture = conversions.convert(picture, channels)
        if size:
            picture = conversions.resize(picture, size, config.crop)
        converted[i] = conversions.to_array(picture)
    return converted


def digest(arrays: Arrays) -> str:
    """Return a short text with the number of images and a hash of the arrays."""
    content = hashlib.sha256(repr(arrays.images.shape).encode())
    content.update(np.ascontiguousarray(arrays.images).data)
    if arrays.labels is not None:
        content.update(np.ascontiguousarray(arrays.labels).data)
    return f"{len(arrays.images)} images, sha256 {content.hexdigest()[:16]}"
