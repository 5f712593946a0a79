"""The latents of a data set: computed once by a codec, kept on the disk, and read as a `Source`.

    images --codec.moments--> float16 [N, h, w, 2c], the mean and the log variance of each latent

The files are in `<data_dir>/latents/<key>`. The key depends on the weights of the codec and on the
images. A batch reads only its own rows of the files. A training set that is flipped has two files:
the second has the moments of the mirrored images.
"""

import dataclasses
import hashlib
import json
import logging
import pathlib
import shutil
import time
import uuid
from collections.abc import Iterator

import jax
import numpy as np

from ddpm_jax.codec import Codec, Scale, scale_of
from ddpm_jax.config import DataConfig
from ddpm_jax.data.datasets import Dataset, facts_of_split
from ddpm_jax.data.prepared import data_directory
from ddpm_jax.data.sources import Source
from ddpm_jax.errors import UserError
from ddpm_jax.pixels import to_x_0
from ddpm_jax.runtime import rows
from ddpm_jax.runtime.progress import Progress, silent

logger = logging.getLogger(__name__)

VERSION = 1  # part of the key; raise it if the code below changes what is stored
CHUNK = 256  # images encoded at once


class LatentSource:
    """The moments of the latents of a split, read from files.

    Args:
      moments: float16 [N, h, w, 2c].
      mirrored: the same of the mirrored images; None if they are never asked for.
      labels: int32 [N].
    """

    def __init__(self, moments: np.ndarray, mirrored: np.ndarray | None, labels: np.ndarray):
        self._moments, self._mirrored, self._labels = moments, mirrored, labels

    def __len__(self) -> int:
        return len(self._labels)

    def read(
        self, indices: np.ndarray, mirrored: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return moments [B, h, w, 2c] and labels [B] (`Source`)."""
        moments = self._moments[indices]
        if mirrored is not None:
            assert self._mirrored is not None  # `encoded` makes it if data.flip
            moments[mirrored] = self._mirrored[indices[mirrored]]
        return moments, self._labels[indices]


def stored(codec: Codec) -> jax.ShapeDtypeStruct:
    """Return the shape and type of what is stored of one image: [h, w, 2c] float16."""
    height, width, channels = codec.latent_shape
    return jax.ShapeDtypeStruct((height, width, 2 * channels), np.float16)


def encoded(
    config: DataConfig, dataset: Dataset, codec: Codec, progress: Progress = silent
) -> tuple[Dataset, Scale]:
    """Return the data set with latents in place of images, and the scale of the training latents.

    The first call encodes all images, on all local devices.

    Args:
      config: the section `data` of the config.
      dataset: the images.
      codec: the codec; its scale is not used.
      progress: receives the number of images that are encoded.

    Raises:
      UserError: the files cannot be written.
    """
    root = pathlib.Path(data_directory(config.data_dir)) / "latents"
    sources: dict[str, Source] = {"train": dataset.train}
    if dataset.test is not None:
        sources["test"] = dataset.test
    facts = {
        "version": VERSION,
        "codec": codec.digest,
        "flip": config.flip,
        "splits": {name: facts_of_split(config, s, name) for name, s in sources.items()},
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    directory = root / f"{config.name.replace('/', '-')}-{key}"
    if not directory.exists():
        _encode(config, sources, codec, directory, progress)
    found = {name: _open(directory, name) for name in sources}
    with np.load(directory / "scale.npz") as file:
        scale = Scale(file["mean"], file["deviation"])
    return dataclasses.replace(dataset, train=found["train"], test=found.get("test")), scale


def _open(directory: pathlib.Path, split: str) -> LatentSource:
    """Return a split; the files are mapped into memory."""
    try:
        labels = np.load(directory / f"{split}_labels.npy")
        plain, *mirrored = (
            np.load(path, mmap_mode="r")
            for path in sorted(directory.glob(f"{split}_moments_[01].npy"))
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"the latents in {directory} are damaged ({' '.join(str(error).split())}); remove that "
            "directory and start the same command again"
        ) from error
    return LatentSource(plain, mirrored[0] if mirrored else None, labels)


def _encode(
    config: DataConfig,
    sources: dict[str, Source],
    codec: Codec,
    directory: pathlib.Path,
    progress: Progress,
) -> None:
    """Write the latents of all splits into another directory, and rename it at the end."""
    part = directory.with_name(f".{directory.name}-{uuid.uuid4().hex[:8]}")
    start, what, done = time.monotonic(), f"encoding the images of {config.name}", 0
    moments = rows.over_local_devices(lambda codec, images: codec.moments(to_x_0(images)))
    passes = [(name, flipped) for name in sources for flipped in _passes(config, name)]
    total = sum(len(sources[name]) for name, _ in passes)
    try:
        part.mkdir(parents=True)
        for name, flipped in passes:
            source = sources[name]
            one = stored(codec)
            kept = np.lib.format.open_memmap(
                part / f"{name}_moments_{int(flipped)}.npy",
                mode="w+",
                dtype=one.dtype,
                shape=(len(source), *one.shape),
            )
            labels = np.empty(len(source), np.int32)
            for indices in _chunks(len(source)):
                images, labels[indices] = source.read(indices, np.full(len(indices), flipped))
                found = jax.device_get(moments(codec, rows.pad(images, CHUNK)))[: len(indices)]
                kept[indices] = found
                done += len(indices)
                progress(what, done, total)
            kept.flush()
            np.save(part / f"{name}_labels.npy", labels)
        plain = np.load(part / "train_moments_0.npy", mmap_mode="r")
        scale = scale_of(plain[indices] for indices in _chunks(len(plain)))
        np.savez(part / "scale.npz", mean=scale.mean, deviation=scale.deviation)
        part.rename(directory)
    except OSError as error:
        if not directory.exists():  # otherwise another process was faster
            raise UserError(
                f"the latents of {config.name} cannot be written to {directory} "
                f"({error.strerror}); set data.data_dir to a writable directory with enough room"
            ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    logger.info("%d latents in %s, in %.1f s", total, directory, time.monotonic() - start)


def _passes(config: DataConfig, split: str) -> list[bool]:
    """Return for each file of a split whether its images are mirrored."""
    return [False, True] if config.flip and split == "train" else [False]


def _chunks(n: int) -> Iterator[np.ndarray]:
    """Yield 0..n-1 in arrays of at most CHUNK."""
    for start in range(0, n, CHUNK):
        yield np.arange(start, min(start + CHUNK, n))
