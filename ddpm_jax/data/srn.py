"""Renderings with cameras in the layout of Scene Representation Networks (Sitzmann et al. 2019).

    <path>/<split>/<object>/rgb/000000.png       an image; transparent pixels go on white
    <path>/<split>/<object>/pose/000000.txt      16 numbers: its pose, camera to world
    <path>/<split>/<object>/intrinsics.txt       f c_u c_v 0., and in a later line: height width

A directory whose name is train, val or test, or ends with that word (`cars_train`), is a split; the
others are ignored. The conventions of the cameras are those of `scenes.cameras`. All images must be
square and of one size. If they are not of the size in intrinsics.txt, f and the centre are scaled.

There are no labels. Each record keeps the `object` (an index over all splits), `pose`, `focal` and
`centre`. The set is prepared again if a file changes.
"""

import hashlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from ddpm_jax.config import DataConfig
from ddpm_jax.data import images
from ddpm_jax.data.prepared import Builder
from ddpm_jax.errors import UserError

SPLITS = ("train", "val", "test")


class Srn(Builder, skip_registration=True):
    """Builder of the set `srn`.

    Raises:
      UserError: there is no such directory, or it holds no objects with images.
    """

    name = "srn"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, data_config: DataConfig, **kwargs: Any):
        self.objects = scan(data_config.path)
        key, first = hashlib.sha256(), None
        for path in (path for paths in self.objects.values() for path in paths):
            for file in _files(path):
                found = file.stat()
                key.update(f"{file} {found.st_size} {found.st_mtime_ns}\n".encode())
                first = first or (file if file.suffix == ".png" else None)
        if first is None:
            raise UserError(
                f"data.path {data_config.path} holds no file <split>/<object>/rgb/*.png; set it to "
                "a directory in the layout of SRN"
            )
        self.side = len(_read_image(first, None))
        variant = f"{self.side}_{key.hexdigest()[:16]}"
        super().__init__(data_config=data_config, variant=variant, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Renderings of objects, with cameras, in the layout of SRN.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(self.side, self.side, 3)),
                    "object": tfds.features.Scalar(np.int64),
                    "pose": tfds.features.Tensor(shape=(4, 4), dtype=np.float32),
                    "focal": tfds.features.Scalar(np.float32),
                    "centre": tfds.features.Tensor(shape=(2,), dtype=np.float32),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        splits, first = {}, 0
        for split, paths in self.objects.items():
            splits[split] = self._generate_examples(paths, first)
            first += len(paths)
        return splits

    def _generate_examples(
        self, paths: list[pathlib.Path], first: int
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for index, path in enumerate(paths, first):
            pictures = [file for file in _files(path) if file.suffix == ".png"]
            focal, centre, width = read_intrinsics(path / "intrinsics.txt")
            scale = self.side / width
            for file in pictures:
                pixels = _read_image(file, self.side)
                yield (
                    str(file.relative_to(path.parents[1])),
                    {
                        "image": images.encode_png(Image.fromarray(pixels)),
                        "object": index,
                        "pose": read_pose(path / "pose" / f"{file.stem}.txt"),
                        "focal": np.float32(scale * focal),
                        "centre": (scale * centre).astype(np.float32),
                    },
                )


def scan(path: str) -> dict[str, list[pathlib.Path]]:
    """Return the directories of the objects of each split, sorted by name.

    Raises:
      UserError: there is no such directory, or it holds no objects.
    """
    root = pathlib.Path(path).expanduser().resolve()
    if not path or not root.is_dir():
        found = f"{path} is not a directory" if path else "is empty"
        raise UserError(f"data.path {found}; set it to a directory in the layout of SRN")
    found = {split: [] for split in SPLITS}
    for directory in sorted(root.iterdir()):
        split = directory.name.rpartition("_")[2]
        if split in found and directory.is_dir():
            found[split] += sorted(d for d in directory.iterdir() if (d / "rgb").is_dir())
    found = {split: paths for split, paths in found.items() if paths}
    if not found:
        raise UserError(
            f"data.path {path} holds no objects <split>/<object>/rgb/, where <split> is "
            f"{', '.join(SPLITS)}, or ends with it; set it to a directory in the layout of SRN"
        )
    return found


def read_intrinsics(path: pathlib.Path) -> tuple[float, np.ndarray, float]:
    """Return f, (c_u, c_v) [2] and the width that they refer to, all in pixels.

    Raises:
      UserError: the file cannot be read or has other numbers.
    """
    lines = [row for row in map(str.split, _read_text(path).splitlines()) if row]
    try:
        focal, *centre = (float(word) for word in lines[0][:3])
        (_, width) = (float(word) for word in next(row for row in lines[1:] if len(row) == 2))
    except (ValueError, IndexError, StopIteration) as error:
        raise UserError(
            f"{path} must have a first line 'f c_u c_v 0.' and a later line 'height width'; repair "
            "the file"
        ) from error
    if len(centre) != 2 or not (np.isfinite(centre).all() and 0 < focal < np.inf and width > 0):
        raise UserError(
            f"{path} must have a focal length and a width above 0 and a centre of two numbers, "
            f"found {focal}, {width} and {centre}; repair the file"
        )
    return focal, np.array(centre), width


def read_pose(path: pathlib.Path) -> np.ndarray:
    """Return the pose of an image, camera to world: [4, 4] float32.

    Raises:
      UserError: the file cannot be read, or is not 16 numbers that are a pose.
    """
    words = _read_text(path).split()
    try:
        numbers = np.array(words, np.float32)
    except ValueError:
        numbers = np.zeros(0)
    pose = numbers.reshape(4, 4) if numbers.size == 16 else np.zeros((4, 4))
    turned = pose[:3, :3]
    rotation = np.allclose(turned @ turned.T, np.eye(3), atol=1e-2) and np.isfinite(pose).all()
    if not rotation:
        raise UserError(
            f"{path} must hold 16 numbers, a rotation and a position [4, 4] from camera to world, "
            f"found {len(words)} words; repair the file"
        )
    return pose


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    """Return the files of an object: images, poses and intrinsics, sorted."""
    found = [*(path / "rgb").glob("*.png"), *(path / "pose").glob("*.txt")]
    return sorted([*found, *path.glob("intrinsics.txt")])


def _read_image(path: pathlib.Path, side: int | None) -> np.ndarray:
    """Return the pixels of an image, uint8 [side, side, 3]; None is any side.

    Raises:
      UserError: the image cannot be read, is not square, or is of another side.
    """
    try:
        with images.open_image(path) as image:
            pixels = np.asarray(images.convert(image, 3))
    except Exception as error:  # Pillow's plugins raise many types for damaged files
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as an image ({reason}); repair it") from error
    height, width, _ = pixels.shape
    if height != width or side not in (None, width):
        wanted = f"{side}x{side} as the first image" if side else "square"
        raise UserError(f"{path} must be {wanted}, found {height}x{width}; make it of that size")
    return pixels


def _read_text(path: pathlib.Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise UserError(
            f"{path} cannot be read ({reason}); each object needs intrinsics.txt, and each image a "
            "file of the same name in pose/"
        ) from error
