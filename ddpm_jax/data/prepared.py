"""Sets prepared by TFDS as array_record files: writing them, finding them, reading their splits.

Everything here runs without TensorFlow, which TFDS needs only for its own builders and for its
default file format, tfrecord.
"""

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow_datasets as tfds

from ddpm_jax.errors import UserError

FORMAT = "array_record"  # the file format that TFDS can index without TensorFlow


def data_directory(data_dir: str) -> str:
    """Return where prepared sets lie: `data_dir`, or TFDS's own default where it is empty."""
    return os.path.expanduser(data_dir or str(tfds.core.constants.DATA_DIR))


def prepare(builder: tfds.core.DatasetBuilder) -> tfds.core.DatasetBuilder:
    """Write the set of one of our builders unless it is there, and return a builder to read it.

    TFDS writes beside the set's directory and renames at the end, so what an interrupted
    preparation leaves is never taken for a set.
    """
    if not builder.data_path.exists():
        logging.getLogger(__name__).info("preparing %s in %s", builder.name, builder.data_path)
        try:
            with _quiet():
                builder.download_and_prepare(
                    download_config=tfds.download.DownloadConfig(try_download_gcs=False)
                )
        except OSError as error:
            if not builder.data_path.exists():  # else another process was faster
                raise UserError(
                    f"cannot prepare {builder.name} in {builder.data_path}: {error}; "
                    "set data.data_dir to a directory with room that can be written"
                ) from error
    return tfds.builder_from_directory(builder.data_path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what TFDS prints; its progress bars stay where there is a terminal."""
    tfds.display_progress_bar(sys.stderr.isatty())
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def records(builder: tfds.core.DatasetBuilder, split: str, key: str) -> Sequence[Any]:
    """Return the records of a split, its images still encoded.

    Args:
      builder: of a prepared set.
      split: in TFDS's syntax: "train", "train[:90%]", "train+test".
      key: the config key that the split came from, for the error.
    """
    names = ", ".join(builder.info.splits)
    try:
        num_examples = builder.info.splits[split].num_examples
    except ValueError as error:
        raise UserError(
            f"{key} {split!r} is not a split of {builder.name}; it has: {names}; "
            "slices are written as train[:90%] or train[1000:]"
        ) from error
    if not num_examples:
        raise UserError(f"{key} {split!r} of {builder.name} holds no images; splits: {names}")
    return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
