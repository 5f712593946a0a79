"""CIFAR-10, class-conditional, with a learned null class for classifier-free guidance.

Command:  python -m experiments.train --config=experiments/cifar10_cond.py
          python -m experiments.sample --workdir=runs/cifar10_cond --label=3 --guidance=1.5
Papers:   Ho et al. 2020 for everything except the labels. Ho & Salimans 2022 for the null class
          (p_uncond 0.1-0.2). No paper gives the FID of this network with labels.
Measured: nothing yet (2026-11-23). Hardware and hours: as in `cifar10.py`.
"""

import ml_collections

from experiments import cifar10


def get_config() -> ml_collections.ConfigDict:
    """Return the config."""
    config = cifar10.get_config()
    config.model.class_conditional = True
    config.loss.p_uncond = 0.1
    return config
