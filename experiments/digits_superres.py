"""Handwritten digits, from 4x4 to 8x8: super-resolution on two CPU cores.

Paper:    Saharia et al. 2021 (SR3): the small image, enlarged, is concatenated to x_t. Here it is
          enlarged by repeating pixels, there by bicubic interpolation.
Data:     as `digits.py`; each small image is the mean of 2x2 pixels of its own large one.
Command:  python -m experiments.train --config=experiments/digits_superres.py
          python -m experiments.sample --workdir=runs/digits_superres --n=64      (held-out digits)
          python -m experiments.sample --workdir=runs/digits_superres --image=small.png
Measured: not yet (2026-11-23).
"""

import ml_collections

from experiments import digits


def get_config() -> ml_collections.ConfigDict:
    """Return the config."""
    config = digits.get_config()
    config.model.super_resolution = 2
    config.train.num_steps = 800
    return config
