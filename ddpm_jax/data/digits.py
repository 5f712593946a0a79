"""scikit-learn's handwritten digits: 1,797 real grey 8x8 images in ten classes, without a download.

They are the test part of the UCI set "Optical Recognition of Handwritten Digits". The value of each
pixel is a count in 0..16: the inked pixels of a 4x4 block of the scan. It is stored as
round(count * 255 / 16), so 16 becomes 255.

The split "test" holds every eleventh image in scikit-learn's order (163 images). The split "train"
holds the others (1,634). "train+test" holds all.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from ddpm_jax.data.prepared import Builder


class Digits(Builder, skip_registration=True):
    """Builder of the set `digits`."""

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
        # Not % 10: part of the set is in the order 0, 1, .., 9, 0, 1, .. So the classes of "test"
        # would be uneven (40 threes, 10 ones).
        test = np.arange(1797) % 11 == 10
        return {
            "train": self._generate_examples(np.flatnonzero(~test)),
            "test": self._generate_examples(np.flatnonzero(test)),
        }

    def _generate_examples(self, indices: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        # Imported here, because it takes longer than all other imports together.
        from sklearn.datasets import load_digits

        digits: Any = load_digits()
        pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
        for i in indices.tolist():
            yield i, {"image": Image.fromarray(pixels[i]), "label": int(digits.target[i])}
