"""A folder of images: any size and format that Pillow opens, prepared once at the size of the run.

`<path>/<class>/**/<image>` has labels: the classes are the sub-folders of `path`, sorted by name.
`<path>/<image>` has no labels. Files with another ending than an image's, and names that begin with
a dot, are ignored. `images.py` converts the images.

A link that leads out of the folder is refused unless data.follow_links is True. Otherwise a folder
packed by a stranger could make us read any file of this machine.

A prepared set has a key: a hash of the files (names, sizes, times of change) and of the settings.
So a changed folder is prepared again, and the earlier prepared sets stay.

The split "test" is the fraction data.holdout of the images. It takes the images with the smallest
hashes of their names, so the same folder is always divided in the same way.
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
# Pillow registers endings for these formats, but cannot read the pixels without another program.
UNREADABLE_FORMATS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
NUM_NAMED = 5  # how many skipped images the warning names


class Folder(Builder, skip_registration=True):
    """Builder of the set `folder`.

    Raises:
      UserError: a setting is wrong, or the folder is refused by `scan` or `class_names`.
    """

    name = "folder"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, data_config: DataConfig, **kwargs: Any):
        _check(data_config)
        self.root = pathlib.Path(data_config.path).expanduser().resolve()
        self.files = scan(self.root, data_config.follow_links)
        self.sub_folders = class_names(self.root, self.files)
        self.class_names = tuple(map(printable, self.sub_folders))
        key = hashlib.sha256()
        for part in (self.root, data_config.crop, data_config.holdout):
            key.update(f"{part}\n".encode(errors="surrogateescape"))
        for file in self.files:
            key.update(f"{file}\n{_stamp(self.root / file)}\n".encode(errors="surrogateescape"))
        size, channels = data_config.image_size, data_config.channels
        variant = f"{size}x{channels}_{key.hexdigest()[:16]}"
        super().__init__(data_config=data_config, variant=variant, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        size, channels = self.data_config.image_size, self.data_config.channels
        features = {
            "image": tfds.features.Image(shape=(size, size, channels)),
            "name": tfds.features.Text(),  # path of the file, relative to the folder
        }
        if self.sub_folders:
            # Numbers only: TFDS keeps names as lines of a text file and strips blanks from them.
            features["label"] = tfds.features.ClassLabel(num_classes=len(self.sub_folders))
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Images of {printable(str(self.root))}.",
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
        labels = {name: label for label, name in enumerate(self.sub_folders)}
        metadata: Any = self.info.metadata
        skipped: list[str] = metadata["skipped"]
        num_threads = os.cpu_count() or 1
        results = map_ahead(self._encode, files, num_threads, depth=2 * num_threads)
        for file, result in zip(files, results, strict=True):
            if isinstance(result, Exception):
                reason = f"unreadable image {self.root / file}: {_describe(result)}"
                reason = printable(reason)
                if self.data_config.on_bad_image == "refuse":
                    raise bad_image(reason)
                skipped.append(reason)
                continue
            num_read += 1
            record: dict[str, Any] = {"image": result, "name": printable(file)}
            if self.sub_folders:
                record["label"] = labels[file.split("/")[0]]
            yield hashlib.sha256(os.fsencode(file)).hexdigest(), record
        if not num_read:
            raise UserError(
                f"none of the {len(files)} {split} images of data.path {self.root} can be read; "
                "repair them or set data.path to another folder"
            )

    def _encode(self, file: str) -> bytes | Exception:
        """Return the converted image as PNG bytes, or the error that reading it raised."""
        config = self.data_config
        try:
            with images.open_image(self.root / file) as image:
                upright = ImageOps.exif_transpose(image)
                picture = images.convert(upright, config.channels)
            return images.encode_png(images.resize(picture, config.image_size, config.crop))
        except Exception as error:  # Pillow's plugins raise many types for damaged files
            return error


def scan(root: pathlib.Path, follow_links: bool = False) -> list[str]:
    """Return the paths of the image files under `root`, relative to `root`, with "/", sorted.

    Args:
      root: an absolute path.
      follow_links: whether to follow links that lead out of `root`.

    Raises:
      UserError: there are no images; or a file or directory is a link that leads out of `root` and
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
            f"data.path {root} holds no images; put files such as a.png or class/a.jpg there, or "
            "set data.path to another folder"
        )
    return sorted(files)


def _is_inside(root: pathlib.Path, path: pathlib.Path, follow_links: bool) -> bool:
    """Return whether to visit `path`; False for a link to a directory that contains `path`.

    Following such a link would never end.

    Raises:
      UserError: `path` is a link that leads out of `root`, and `follow_links` is False.
    """
    if not path.is_symlink():
        return True
    target = pathlib.Path(os.path.realpath(path))
    if not follow_links and not target.is_relative_to(root):
        raise UserError(
            f"{path} is a link to {target}, outside of data.path; replace the link by a copy, or "
            "set data.follow_links=True if you made every such link yourself"
        )
    return not pathlib.Path(os.path.realpath(path.parent)).is_relative_to(target)


def class_names(root: pathlib.Path, files: list[str]) -> tuple[str, ...]:
    """Return the names of the sub-folders that hold images, sorted; () for a flat folder.

    Args:
      root: the folder, for the error.
      files: paths relative to `root`, from `scan`.

    Raises:
      UserError: there are images both at the top and in sub-folders.
    """
    flat = [file for file in files if "/" not in file]
    if flat and len(flat) < len(files):
        nested = next(file for file in files if "/" in file)
        raise UserError(
            f"data.path {root} has images both at the top ({flat[0]}) and in sub-folders "
            f"({nested}); move all images into class sub-folders, or all images to the top"
        )
    return () if flat else tuple(sorted({file.split("/")[0] for file in files}))


def printable(name: str) -> str:
    r"""Return a name as text; a byte that is no UTF-8 becomes its code, such as \xe9.

    Python reads such a byte of a file name as a character that cannot be written or printed.
    """
    return os.fsencode(name).decode(errors="backslashreplace")


def divide(files: list[str], holdout: float) -> tuple[list[str], list[str]]:
    """Return the files of the splits "train" and "test".

    "train" gets at least one file. If `holdout` is above 0, "test" gets at least one as well,
    unless there is only one file.

    Args:
      files: paths relative to the folder.
      holdout: fraction of the files in "test", in [0, 1).
    """
    num_test = min(round(holdout * len(files)), len(files) - 1)
    if holdout:
        num_test = max(num_test, min(1, len(files) - 1))
    by_hash = sorted(files, key=lambda file: hashlib.sha256(os.fsencode(file)).digest())
    test = set(by_hash[:num_test])
    return [file for file in files if file not in test], sorted(test)


def report_skipped(skipped: list[str], on_bad_image: str) -> None:
    """Report the unreadable images that a prepared set left out.

    Args:
      skipped: one line for each, beginning with "unreadable image".
      on_bad_image: "skip" logs a warning, "refuse" raises `UserError`.
    """
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
    """Build the error for an image that cannot be read; `reason` names the file."""
    return UserError(f"{reason}; repair or remove the file, or set data.on_bad_image='skip'")


def _stamp(path: pathlib.Path) -> str:
    """Return a text that changes when the file changes: its size and its time of change."""
    try:
        stat = path.stat()
    except OSError:  # a broken link; opening the image reports it later
        return "absent"
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _describe(error: Exception) -> str:
    """Return Pillow's message about a damaged file, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _check(config: DataConfig) -> None:
    """Refuse a config without the settings that a folder needs."""
    if not config.path:
        raise UserError("data.path is empty; set it to a folder of images")
    if not os.path.isdir(os.path.expanduser(config.path)):
        raise UserError(f"data.path {config.path} is not a directory; set it to a folder of images")
    if not config.image_size:
        raise UserError(
            "data.image_size is 0, but a folder needs a size; set it to the side of the images in "
            "pixels, such as 64"
        )
    if not config.channels:
        raise UserError(
            "data.channels is 0, but a folder needs a number; set it to 3 for RGB, 1 for grey, or "
            "4 for RGBA"
        )
    if not 0 <= config.holdout < 1:
        raise UserError(f"data.holdout must be at least 0 and below 1, found {config.holdout}")
    if config.on_bad_image not in ON_BAD_IMAGE:
        raise unknown("data.on_bad_image", config.on_bad_image, ON_BAD_IMAGE)
