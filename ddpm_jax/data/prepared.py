"""Sets prepared by TFDS as array_record files: write them, find them, read their splits.

Nothing here needs TensorFlow. TFDS needs TensorFlow only for its own builders and for its default
file format, tfrecord.
"""

import contextlib
import difflib
import functools
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants, read_only_builder

from ddpm_jax.config import DataConfig
from ddpm_jax.errors import UserError

logger = logging.getLogger(__name__)

FORMAT = "array_record"  # the file format that TFDS can index without TensorFlow


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base class of this library's builders.

    They are not registered with TFDS, so `tfds.builder("cifar10")` still returns TFDS's builder.

    Args:
      data_config: the section `data` of the config.
      variant: a directory between the set's name and its version, for a set that depends on the
        config; "" is none.
      **kwargs: arguments of TFDS's builder, such as `data_dir`.
    """

    def __init__(self, *, data_config: DataConfig, variant: str = "", **kwargs: Any):
        self.data_config = data_config
        variant_config = tfds.core.BuilderConfig(name=variant) if variant else None
        super().__init__(config=variant_config, **kwargs)

    def _log_download_bytes(self) -> None:
        """Print nothing; TFDS's own method prints a line to stdout."""

    def _log_download_done(self) -> None:
        """Print nothing; TFDS's own method prints a line to stdout."""


def data_directory(data_dir: str) -> str:
    """Return the directory of the prepared sets: `data_dir`, or TFDS's default if it is empty.

    Without a home directory, the default is a temporary directory, which is removed when the
    program ends. A warning says so.

    Raises:
      UserError: `data_dir` begins with "~", but there is no such home directory.
    """
    path = os.path.expanduser(data_dir or str(constants.DATA_DIR))
    if not path.startswith("~"):
        return path
    if not data_dir:
        return _temporary_directory().name
    raise UserError(
        f"there is no home directory for the data directory {path}; set data.data_dir to another "
        "directory"
    )


@functools.cache
def _temporary_directory() -> tempfile.TemporaryDirectory:
    """Return one directory for the whole program; it is removed at the end."""
    logger.warning(
        "there is no home directory, so prepared data sets are not kept; set data.data_dir to keep "
        "them"
    )
    return tempfile.TemporaryDirectory(prefix="tensorflow_datasets-")


def prepare(builder: tfds.core.DatasetBuilder) -> tfds.core.DatasetBuilder:
    """Write the set of one of our builders if it is missing, and return a builder to read it.

    TFDS writes into a temporary directory and renames it at the end. So the remains of an
    interrupted preparation are never taken for a set.

    Raises:
      UserError: the set cannot be written, or the written set is damaged.
    """
    if not builder.data_path.exists():
        logging.getLogger(__name__).info("preparing %s in %s", builder.name, builder.data_path)
        try:
            builder.download_and_prepare(
                file_format=FORMAT,
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
        except (OSError, RuntimeError) as error:  # array_record raises RuntimeError
            if not builder.data_path.exists():  # otherwise another process was faster
                raise UserError(
                    f"cannot prepare the set {builder.name} in {builder.data_path}: {error}; "
                    "set data.data_dir to a writable directory with enough room"
                ) from error
    try:
        builder = tfds.builder_from_directory(builder.data_path)
        return _readable(builder, "start the same command again")
    except OSError as error:
        raise _damaged(builder.data_path, error) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep TFDS's notes out of the log, and show its progress bars only on a terminal."""
    logger = logging.getLogger("absl")  # TFDS's
    tfds.display_progress_bar(sys.stderr.isatty())
    logger.addFilter(_is_error)
    try:
        yield
    finally:
        logger.removeFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def find(name: str, data_dir: str, own: Iterable[str]) -> tfds.core.DatasetBuilder:
    """Return a builder to read a set that TFDS's own code has prepared before.

    Args:
      name: in TFDS's syntax, such as "oxford_flowers102", "lsun/church_outdoor" or "mnist:3.0.1".
      data_dir: the directory of the prepared sets.
      own: the names of the sets that this library prepares itself, for the error.

    Raises:
      UserError: there is no such set; or it is not prepared, or only as tfrecord. In the last two
        cases the message gives the command that prepares it.
    """
    try:
        builder = read_only_builder.builder_from_files(name, data_dir=data_dir)
    except ValueError as error:  # the set is not found, or `name` is malformed
        raise _not_found(name, data_dir, own) from error
    return _readable(builder, _how_to_prepare(name, data_dir))


def _readable(builder: tfds.core.DatasetBuilder, remedy: str) -> tfds.core.DatasetBuilder:
    """Return the builder if its set can be read without TensorFlow.

    Raises:
      UserError: the set is stored in another format; the message ends with `remedy`.
    """
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    if FORMAT not in formats:
        raise UserError(
            f"the set in {builder.data_path} is prepared as {'/'.join(sorted(formats))}, which "
            f"only TensorFlow reads; only {FORMAT} is allowed; move that directory away, then "
            f"{remedy}"
        )
    return builder


def _how_to_prepare(name: str, data_dir: str) -> str:
    """Return the command that prepares a set of TFDS.

    The command is not `tfds build`, which does not start without Beam.
    """
    return (
        "in an environment with TensorFlow (pip install tensorflow tensorflow-datasets "
        'importlib_resources pillow) run: python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder({name!r}, data_dir={data_dir!r}, file_format={FORMAT!r})"
        '.download_and_prepare()"'
    )


def _not_found(name: str, data_dir: str, own: Iterable[str]) -> UserError:
    """Build the error for a set that is not on disk.

    The message says how to prepare the set, or that neither we nor TFDS have a set of this name.
    """
    base = re.split("[/:]", name)[0]
    known = tfds.list_builders(with_community_datasets=False)
    if base in known:
        remedy = _how_to_prepare(name, data_dir)
        return UserError(f"data.name {name!r} is not prepared in {data_dir}; {remedy}")
    nearest = difflib.get_close_matches(base, {*own, *known}, n=3)
    hint = f" did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
    return UserError(
        f"unknown data.name {name!r};{hint} allowed: {', '.join(own)}, the name of a set prepared "
        f"by TFDS in {data_dir}"
    )


class Records:
    """The records of one split, read by position; the images stay encoded.

    Args:
      builder: the builder of a prepared set.
      split: in TFDS's syntax, such as "train[:90%]".
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
        self.path = builder.data_path
        decoders = {"image": tfds.decode.SkipDecoding()}
        # A decorator of TFDS hides the arguments from pyright.
        source = builder.as_data_source(split, decoders=decoders)  # pyright: ignore[reportCallIssue]
        self.source: Any = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, positions: list[int]) -> list[dict[str, Any]]:
        """Return the records at these positions; array_record verifies the checksum of each.

        Raises:
          UserError: the files are damaged.
        """
        try:
            return self.source.__getitems__(positions)
        except (OSError, RuntimeError) as error:
            raise _damaged(self.path, error) from error


def _damaged(path: Any, error: Exception) -> UserError:
    """Build the error for a prepared set with files that cannot be read."""
    return UserError(
        f"the prepared set in {path} is damaged ({' '.join(str(error).split())}); "
        "remove that directory and start the same command again"
    )


def records(builder: tfds.core.DatasetBuilder, split: str, key: str) -> Records:
    """Return the records of a split.

    Args:
      builder: the builder of a prepared set.
      split: in TFDS's syntax: "train", "train[:90%]", "train+test".
      key: the config key of the split, for the error.

    Raises:
      UserError: there is no such split, or it is empty.
    """
    names = ", ".join(builder.info.splits)
    try:
        num_examples = builder.info.splits[split].num_examples
    except ValueError as error:
        raise UserError(
            f"{key} {split!r} is not a split of {builder.name}; choose among {names}, or a slice "
            "such as train[:90%] or train[1000:]"
        ) from error
    if not num_examples:
        raise UserError(
            f"{key} {split!r} of {builder.name} holds no images; choose among {names}, or a larger "
            "slice"
        )
    return Records(builder, split)
