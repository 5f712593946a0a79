"""Quality of samples of the digits: a Fréchet distance.

    python -m benchmarks.digits_quality SAMPLES.npz

The distance is between the samples and the training images, as in FID. The features are the 64
hidden units of a classifier of digits (scikit-learn's MLP, 98 % of held-out images right). The
distance depends on the number of images n, so compare only distances with the same n. Measured for
n = 200 (the last four with 100 steps of fixed_small, which have 2.7 without any damage):

  training images drawn at random         1.1
  all held-out images (163)               1.7
  the digits config, all 1,000 steps      1.7, 2.2 (two seeds)
  a Gaussian fitted to the images         5.9
  sampler with 1.5 times its noise        7.3
  sampled under the cosine schedule       9.2
  sampler without its noise                98
  initial weights in place of the EMA     105

On pixels, the distance barely distinguishes a Gaussian (1.2) from the model (1.0).
"""

import functools
import pathlib
import sys

import numpy as np
from sklearn.neural_network import MLPClassifier

from ddpm_jax import data
from ddpm_jax.config import DataConfig
from ddpm_jax.evaluation.moments import frechet_distance, moments
from ddpm_jax.pixels import to_x_0


@functools.cache
def _classifier_and_images() -> tuple[MLPClassifier, np.ndarray]:
    """Return a classifier trained on the training images, and the images [N, 64] in [-1, 1]."""
    train = data.open_dataset(DataConfig(name="digits")).train
    images, labels = train.read(np.arange(len(train)))
    images = to_x_0(images.reshape(len(images), -1))
    mlp = MLPClassifier((64,), alpha=1e-2, max_iter=300, random_state=0)
    return mlp.fit(images, labels), images


def classifier() -> MLPClassifier:
    """Return the classifier; its methods (predict, score) take rows [N, 64] in [-1, 1]."""
    return _classifier_and_images()[0]


def features(images: np.ndarray) -> np.ndarray:
    """Return the classifier's hidden layer, [N, 64], of images [N, 8, 8, 1] in [-1, 1]."""
    weights, bias = classifier().coefs_[0], classifier().intercepts_[0]
    return np.maximum(images.reshape(len(images), -1) @ weights + bias, 0.0)


def quality(images: np.ndarray) -> float:
    """Return the distance between images [N, 8, 8, 1] in [-1, 1] and the training images."""
    _, real = _classifier_and_images()
    found = moments(features(images.astype(np.float64)))
    return frechet_distance(found, moments(features(real)))


if __name__ == "__main__":
    with np.load(pathlib.Path(sys.argv[1])) as file:
        found = to_x_0(file["images"])  # uint8
    print(f"Fréchet distance of {len(found)} images to the training images: {quality(found):.2f}")
