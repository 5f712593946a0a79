"""`open_dataset`: from a `DataConfig` to the training and held-out images.

A new data set is a file with its `prepared.Builder`, and one row of `BUILDERS`. Only `array` is not
prepared.
"""

import dataclasses
import hashlib
import math
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from ddpm_jax.config import DataConfig
from ddpm_jax.config_checks import check_unused
from ddpm_jax.data import arrays, images, imbalance, prepared
from ddpm_jax.data.cifar import Cifar10, Cifar100
from ddpm_jax.data.digits import Digits
from ddpm_jax.data.emoji import Emoji
from ddpm_jax.data.folder import Folder, content, report_dark, report_skipped
from ddpm_jax.data.mnist import FashionMnist, Mnist
from ddpm_jax.data.solids import Solids
from ddpm_jax.data.sources import CHUNK, Records, RecordSource, Source, load
from ddpm_jax.data.srn import Srn
from ddpm_jax.data.views import Views
from ddpm_jax.errors import UserError, unknown

BUILDERS = {
    "cifar10": Cifar10,
    "cifar100": Cifar100,
    "mnist": Mnist,
    "fashion_mnist": FashionMnist,
    "digits": Digits,
    "emoji": Emoji,
    "solids": Solids,
    "srn": Srn,
    "folder": Folder,
}
WITH_PATH = (Folder.name, Srn.name, arrays.NAME)  # the sets that read data.path
OF_SOLIDS = ("objects_per_class", "views_per_object", "view_labels")  # fields that only solids read

HASHED = 64  # images; the hash of their pixels is part of the key of a cache
NUM_NAMED = 10  # how many classes a line names


@dataclasses.dataclass(frozen=True)
class Dataset:
    """An opened data set.

    Attributes:
      train: the training images.
      test: the held-out images; None if there are none.
      image_shape: (H, W, C) of every image.
      num_classes: number of classes; 0 if the set has no labels.
      class_names: one name per class.
      digest: a line that differs if the set is another one. It depends on the names and bytes of a
        folder's files, on the values of an array, or on a set's version and its splits' sizes.
      train_texts: if data.text is True, the name of each training image; otherwise empty.
      test_texts: the same for the held-out images.
      train_views: the objects and cameras of the training images; None if the set has none.
      test_views: the same for the held-out images.
    """

    train: Source
    test: Source | None
    image_shape: tuple[int, int, int]
    num_classes: int
    class_names: tuple[str, ...]
    train_texts: tuple[str, ...] = ()
    test_texts: tuple[str, ...] = ()
    digest: str = ""
    train_views: Views | None = None
    test_views: Views | None = None

    def describe_classes(self) -> str:
        """Return the classes for a line on the terminal, such as "2 classes: ant, bee"."""
        if not self.num_classes:
            return "no classes"
        names = [
            name if name.isprintable() and name == name.strip() else ascii(name)
            for name in self.class_names[:NUM_NAMED]
        ]
        rest = self.num_classes - len(names)
        more = f" and {rest} more" if rest else ""
        noun = "class" if self.num_classes == 1 else "classes"
        return f"{self.num_classes} {noun}: {', '.join(names)}{more}"


def open_dataset(config: DataConfig, given: arrays.Arrays | None = None) -> Dataset:
    """Open the set that the config names. Prepare it first if that has not been done yet.

    If both splits together need at most data.ram_limit_gb, they are read into memory.

    Args:
      config: the section `data` of the config.
      given: for data.name="array", the arrays themselves; None reads them from data.path.

    Raises:
      UserError: a mistake that the user can correct, such as an unknown name or split, a missing
        archive, or images of different sizes without data.image_size.
    """
    _check(config)
    if config.name == arrays.NAME:
        return _of_arrays(arrays.read(config.path) if given is None else given, config)
    with prepared.quiet():
        return _open(config)


def declared(config: DataConfig) -> tuple[tuple[int, int, int], int]:
    """Return (H, W, C) of the images and the number of classes, without preparing the set.

    Images that are not here yet (a folder without a path, a set of TFDS that is not prepared) have
    the shape that data.image_size and data.channels say, and no classes.

    Args:
      config: the section `data` of the config.

    Raises:
      UserError: a mistake in the config, or a shape that only the images themselves tell.
    """
    _check(config)
    data_dir = prepared.data_directory(config.data_dir)
    if config.name == arrays.NAME:
        found = open_dataset(config)
        return found.image_shape, found.num_classes
    if config.name in (Folder.name, Srn.name) and not config.path:
        return _declared_shape(config), 0
    with prepared.quiet():
        if config.name in BUILDERS:
            info = BUILDERS[config.name](data_config=config, data_dir=data_dir).info
        else:
            try:
                info = prepared.find(config.name, data_dir, (*BUILDERS, arrays.NAME)).info
            except UserError:
                return _declared_shape(config), 0
    label = _features(info).get("label")
    classes = label.num_classes if isinstance(label, tfds.features.ClassLabel) else 0
    return _image_shape(info, config), classes or 0


def _declared_shape(config: DataConfig) -> tuple[int, int, int]:
    if not (config.image_size and config.channels):
        raise UserError(
            f"the images of data.name={config.name} are not here, so their shape is not known; set "
            "data.image_size and data.channels"
        )
    return config.image_size, config.image_size, config.channels


def facts_of_split(config: DataConfig, source: Source, split: str) -> dict[str, Any]:
    """Return everything that the pixels of a split depend on, for the key of a cache.

    Args:
      config: the section `data` of the config.
      source: the images of the split.
      split: "train" or "test".
    """
    images, labels = source.read(some(len(source), HASHED))
    return {
        "name": config.name,
        "split": {"train": config.train_split, "test": config.test_split}[split],
        "image_size": config.image_size,
        "channels": config.channels,
        "crop": config.crop,
        "shape": [len(source), *images.shape[1:]],
        "sha256": hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest(),
    } | (imbalance.facts(config) if split == "train" else {})


def some(n: int, most: int) -> np.ndarray:
    """Return at most `most` of n indices, ascending: a random subset, the same at each call."""
    return np.sort(np.random.default_rng(0).choice(n, min(n, most), replace=False))


def _of_arrays(found: arrays.Arrays, config: DataConfig) -> Dataset:
    train, test = arrays.split(found, config)
    num_classes = 0 if found.labels is None else int(found.labels.max()) + 1
    _, height, width, channels = train.images.shape
    names = tuple(map(str, range(num_classes)))
    shape = (height, width, channels)
    train = imbalance.of_arrays(train, names, config)
    digest = arrays.digest(found) + imbalance.describe(config)
    return Dataset(train, test, shape, num_classes, names, digest=digest)


def _open(config: DataConfig) -> Dataset:
    data_dir = prepared.data_directory(config.data_dir)
    folder = None
    if config.name in BUILDERS:
        builder = BUILDERS[config.name](data_config=config, data_dir=data_dir)
        folder = builder if isinstance(builder, Folder) else None
        builder = prepared.prepare(builder)
    else:
        builder = prepared.find(config.name, data_dir, (*BUILDERS, arrays.NAME))
    metadata: Any = builder.info.metadata
    report_skipped(metadata.get("skipped", []), config.on_bad_image)
    report_dark(metadata.get("dark", []))
    shape = _image_shape(builder.info, config)
    if folder:
        class_names = folder.class_names
        # A set that an older version prepared has no hash.
        found = metadata.get("content") or content(folder.root, folder.files)
        digest = f"{len(folder.files)} files, sha256 {found[:16]}"
    else:
        label = _features(builder.info).get("label")
        class_names = tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else ()
        splits = builder.info.splits.items()
        counts = sorted(f"{name}: {split.num_examples}" for name, split in splits)
        digest = ", ".join([builder.info.full_name, *counts])
    digest += imbalance.describe(config)

    def decode(record: dict[str, Any]) -> tuple[np.ndarray, int]:
        try:
            image = images.decode(record["image"], config.image_size, shape[2], config.crop)
        except Image.DecompressionBombError as error:
            raise UserError(
                f"an image of the set in {builder.data_path} has too many pixels for Pillow "
                f"({error}); prepare the set with smaller images"
            ) from error
        except (OSError, SyntaxError) as error:  # Pillow's errors for a damaged file
            raise UserError(
                f"an image of the set in {builder.data_path} cannot be read ({error}); remove this "
                "directory and prepare the set again"
            ) from error
        return image, int(record["label"]) if class_names else 0

    splits = {"data.train_split": config.train_split}
    undivided = config.name == "folder" and list(builder.info.splits) == ["train"]
    if config.test_split and not (undivided and config.test_split == "test"):
        splits["data.test_split"] = config.test_split
    records: list[Records] = []
    records += [prepared.records(builder, split, key) for key, split in splits.items()]
    records[0] = imbalance.of_records(records[0], class_names, config)
    texts = [_names(split, builder.info) for split in records] if config.text else []
    views = [_views(split, builder.info, config) for split in records]
    sources: list[Source] = []
    sources += [RecordSource(split, decode) for split in records]
    num_bytes = sum(len(source) for source in sources) * math.prod(shape)
    if num_bytes <= config.ram_limit_gb * 1e9:
        sources = [load(source, shape) for source in sources]
    train, test = sources if len(sources) == 2 else (sources[0], None)
    views = dict(zip(("train_views", "test_views"), views, strict=False))
    return Dataset(
        train, test, shape, len(class_names), class_names, *texts, digest=digest, **views
    )


def _features(info: tfds.core.DatasetInfo) -> dict[str, Any]:
    """Return the features of a set, by name."""
    features: Any = info.features
    return dict(features)


def _names(records: Records, info: tfds.core.DatasetInfo) -> tuple[str, ...]:
    """Return the names of a split's images, in the order of its records."""
    if not isinstance(_features(info).get("name"), tfds.features.Text):
        raise UserError(
            f"data.text is True, but the images of {info.name} have no names; set "
            "data.name='emoji', or set data.text=False"
        )
    names = (record["name"] for record in records.__getitems__(list(range(len(records)))))
    return tuple(n.decode() if isinstance(n, bytes) else str(n) for n in names)


def _views(records: Records, info: tfds.core.DatasetInfo, config: DataConfig) -> Views | None:
    """Return the objects and cameras of a split's images; None for a set without cameras.

    The cameras are those of the images after the conversions that the config asks for.
    """
    features = _features(info)
    if not set(Views._fields) <= set(features):
        return None
    found: dict[str, list[Any]] = {name: [] for name in Views._fields}
    for start in range(0, len(records), CHUNK):
        for record in records.__getitems__(list(range(start, min(start + CHUNK, len(records))))):
            for name, values in found.items():
                values.append(record[name])
    stored = features["image"].shape[0]
    scale = np.float32((config.image_size or stored) / stored)
    rows = {
        name: np.array(v, np.int64 if name == "object" else np.float32) for name, v in found.items()
    }
    return Views(rows["object"], rows["pose"], scale * rows["focal"], scale * rows["centre"])


def _check(config: DataConfig) -> None:
    """Refuse values that are wrong for every set."""
    if config.channels not in (0, *images.MODES):
        raise UserError(
            "data.channels must be 1 (grey), 3 (RGB), 4 (RGBA) or 0 (as stored), "
            f"found {config.channels}"
        )
    if config.image_size < 0:
        raise UserError(
            f"data.image_size must be a side in pixels, or 0 (as stored), found {config.image_size}"
        )
    if config.crop not in images.CROPS:
        raise unknown("data.crop", config.crop, images.CROPS)
    if config.name not in WITH_PATH:
        users = f" ({', '.join(WITH_PATH)}: yes)"
        check_unused(config, ["path"], f"data.name={config.name}", users)
    if config.name != Solids.name:
        check_unused(config, OF_SOLIDS, f"data.name={config.name}", f" ({Solids.name}: yes)")
    if config.name in (Solids.name, Srn.name):  # the other crops would need other cameras
        check_unused(config, ["crop"], f"data.name={config.name}")


def _image_shape(info: tfds.core.DatasetInfo, config: DataConfig) -> tuple[int, int, int]:
    """Return (H, W, C) of the images after the conversions that the config asks for."""
    feature = _features(info).get("image")
    if not isinstance(feature, tfds.features.Image) or feature.np_dtype != np.uint8:
        found = ", ".join(_features(info))
        raise UserError(
            f"the set {info.name} has no 8-bit feature 'image'; its features are: {found}; "
            "set data.name to a set of 8-bit images"
        )
    shape: Any = feature.shape
    height, width, channels = shape
    if config.image_size:
        height = width = config.image_size
    channels = config.channels or channels
    if height is None or width is None:
        raise UserError(
            f"the images of {info.name} differ in size; set data.image_size to the side in pixels "
            "that all must get, for example 64"
        )
    if channels is None:
        raise UserError(
            f"the images of {info.name} differ in their number of channels; set data.channels to "
            "3 (RGB), 1 (grey) or 4 (RGBA)"
        )
    return height, width, channels
