"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 32x32 RGB, 50,000 training and 10,000 test images.

The builders read the upstream binary archives. Features, keys, names and versions are the same as
in TFDS's own builders. So TFDS reads the array_record files written here, and the other way round.
"""

import tarfile
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from ddpm_jax.data.images import encode_png
from ddpm_jax.data.prepared import Builder
from ddpm_jax.runtime.files import Archive, fetch

PIXELS = 3 * 32 * 32  # bytes of an image: a red, a green and a blue plane


class Cifar10(Builder, skip_registration=True):
    """Builder of the set `cifar10`."""

    name = "cifar10"
    VERSION = tfds.core.Version("3.0.2")
    ARCHIVE = Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        size=170052171,
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    )
    FOLDER = "cifar-10-batches-bin"
    TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
    TEST = ("test_batch.bin",)
    # For each label byte, in order: (feature, file with the class names, number of classes).
    LABELS = (("label", "batches.meta.txt", 10),)

    def _info(self) -> tfds.core.DatasetInfo:
        labels = {
            key: tfds.features.ClassLabel(num_classes=number) for key, _, number in self.LABELS
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Tiny photographs in classes (Krizhevsky 2009).",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(32, 32, 3)),
                    **labels,
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        path = fetch(
            self.ARCHIVE, self.name, str(dl_manager.download_dir), self.data_config.manual_dir
        )
        with tarfile.open(path) as archive:
            for key, file, _ in self.LABELS:
                names = self._member(archive, file).read().decode().split("\n")
                features: Any = self.info.features
                features[key].names = [name for name in names if name]
        return {
            "train": self._generate_examples(path, "train", self.TRAIN),
            "test": self._generate_examples(path, "test", self.TEST),
        }

    def _member(self, archive: tarfile.TarFile, file: str) -> IO[bytes]:
        """Open `file` of the archive for reading."""
        member = archive.extractfile(f"{self.FOLDER}/{file}")
        assert member is not None, f"{file} is a folder"
        return member

    def _generate_examples(
        self, path: Any, split: str, files: tuple[str, ...]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        index = 0
        with tarfile.open(path) as archive:
            for file in files:
                data = np.frombuffer(self._member(archive, file).read(), np.uint8)
                for row in data.reshape(-1, len(self.LABELS) + PIXELS):
                    planes = row[len(self.LABELS) :].reshape(3, 32, 32)
                    image = Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))
                    labels = {key: int(row[i]) for i, (key, *_) in enumerate(self.LABELS)}
                    record = {"id": f"{split}_{index:05d}", "image": encode_png(image)}
                    yield index, record | labels
                    index += 1


class Cifar100(Cifar10, skip_registration=True):
    """Builder of the set `cifar100`; "label" is the fine label (100 classes)."""

    name = "cifar100"
    ARCHIVE = Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        size=168513733,
        sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    )
    FOLDER = "cifar-100-binary"
    TRAIN = ("train.bin",)
    TEST = ("test.bin",)
    LABELS = (
        ("coarse_label", "coarse_label_names.txt", 20),
        ("label", "fine_label_names.txt", 100),
    )
