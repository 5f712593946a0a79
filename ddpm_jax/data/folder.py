"""A folder of images: any size and format that Pillow opens, prepared once at the size of the run.

`<path>/<class>/**/<image>` gives labels, the classes being the sub-folders in sorted order;
`<path>/<image>` gives none. Files that are no images by their ending, and whatever begins with a
dot, are ignored. A link to somewhere outside of the folder is refused unless `data.follow_links`: a
folder that somebody else packed could name any file of this machine. The conversions are those of
`images.py`.

The prepared set is keyed by the listing (names, sizes, times of change) and the settings, so that
a changed folder is prepared anew, and what was prepared before stays.

The `holdout` part is the split "test": the images whose names have the smallest hashes, so that the
same folder is always divided the same way.
"""

import hashlib
import logging
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image, ImageOps

from ddpm_jax.config import DataConfig
from ddpm_jax.data import images
from ddpm_jax.data.ahead import map_ahead
from ddpm_jax.data.prepared import Builder
from ddpm_jax.errors import UserError, unknown

ON_BAD_IMAGE = ("refuse", "skip")
# Pillow knows these endings but cannot read the pixels by itself.
UNREADABLE_FORMATS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
NUM_NAMED = 5  # of the skipped images, in the warning


class Folder(Builder, skip_registration=True):
    """The builder of the set `folder`."""

    name = "folder"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, data_config: DataConfig, **kwargs: Any):
        _check(data_config)
        self.root = pathlib.Path(data_config.path).expanduser().resolve()
        self.files = scan(self.root, data_config.follow_links)
        self.class_names = class_names(self.root, self.files)
        key = hashlib.sha256()
        for part in (self.root, data_config.crop, data_config.holdout):
            key.update(f"{part}\n".encode())
        for file in self.files:
            key.update(f"{file}\n{_stamp(self.root / file)}\n".encode(errors="surrogateescape"))
        size, channels = data_config.image_size, data_config.channels
        variant = f"{size}x{channels}_{key.hexdigest()[:16]}"
        super().__init__(data_config=data_config, variant=variant, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        size, channels = self.data_config.image_size, self.data_config.channels
        features = {
            "image": tfds.features.Image(shape=(size, size, channels)),
            "name": tfds.features.Text(),  # of the file, relative to the folder
        }
        if self.class_names:
            features["label"] = tfds.features.ClassLabel(names=self.class_names)
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Images of {self.root}.",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(skipped=[]),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        train, test = divide(self.files, self.data_config.holdout)
        splits = {"train": train, "test": test} if test else {"train": train}
        return {split: self._generate_examples(split, files) for split, files in splits.items()}

    def _generate_examples(
        self, split: str, files: list[str]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        num_read = 0
        metadata: Any = self.info.metadata
        skipped: list[str] = metadata["skipped"]
        num_threads = os.cpu_count() or 1
        results = map_ahead(self._encode, files, num_threads, depth=2 * num_threads)
        for file, result in zip(files, results, strict=True):
            if isinstance(result, Exception):
                reason = f"unreadable image {self.root / file}: {_describe(result)}"
                if self.data_config.on_bad_image == "refuse":
                    raise bad_image(reason)
                skipped.append(reason)
                continue
            num_read += 1
            name = file.encode(errors="replace").decode()  # names on disk need not be valid text
            record = {"image": result, "name": name}
            if self.class_names:
                record["label"] = pathlib.PurePath(file).parts[0]
            yield hashlib.sha256(os.fsencode(file)).hexdigest(), record
        if not num_read:
            raise UserError(f"none of the {len(files)} {split} images of {self.root} can be read")

    def _encode(self, file: str) -> bytes | Exception:
        """Return the PNG to be stored, or why there is none."""
        config = self.data_config
        try:
            with Image.open(self.root / file) as image:
                upright = ImageOps.exif_transpose(image)
                picture = images.convert(upright, config.channels)
            return images.encode_png(images.resize(picture, config.image_size, config.crop))
        except Exception as error:  # on damaged files Pillow's plugins raise nearly everything
            return error


def scan(root: pathlib.Path, follow_links: bool = False) -> list[str]:
    """Return the image files under `root`, an absolute path, relative to it, with "/", sorted.

    Raises:
      UserError: there are none, or one is a link or lies behind one that leads out of `root` and
        `follow_links` is False.
    """
    Image.init()
    endings = {
        ending
        for ending, format in Image.registered_extensions().items()
        if format in Image.OPEN and format not in UNREADABLE_FORMATS
    }
    files = []
    for directory, subdirectories, names in os.walk(root, followlinks=True):
        here = pathlib.Path(directory)
        subdirectories[:] = [
            name
            for name in subdirectories
            if not name.startswith(".") and _is_inside(root, here / name, follow_links)
        ]
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in endings:
                _is_inside(root, here / name, follow_links)
                files.append((here / name).relative_to(root).as_posix())
    if not files:
        raise UserError(
            f"data.path {root} holds no images; expected files such as a.png or class/a.jpg"
        )
    return sorted(files)


def _is_inside(root: pathlib.Path, path: pathlib.Path, follow_links: bool) -> bool:
    """Return whether to go there; not to a directory that `path` lies in itself, round and round.

    Raises:
      UserError: a link that leads out of `root` and is not to be followed.
    """
    if not path.is_symlink():
        return True
    target = pathlib.Path(os.path.realpath(path))
    if not follow_links and not target.is_relative_to(root):
        raise UserError(
            f"{path} is a link to {target}, outside of data.path; put a copy in its place, or set "
            "data.follow_links=True if every such link is your own"
        )
    return not pathlib.Path(os.path.realpath(path.parent)).is_relative_to(target)


def class_names(root: pathlib.Path, files: list[str]) -> tuple[str, ...]:
    """Return the sub-folders that hold images, sorted; none for a flat folder."""
    flat = [file for file in files if "/" not in file]
    if flat and len(flat) < len(files):
        nested = next(file for file in files if "/" in file)
        raise UserError(
            f"data.path {root} has images both at the top ({flat[0]}) and in sub-folders "
            f"({nested}); move all into class sub-folders, or all to the top"
        )
    return () if flat else tuple(sorted({file.split("/")[0] for file in files}))


def divide(files: list[str], holdout: float) -> tuple[list[str], list[str]]:
    """Return the files of the splits train and test; train gets at least one."""
    num_test = min(round(holdout * len(files)), len(files) - 1)
    if holdout:
        num_test = max(num_test, min(1, len(files) - 1))
    by_hash = sorted(files, key=lambda file: hashlib.sha256(os.fsencode(file)).digest())
    test = set(by_hash[:num_test])
    return [file for file in files if file not in test], sorted(test)


def report_skipped(skipped: list[str], on_bad_image: str) -> None:
    """Warn of the images that a prepared set lacks, or refuse it, as the config says."""
    if skipped and on_bad_image == "refuse":
        raise bad_image(skipped[0])
    if skipped:
        more = f" and {len(skipped) - NUM_NAMED} more" if len(skipped) > NUM_NAMED else ""
        logging.getLogger(__name__).warning(
            "skipped %d unreadable images: %s%s",
            len(skipped),
            "; ".join(reason.removeprefix("unreadable image ") for reason in skipped[:NUM_NAMED]),
            more,
        )


def bad_image(reason: str) -> UserError:
    """Build the error for an image that cannot be read."""
    return UserError(f"{reason}; repair or remove it, or set data.on_bad_image to 'skip'")


def _stamp(path: pathlib.Path) -> str:
    """Return what changes when a file changes: its size and time."""
    try:
        stat = path.stat()
    except OSError:  # a broken link; reading it will say so
        return "absent"
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _describe(error: Exception) -> str:
    """Return what Pillow says about a damaged file, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _check(config: DataConfig) -> None:
    """Refuse a config that lacks what a folder needs."""
    if not config.path:
        raise UserError("data.path is empty; set it to the folder of images")
    if not os.path.isdir(os.path.expanduser(config.path)):
        raise UserError(f"data.path {config.path} is not a directory")
    if not config.image_size:
        raise UserError(
            "data.image_size must be given for a folder: the side in pixels, such as 64"
        )
    if not config.channels:
        raise UserError("data.channels must be given for a folder: 3 for RGB, 1 grey, 4 RGBA")
    if not 0 <= config.holdout < 1:
        raise UserError(f"data.holdout must be at least 0 and below 1, found {config.holdout}")
    if config.on_bad_image not in ON_BAD_IMAGE:
        raise unknown("data.on_bad_image", config.on_bad_image, ON_BAD_IMAGE)
