"""MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017).

Both have 28x28 grey images in ten classes: 60,000 training and 10,000 test images.

The builders read the upstream files; those of Fashion-MNIST can also come from a Debian package.
Features, keys, names and versions are the same as in TFDS's own builders. So TFDS reads the
array_record files written here, and the other way round.
"""

import gzip
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from ddpm_jax.data.images import encode_png
from ddpm_jax.data.prepared import Builder
from ddpm_jax.runtime.files import Archive, Package, fetch


class Mnist(Builder, skip_registration=True):
    """Builder of the set `mnist`."""

    name = "mnist"
    VERSION = tfds.core.Version("3.0.1")
    URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
    PACKAGE: Package | None = None
    ARCHIVES = {  # file: (size, sha256) of its uncompressed content
        "train-images-idx3-ubyte.gz": (
            47040016,
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        "train-labels-idx1-ubyte.gz": (
            60008,
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        "t10k-images-idx3-ubyte.gz": (
            7840016,
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        "t10k-labels-idx1-ubyte.gz": (
            10008,
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    }
    CLASS_NAMES = tuple(str(digit) for digit in range(10))

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Grey 28x28 pictures in ten classes.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(names=self.CLASS_NAMES),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        paths = [
            fetch(
                Archive(self.URL + file, size, sha256, gzipped=True, package=self.PACKAGE),
                self.name,
                str(dl_manager.download_dir),
                self.data_config.manual_dir,
            )
            for file, (size, sha256) in self.ARCHIVES.items()
        ]
        return {
            "train": self._generate_examples(paths[0], paths[1]),
            "test": self._generate_examples(paths[2], paths[3]),
        }

    def _generate_examples(
        self, images: pathlib.Path, labels: pathlib.Path
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (image, label) in enumerate(
            zip(read_idx(images), read_idx(labels), strict=True)
        ):
            yield index, {"image": encode_png(Image.fromarray(image)), "label": int(label)}


class FashionMnist(Mnist, skip_registration=True):
    """Builder of the set `fashion_mnist`."""

    name = "fashion_mnist"
    URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
    PACKAGE = Package("dataset-fashion-mnist", "/usr/share/datasets/fashion-mnist")
    ARCHIVES = {
        "train-images-idx3-ubyte.gz": (
            47040016,
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        "train-labels-idx1-ubyte.gz": (
            60008,
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
        "t10k-images-idx3-ubyte.gz": (
            7840016,
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        "t10k-labels-idx1-ubyte.gz": (
            10008,
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    }
    CLASS_NAMES = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )


def read_idx(path: pathlib.Path) -> np.ndarray:
    """Read a gzipped IDX file of unsigned bytes.

    The format: two zero bytes, an 8 (the code of unsigned bytes), the number of dimensions, the
    sizes as big-endian int32, the data.

    Returns:
      uint8, of the shape that the file gives: [N, 28, 28] for images, [N] for labels.
    """
    with gzip.open(path) as file:
        data = file.read()
    num_dims = data[3]
    shape = np.frombuffer(data, ">i4", num_dims, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * num_dims).reshape(shape)
