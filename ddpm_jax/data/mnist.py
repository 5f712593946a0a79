"""MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017).

Both have 28x28 grey images in ten classes: 60,000 training and 10,000 test images.

The builders read the upstream files. Features, keys, names and versions are the same as in TFDS's
own builders. So TFDS reads the array_record files written here, and the other way round.
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
from ddpm_jax.runtime.files import Archive, fetch


class Mnist(Builder, skip_registration=True):
    """Builder of the set `mnist`."""

    name = "mnist"
    VERSION = tfds.core.Version("3.0.1")
    URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
    ARCHIVES = {  # file: (size, sha256)
        "train-images-idx3-ubyte.gz": (
            9912422,
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        "train-labels-idx1-ubyte.gz": (
            28881,
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
        "t10k-images-idx3-ubyte.gz": (
            1648877,
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        "t10k-labels-idx1-ubyte.gz": (
            4542,
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
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
                Archive(self.URL + file, *size_and_sha256),
                self.name,
                str(dl_manager.download_dir),
                self.data_config.manual_dir,
            )
            for file, size_and_sha256 in self.ARCHIVES.items()
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
    ARCHIVES = {
        "train-images-idx3-ubyte.gz": (
            26421880,
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        "train-labels-idx1-ubyte.gz": (
            29515,
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        ),
        "t10k-images-idx3-ubyte.gz": (
            4422102,
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        ),
        "t10k-labels-idx1-ubyte.gz": (
            5148,
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
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
