"""Ways to train a classifier on a long-tailed set, as rows of one table: `ARMS`.

Of class c there are n_c real images; its prior is π_c = n_c / Σ n. All arms take the same steps.

  oversampling        each class is drawn equally often
  reweighting         w_c ∝ (1-β) / (1-β^n_c), with Σ w_c = K   (Cui et al. 2019, "class-balanced")
  logit_adjustment    τ log π_c is added to the logits in the loss   (Menon et al. 2021)
  augmentation        random shifts, and mirrors if data.flip
  synthetic           synthetic images fill up the classes; each class is drawn equally often
  synthetic_filtered  only the synthetic images that pass a filter (`evaluation.filtering`)
  synthetic_weighted  the loss of a synthetic image has a lower weight than that of a real image
                      (Shao et al. 2024, DiffuLT)
  ..._augmented       oversampling, logit_adjustment and synthetic with the shifts of augmentation

Deviates from DiffuLT, which combines the weight with a filter: here each arm shows one idea. And
the weights are scaled so that their mean is 1 in each class. Otherwise the arm would also give the
rare classes, which have few real images, a lower weight.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.config_checks import (
    BELOW_1,
    COUNT,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    check_section,
)
from ddpm_jax.errors import UserError
from ddpm_jax.training.recognition import Examples


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings that the arms share; the section `arms` of a config."""

    num_seeds: int = 5  # trainings of each arm: the seeds 0, 1, ...
    num_steps: int = 3000  # training steps of each classifier
    batch_size: int = 64  # images in a step
    learning_rate: float = 2e-3  # of the first step; a cosine to 0
    channels: int = 32  # channels of the classifier's first convolution
    # every n-th image of each class, and at least one, is for validation: no arm trains on it
    validation_every: int = 5
    choice_seeds: int = 2  # trainings of each choice; their mean chooses w and the filter
    beta: float = 0.999  # reweighting: beta of the effective number of images
    tau: float = 1.0  # logit_adjustment: tau
    max_shift: int = 2  # augmentation: pixels of a shift, at most
    guidance: tuple[float, ...] = (0.0, 0.5, 1.0)  # weights w to choose from
    # filters to choose from: the fraction of real validation images that each threshold rejects
    reject: tuple[float, ...] = (0.05, 0.1, 0.2)
    synthetic_weight: float = 0.3  # synthetic_weighted: weight of a synthetic image over a real one


RANGES = {
    "arms.num_seeds": COUNT,
    "arms.num_steps": COUNT,
    "arms.batch_size": COUNT,
    "arms.learning_rate": POSITIVE,
    "arms.channels": COUNT,
    "arms.validation_every": COUNT,
    "arms.choice_seeds": COUNT,
    "arms.beta": BELOW_1,
    "arms.tau": NOT_NEGATIVE,
    "arms.max_shift": NOT_NEGATIVE,
    "arms.guidance": NOT_NEGATIVE,
    "arms.reject": BELOW_1,
    "arms.synthetic_weight": FRACTION,
}


class Arm(NamedTuple):
    """What an arm changes; a row of `ARMS`."""

    balanced: bool = False
    reweighted: bool = False
    adjusted: bool = False
    augmented: bool = False
    synthetic: bool = False
    filtered: bool = False
    weighted: bool = False


ARMS = {
    "nothing": Arm(),
    "oversampling": Arm(balanced=True),
    "reweighting": Arm(reweighted=True),
    "logit_adjustment": Arm(adjusted=True),
    "augmentation": Arm(augmented=True),
    "synthetic": Arm(balanced=True, synthetic=True),
    "synthetic_filtered": Arm(balanced=True, synthetic=True, filtered=True),
    "synthetic_weighted": Arm(balanced=True, synthetic=True, weighted=True),
    "oversampling_augmented": Arm(balanced=True, augmented=True),
    "adjustment_augmented": Arm(adjusted=True, augmented=True),
    "synthetic_augmented": Arm(balanced=True, synthetic=True, augmented=True),
}


class Labelled(NamedTuple):
    """Images uint8 [N, H, W, C] with labels int [N]."""

    images: np.ndarray
    labels: np.ndarray


def from_dict(mapping: Mapping[str, Any]) -> Settings:
    """Return checked settings.

    Args:
      mapping: {field: value}; fields that are absent keep their defaults.

    Raises:
      UserError: an unknown field, a value of the wrong type, or a number out of its range.
    """
    settings = check_section("arms", Settings, mapping, RANGES)
    for name in ("guidance", "reject"):
        if not getattr(settings, name):
            raise UserError(f"config.arms.{name} is empty; name at least one number")
    return settings


def divide(whole: Labelled, every: int, names: Sequence[str]) -> tuple[Labelled, Labelled]:
    """Return the images to train on, and every n-th image of each class for validation.

    Args:
      whole: the long-tailed set.
      every: n; a class with fewer images gives one.
      names: the names of the classes.

    Raises:
      UserError: a class would keep no image to train on.
    """
    held = np.zeros(len(whole.labels), bool)
    for label, name in enumerate(names):
        where = np.flatnonzero(whole.labels == label)
        chosen = where[every - 1 :: every]
        held[chosen if len(chosen) else where[:1]] = True
        if held[where].all():
            raise UserError(
                f"class {name!r} has too few images ({len(where)}): all would be for validation; "
                "lower data.imbalance, or raise data.max_per_class or arms.validation_every"
            )
    fit, validation = (Labelled(whole.images[w], whole.labels[w]) for w in (~held, held))
    return fit, validation


def missing(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the labels that fill up every class to the size of the largest: [n] int32.

    Args:
      labels: [N] int, the labels that are there.
      num_classes: number of classes.
    """
    counts = np.bincount(labels, minlength=num_classes)
    return np.repeat(np.arange(num_classes, dtype=np.int32), counts.max() - counts)


def class_balanced_weights(counts: np.ndarray, beta: float) -> np.ndarray:
    """Return w_c = (1-β) / (1-β^n_c), scaled to Σ w_c = K (Cui et al. 2019, section 3 and 4).

    Args:
      counts: [K] int, n_c, at least 1.
      beta: in [0, 1); 0 gives equal weights, β -> 1 gives weights ∝ 1 / n_c.
    """
    weights = (1.0 - beta) / (1.0 - beta**counts)
    return weights * len(counts) / weights.sum()


def examples(
    arm: Arm,
    real: Labelled,
    synthetic: Labelled | None,
    num_classes: int,
    flip: bool,
    settings: Settings,
) -> Examples:
    """Return what a classifier of an arm is trained on.

    Args:
      arm: the row of `ARMS`.
      real: the long-tailed images.
      synthetic: the synthetic images of the arm, after its filter; None without them.
      num_classes: number of classes, K.
      flip: whether a mirrored image is an image of the same class.
      settings: the settings of the arms.
    """
    counts = np.bincount(real.labels, minlength=num_classes)
    images, labels, weight = real.images, real.labels, np.ones(len(real.labels))
    if arm.reweighted:
        weight = class_balanced_weights(counts, settings.beta)[labels]
    if arm.synthetic:
        assert synthetic is not None
        images = np.concatenate([images, synthetic.images])
        labels = np.concatenate([labels, synthetic.labels])
        lower = settings.synthetic_weight if arm.weighted else 1.0
        weight = np.concatenate([weight, np.full(len(synthetic.labels), lower)])
        weight = weight / (np.bincount(labels, weight) / np.bincount(labels))[labels]
    probability = np.full(len(labels), 1.0 / len(labels))
    if arm.balanced:
        probability = 1.0 / (num_classes * np.bincount(labels, minlength=num_classes)[labels])
    return Examples(
        images,
        labels,
        probability,
        weight,
        settings.tau * np.log(counts / counts.sum()) if arm.adjusted else np.zeros(num_classes),
        settings.max_shift if arm.augmented else 0,
        flip and arm.augmented,
    )
