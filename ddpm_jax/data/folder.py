"""A folder of images: any size and format that Pillow opens, prepared once at the size of the run.

`<path>/<class>/**/<image>` has labels: the classes are the sub-folders of `path`, sorted by name.
`<path>/<image>` has no labels. Files with another ending than an image's are left out, and so are
named pipes and other special files. A line counts them. Names that begin with a dot are ignored.
`images.py` converts the images.

A link that leads out of the folder is refused unless data.follow_links is True. Otherwise a folder
packed by a stranger could make us read any file of this machine.

A prepared set has a key: a hash of the files (names, sizes, times of change) and of the settings.
So a changed folder is prepared again, and the earlier prepared sets stay.

The split "test" is the fraction data.holdout of the images. It takes the images with the smallest
hashes of their names, so the same folder is always divided in the same way.
"""

import collections
import hashlib
import json
import logging
import os
import pathlib
import re
import stat
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from PIL import Image, ImageOps

from ddpm_jax.config import DataConfig
from ddpm_jax.data import images
from ddpm_jax.data.ahead import map_ahead
from ddpm_jax.data.prepared import Builder
from ddpm_jax.errors import UserError, unknown
from ddpm_jax.runtime.files import sha256

ON_BAD_IMAGE = ("refuse", "skip")
# Pillow registers endings for these formats, but cannot read the pixels without another program.
UNREADABLE_FORMATS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
NUM_NAMED = 5  # how many images or endings a warning names
DARK = 0.25  # 16-bit images with no value above this part of the range are reported
SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation"}

logger = logging.getLogger(__name__)


class Encoded(NamedTuple):
    """A converted image: its PNG file, and the largest value of 16 bits (`images.brightness`)."""

    png: bytes
    brightness: float | None


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
        warn_of_classes(self.files, self.class_names)
        key = hashlib.sha256()
        parts = [self.root, data_config.crop, data_config.holdout]
        if data_config.max_pixels != DataConfig.max_pixels:
            parts.append(data_config.max_pixels)
        for part in parts:
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
            metadata=tfds.core.MetadataDict(skipped=[], dark=[], content=""),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        metadata: Any = self.info.metadata
        metadata["content"] = content(self.root, self.files)
        train, test = self._divide()
        splits = {"train": train, "test": test} if test else {"train": train}
        return {split: self._generate_examples(split, files) for split, files in splits.items()}

    def _divide(self) -> tuple[list[str], list[str]]:
        """Return the files of "train" and "test".

        If bad images are skipped, no split consists of bad images only, as long as enough images
        can be read. The bad images found here are in "train", where they are skipped and reported.
        """
        holdout = self.data_config.holdout
        train, test = divide(self.files, holdout)
        if self.data_config.on_bad_image == "refuse":
            return train, test
        bad: set[str] = set()
        with images.at_most(self.data_config.max_pixels):
            while found := next((s for s in (train, test) if s and not self._reads_any(s)), None):
                bad.update(found)
                if len(bad) == len(self.files):
                    return self.files, []
                train, test = divide([file for file in self.files if file not in bad], holdout)
        return sorted([*train, *bad]), test

    def _reads_any(self, files: list[str]) -> bool:
        """Return whether one of the files can be read; it usually reads only the first."""
        return any(isinstance(self._encode(file), Encoded) for file in files)

    def _generate_examples(
        self, split: str, files: list[str]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        with images.at_most(self.data_config.max_pixels):
            yield from self._generate(split, files)

    def _generate(self, split: str, files: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        num_read = 0
        labels = {name: label for label, name in enumerate(self.sub_folders)}
        metadata: Any = self.info.metadata
        skipped: list[str] = metadata["skipped"]
        num_threads = os.cpu_count() or 1
        results = map_ahead(self._encode, files, num_threads, depth=2 * num_threads)
        for file, result in zip(files, results, strict=True):
            if isinstance(result, Exception):
                reason = _describe(result, self.data_config.max_pixels)
                reason = printable(f"unreadable image {self.root / file}: {reason}")
                if self.data_config.on_bad_image == "refuse":
                    raise bad_image(reason)
                skipped.append(reason)
                continue
            num_read += 1
            record: dict[str, Any] = {"image": result.png, "name": printable(file)}
            if result.brightness is not None and 0 < result.brightness < DARK:
                metadata["dark"].append(f"{record['name']} ({result.brightness:.1%})")
            if self.sub_folders:
                record["label"] = labels[file.split("/")[0]]
            yield hashlib.sha256(os.fsencode(file)).hexdigest(), record
        if not num_read:
            raise UserError(
                f"none of the {len(files)} {split} images of data.path {self.root} can be read; "
                "repair them or set data.path to another folder"
            )

    def _encode(self, file: str) -> Encoded | Exception:
        """Return the converted image, or the error that reading it raised."""
        config = self.data_config
        try:
            with images.open_image(self.root / file) as image:
                brightness = images.brightness(image)
                upright = ImageOps.exif_transpose(image)
                picture = images.convert(upright, config.channels)
            picture = images.resize(picture, config.image_size, config.crop)
            return Encoded(images.encode_png(picture), brightness)
        except Exception as error:  # Pillow's plugins raise many types for damaged files
            return error


def scan(root: pathlib.Path, follow_links: bool = False) -> list[str]:
    """Return the paths of the image files under `root`, relative to `root`, with "/", sorted.

    A line counts the other files by their endings, and the special files.

    Args:
      root: an absolute path.
      follow_links: whether to follow links that lead out of `root`.

    Raises:
      UserError: there are no images; a directory cannot be read; or a file or directory is a link
        that leads out of `root` and `follow_links` is False.
    """
    Image.init()
    endings = {
        ending
        for ending, format in Image.registered_extensions().items()
        if format in Image.OPEN and format not in UNREADABLE_FORMATS
    }
    files, others = [], collections.Counter()
    for directory, subdirectories, names in os.walk(root, onerror=_refuse, followlinks=True):
        here = pathlib.Path(directory)
        subdirectories[:] = [
            name
            for name in subdirectories
            if not name.startswith(".") and _is_inside(root, here / name, follow_links)
        ]
        for name in names:
            ending = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if ending in endings:
                _is_inside(root, here / name, follow_links)
                if _is_special(here / name):
                    others["special (a pipe, a socket or a device)"] += 1
                else:
                    files.append((here / name).relative_to(root).as_posix())
            else:
                others[printable(ending) or "without an ending"] += 1
    if not files:
        found = f" (it holds {_counts(others)})" if others else ""
        raise UserError(
            f"data.path {root} holds no images that can be read{found}; put files such as a.png or "
            "class/a.jpg there, or set data.path to another folder"
        )
    if others:
        logger.warning(
            "left out %d of %d files in %s, for their endings or kind: %s; convert them to PNG or "
            "JPEG if they are images",
            others.total(),
            others.total() + len(files),
            printable(str(root)),
            _counts(others),
        )
    return sorted(files)


def _refuse(error: OSError) -> None:
    """Refuse a directory that cannot be listed."""
    raise UserError(
        f"{printable(str(error.filename))} in data.path cannot be read ({error.strerror}); make it "
        "readable, or move it away"
    ) from error


def _counts(endings: Mapping[str, int]) -> str:
    """Return the most frequent endings with their counts, such as "3 .heic, 1 .svg"."""
    common = sorted(endings.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{count} {ending}" for ending, count in common[:NUM_NAMED])
    rest = sum(count for _, count in common[NUM_NAMED:])
    return f"{named}, {rest} others" if rest else named


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


def _is_special(path: pathlib.Path) -> bool:
    """Return whether `path` is a pipe, a socket or a device; reading a pipe would wait forever."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:  # a broken link; opening the image reports it later
        return False


def content(root: pathlib.Path, files: list[str]) -> str:
    """Return a hash of the files' names and bytes, hexadecimal.

    Times of change do not count, so a folder that was moved or copied has the same hash.
    """
    num_threads = os.cpu_count() or 1
    hashes = map_ahead(lambda file: _sha256(root / file), files, num_threads, 2 * num_threads)
    whole = hashlib.sha256()
    for file, found in zip(files, hashes, strict=True):
        whole.update(json.dumps([file, found]).encode())
    return whole.hexdigest()


def check_workdir(config: DataConfig, workdir: str | os.PathLike) -> None:
    """Refuse a work directory among the images: the next start would take its samples for images.

    A directory that `scan` ignores, because its name begins with a dot, is allowed.

    Raises:
      UserError: `workdir` is data.path itself or is inside of it.
    """
    if config.name != "folder" or not config.path:
        return
    root = pathlib.Path(config.path).expanduser().resolve()
    path = pathlib.Path(workdir).expanduser().resolve()
    if path.is_relative_to(root):
        if not any(part.startswith(".") for part in path.relative_to(root).parts):
            raise UserError(
                f"--workdir={workdir} is inside of data.path {config.path}, so the next start "
                "would train on the samples of this one; choose a directory outside of it"
            )


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


def warn_of_classes(files: list[str], names: tuple[str, ...]) -> None:
    """Warn where the sub-folders are probably not the classes that the user means.

    Args:
      files: paths relative to the folder, from `scan`.
      names: of its classes.
    """
    words = [unicodedata.normalize("NFC", name).strip().casefold() for name in names]
    if names and SPLITS.issuperset(words):
        logger.warning(
            "the classes are the sub-folders of data.path: %s; if these are splits, set data.path "
            "to one of them (data.holdout holds images out)",
            ", ".join(names),
        )
    elif len(names) == 1 and any(file.count("/") > 1 for file in files):
        logger.warning(
            "all images are of the one class %r, the only sub-folder of data.path; if the classes "
            "are the folders in it, set data.path to it",
            names[0],
        )
    if twins := [name for name, word in zip(names, words, strict=True) if words.count(word) > 1]:
        logger.warning(
            "these names of sub-folders are almost the same, but make %d classes: %s",
            len(twins),
            ", ".join(map(ascii, twins[: 2 * NUM_NAMED])),
        )


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
        logger.warning(
            "skipped %d unreadable images: %s%s",
            len(skipped),
            "; ".join(reason.removeprefix("unreadable image ") for reason in skipped[:NUM_NAMED]),
            more,
        )


def report_dark(dark: list[str]) -> None:
    """Warn of 16-bit images that use a small part of their range; `dark` names them."""
    if dark:
        more = f" and {len(dark) - NUM_NAMED} more" if len(dark) > NUM_NAMED else ""
        logger.warning(
            "%d images of 16 bits come out dark, because they use less than %.0f%% of the range: "
            "%s%s; if they hold 12 bits, multiply their pixels by 16",
            len(dark),
            100 * DARK,
            ", ".join(dark[:NUM_NAMED]),
            more,
        )


def bad_image(reason: str) -> UserError:
    """Build the error for an image that cannot be read; `reason` names the file."""
    return UserError(f"{reason}; repair or remove the file, or set data.on_bad_image='skip'")


def _stamp(path: pathlib.Path) -> str:
    """Return a text that changes when the file changes: its size and its time of change."""
    try:
        found = path.stat()
    except OSError:  # a broken link; opening the image reports it later
        return "absent"
    return f"{found.st_size} {found.st_mtime_ns}"


def _sha256(path: pathlib.Path) -> str:
    """Return the hash of a file; "" if it cannot be read, which opening the image reports."""
    try:
        return sha256(path)
    except OSError:
        return ""


def _describe(error: Exception, max_pixels: int) -> str:
    """Return what is wrong with an image, in one line."""
    if isinstance(error, Image.DecompressionBombError):
        pixels = int(re.findall(r"\d+", str(error))[0])
        return (
            f"it has {pixels} pixels, and data.max_pixels is {max_pixels}; make it smaller, or set "
            f"data.max_pixels={pixels} if the memory can hold it"
        )
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
    if config.max_pixels < 1:
        raise UserError(f"data.max_pixels must be at least 1, found {config.max_pixels}")
    if config.on_bad_image not in ON_BAD_IMAGE:
        raise unknown("data.on_bad_image", config.on_bad_image, ON_BAD_IMAGE)
