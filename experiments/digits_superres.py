"""Handwritten digits, from 4x4 to 8x8: super-resolution on two CPU cores.

Paper:    Saharia et al. 2021 (SR3): the small image, enlarged, is concatenated to x_t. Here it is
          enlarged by repeating pixels, there by bicubic interpolation.
Data:     as `digits.py`; each small image is the mean of 2x2 pixels of its own large one.
Command:  python -m experiments.train --config=experiments/digits_superres.py
          python -m experiments.sample --workdir=runs/digits_superres --n=64      (held-out digits)
          python -m experiments.sample --workdir=runs/digits_superres --image=small.png
Measured: loss 0.044, held-out 0.032 at 800 steps; 6 minutes on one core that did much else too
          (2026-11-25, jax 0.10.2). RMS to the held-out original 0.279, of repeated pixels 0.439
          (units of [-1, 1]); `docs/editing.md`.
"""

import ml_collections

from experiments import digits


def get_config() -> ml_collections.ConfigDict:
    """Return the config."""
    config = digits.get_config()
    config.model.super_resolution = 2
    config.train.num_steps = 800
    return config
