"""The quality of the samples of a run, and whether the samples are copies: `evaluate`."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from ddpm_jax import data
from ddpm_jax.data.cond import drawn_cond, rows_of
from ddpm_jax.evaluation import memorisation, references, table
from ddpm_jax.evaluation.distances import Estimate
from ddpm_jax.evaluation.features import FeatureNetwork, make_features
from ddpm_jax.evaluation.table import Row, short
from ddpm_jax.pixels import to_uint8
from ddpm_jax.runs import Run
from ddpm_jax.runtime.progress import Progress, silent
from ddpm_jax.sampling import sample_in_chunks

MAX_NEIGHBOURS = 1000  # samples of each seed, and held-out images, for the search of neighbours
SHOWN = 30  # samples in the picture


class Report(NamedTuple):
    """The result of `evaluate`.

    Attributes:
      rows: the metrics.
      neighbours: [H, W, C] uint8, a picture of the samples of the first seed that are nearest to a
        training image. The nearest sample is first. Each is above its training image.
    """

    rows: list[Row]
    neighbours: np.ndarray


def evaluate(
    run: Run,
    dataset: data.Dataset,
    network: FeatureNetwork,
    *,
    n: int,
    num_seeds: int = 3,
    split: str = "train",
    progress: Progress = silent,
) -> Report:
    """Draw samples from a run with several seeds, and measure their quality.

    A conditional model receives the conditioning of n random images of the split: their classes,
    texts or coarse versions. Guidance is as in `run.config.sample`. The error is the standard error
    over the seeds 0, 1, ... of noise and conditioning. It does not include the variance of the
    model, the reference or the features.

    Args:
      run: the run, from `runs.open_run`. `run.config.sample` sets the sampler.
      dataset: the data that the run was trained on.
      network: the feature network.
      n: number of images for each seed.
      num_seeds: number of seeds.
      split: the reference, "train" or "test".
      progress: receives the number of samples that are drawn.

    Raises:
      UserError: no such split.
    """
    source = references.source_of(dataset, split)
    encoded = rows_of(run.config, dataset)[split == "test"]
    what = f"features of the {split} images (kept for the next time)"
    progress(what, 0, 1)
    reference = references.reference(run.config.data, dataset, split, network)
    sample = run.sample_fn()
    features = make_features(network)
    progress(what, 1, 1)
    what = "distances of held-out images to the training images"
    progress(what, 0, 1)
    near = _Neighbours(run, dataset)
    progress(what, 1, 1)
    measured, picture = [], np.zeros(0, np.uint8)
    what, done, total = f"drawing samples by {run.config.sample.sampler}", 0, n * num_seeds
    progress(what, done, total)
    for seed in range(num_seeds):
        cond = drawn_cond(run.config, source, encoded, n, seed)
        chunk_size = run.config.sample.chunk_size
        found, kept = [], []
        for chunk in sample_in_chunks(
            sample, run.params, jax.random.key(seed), n, chunk_size, cond
        ):
            images = to_uint8(chunk)
            found.append(features(images))
            done += len(images)
            progress(what, done, total)
            if sum(map(len, kept)) < MAX_NEIGHBOURS:
                kept.append(images)
        some = np.concatenate(kept)[:MAX_NEIGHBOURS]
        distance, index = near.find(some)
        if not picture.size:
            first = np.argsort(distance)[:SHOWN]
            theirs, _ = dataset.train.read(index[first])
            picture = memorisation.neighbour_grid(some[first], theirs)
        measured.append(
            table.compare(
                np.concatenate(found),
                reference.moments,
                reference.features,
                network=network.name,
                split=split,
                head=network.head,
                seed=seed,
            )
            | near.compare(distance)
        )
    return Report(table.explained(table.over_seeds(measured, n)), picture)


class _Neighbours:
    """The nearest training images of samples, and of held-out images as the reference."""

    def __init__(self, run: Run, dataset: data.Dataset):
        self._train = dataset.train
        self._flip = run.config.data.flip
        self._held_out = None
        if dataset.test is not None:
            indices = np.random.default_rng(0).permutation(len(dataset.test))[:MAX_NEIGHBOURS]
            self._held_out, _ = self.find(dataset.test.read(indices)[0])

    def find(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the distance [n] of each image to its nearest training image, and its index [n].

        Args:
          images: [n, H, W, C] uint8.
        """

        def chunks() -> Iterator[np.ndarray]:
            return references.chunks(self._train)

        return memorisation.nearest_training_image(images, chunks, flip=self._flip)

    def compare(self, distance: np.ndarray) -> dict[str, Estimate | str]:
        """Return name -> metric, or a reason why there is none, for samples at distances [n]."""
        names = [f"{field}{short(len(distance))}" for field in memorisation.Memorisation._fields]
        if self._held_out is None:
            return dict.fromkeys(names, "needs held-out images")
        found = memorisation.compare(distance, self._held_out)
        return {k: Estimate(v, np.nan) for k, v in zip(names, found, strict=True)}
