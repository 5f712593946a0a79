"""CIFAR-10, class-conditional, with a learned null class for classifier-free guidance.

Papers:   Ho et al. 2020 for all but the labels; Ho & Salimans 2022 for the null class (p_uncond
          0.1-0.2). No paper states the FID of this network with labels.
Command:  python -m experiments.train --config=experiments/cifar10_cond.py
Measured: nothing yet (2026-11-23). Hardware and hours: as `cifar10.py`.

Sample one class with `python -m experiments.sample --workdir=runs/cifar10_cond --label=3`, and
guided towards it with `--guidance=1.5`.
"""

import ml_collections

from experiments import cifar10


def get_config() -> ml_collections.ConfigDict:
    """Return the config."""
    config = cifar10.get_config()
    config.model.class_conditional = True
    config.loss.p_uncond = 0.1
    return config
