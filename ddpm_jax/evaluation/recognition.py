"""How well classifiers recognise each class, and whether one is better than another.

    recall of class c = fraction of its images that are recognised,   balanced accuracy = their mean

Trainings of two arms with one seed are a pair. So the standard error of their difference is that of
the differences of the pairs. A difference is called clear if 0 is outside its 95 % interval by
Student's t. This covers the seeds of the classifiers, not other data or another training of the
diffusion model; and the best of several arms looks better than it is.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from ddpm_jax.evaluation.distances import Estimate, standard_error

THIRDS = ("most frequent", "middle", "rarest")  # thirds of the classes, in the order of the labels
LEVEL = 0.95  # a difference is clear if its confidence interval of this level leaves out 0


class ArmResult(NamedTuple):
    """The summary of an arm, over its seeds.

    Attributes:
      accuracy: the balanced accuracy.
      thirds: the recall of each of THIRDS.
      recalls: the recall of each class.
    """

    accuracy: Estimate
    thirds: dict[str, Estimate]
    recalls: list[Estimate]


def recalls(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the recall of each class: [K] float; every class must occur.

    Args:
      labels: [n] int.
      predicted: [n] int.
      num_classes: K.
    """
    right = np.bincount(labels[labels == predicted], minlength=num_classes)
    return right / np.bincount(labels, minlength=num_classes)


def sampling_error(found: np.ndarray, counts: np.ndarray) -> float:
    """Return the standard error of a balanced accuracy, from the numbers of images.

    The recall of a class is a mean of n_c images that are right or wrong. p_c is the recall with
    one right and one wrong image added. So a class with few images, all right, has an error too.

        error² = Σ p_c (1 - p_c) / n_c / K²

    Args:
      found: [K] float, the recall of each class.
      counts: [K] int, n_c, at least 1.
    """
    p = (found * counts + 1) / (counts + 2)
    return float(np.sqrt((p * (1 - p) / counts).sum()) / len(counts))


def choose(scores: Sequence[Estimate]) -> int:
    """Return the index of the first score that is within one standard error of the best.

    So the first one is kept unless another is clearly better (the rule of Breiman et al. 1984,
    "Classification and Regression Trees").
    """
    best = max(scores, key=lambda score: score.value)
    return next(i for i, score in enumerate(scores) if score.value >= best.value - best.error)


def thirds(num_classes: int) -> dict[str, np.ndarray]:
    """Return the classes of each of THIRDS; a class may be missing if there are fewer than 3."""
    return dict(zip(THIRDS, np.array_split(np.arange(num_classes), 3), strict=True))


def estimate(values: np.ndarray) -> Estimate:
    """Return the mean of values [seeds] and its standard error."""
    return Estimate(float(np.mean(values)), standard_error(np.asarray(values)))


def summarise(found: np.ndarray) -> ArmResult:
    """Return the summary of an arm.

    Args:
      found: [seeds, K] float, the recall of each class.
    """
    parts = {
        name: estimate(found[:, classes].mean(axis=1))
        for name, classes in thirds(found.shape[1]).items()
        if len(classes)
    }
    return ArmResult(estimate(found.mean(axis=1)), parts, [estimate(each) for each in found.T])


def is_clear(difference: Estimate, n: int) -> bool:
    """Return whether a mean of n normal values differs from 0, by Student's t with n-1 degrees.

    Args:
      difference: the mean and its standard error.
      n: number of values, at least 2.
    """
    return bool(abs(difference.value) > stats.t.ppf((1 + LEVEL) / 2, n - 1) * difference.error)


def paired(a: np.ndarray, b: np.ndarray) -> Estimate:
    """Return the mean of a - b and its standard error, for pairs a, b: [seeds] float."""
    return estimate(np.asarray(a) - np.asarray(b))


def best(found: Mapping[str, np.ndarray], names: Sequence[str]) -> str:
    """Return the arm of `names` with the largest balanced accuracy; the first one of equal ones."""
    return max(names, key=lambda name: found[name].mean())


def verdict(found: Mapping[str, np.ndarray], ours: Sequence[str], others: Sequence[str]) -> str:
    """Return a sentence that says whether the best of `ours` beats the best of `others`, and where.

    Args:
      found: arm -> [seeds, K] float, the recall of each class.
      ours: names of the arms with synthetic images.
      others: names of the arms without them.
    """
    mine, other = best(found, ours), best(found, others)
    pairs = found[mine] - found[other]
    parts = [
        f"{name} classes: {_judged(pairs[:, classes].mean(axis=1))}"
        for name, classes in thirds(pairs.shape[1]).items()
        if len(classes)
    ]
    return (
        f"{mine}, the best arm with synthetic images, against {other}, the best arm without: "
        f"{_judged(pairs.mean(axis=1))}. Recall of the {'; '.join(parts)}"
    )


def _judged(differences: np.ndarray) -> str:
    """Return whether synthetic images helped, from the differences of pairs: [seeds]."""
    found, n = estimate(differences), len(differences)
    if n < 2:
        return f"one seed cannot show a difference ({100 * found.value:+.1f} points)"
    points = f"{100 * found.value:+.1f} ± {100 * found.error:.1f} points"
    if not is_clear(found, n):
        return f"no clear difference ({points})"
    return f"synthetic images {'helped' if found.value > 0 else 'hurt'} ({points})"
