"""scikit-learn's handwritten digits: 1,797 real grey 8x8 images in ten classes, nothing downloaded.

They are the test part of the UCI set "Optical Recognition of Handwritten Digits". Each pixel counts
0..16 strokes of a 4x4 block; it is stored as round(count * 255 / 16), so that 16 becomes 255. Every
eleventh image, in scikit-learn's order, is in the split "test" (163 images), the others in "train"
(1,634); "train+test" is all of them.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from ddpm_jax.data.prepared import Builder


class Digits(Builder, skip_registration=True):
    """The builder of the set `digits`."""

    name = "digits"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits, 8x8 grey, from scikit-learn.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        test = np.arange(1797) % 11 == 10  # not % 10: the order is partly 0, 1, .., 9, 0, 1, ..
        return {
            "train": self._generate_examples(np.flatnonzero(~test)),
            "test": self._generate_examples(np.flatnonzero(test)),
        }

    def _generate_examples(self, indices: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        from sklearn.datasets import load_digits  # here, for it takes longer than all other imports

        digits: Any = load_digits()
        pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
        for i in indices.tolist():
            yield i, {"image": Image.fromarray(pixels[i]), "label": int(digits.target[i])}
