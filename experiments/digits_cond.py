"""Handwritten digits with classes and a null class, for classifier-free guidance.

Command:  python -m experiments.train --config=experiments/digits_cond.py --workdir=runs/digits_cond
          python -m experiments.sample --workdir=runs/digits_cond --label=7 --guidance=0.5
Data:     as in `digits.py`, with the labels 0 to 9.
Paper:    Ho & Salimans 2022 ("Classifier-free diffusion guidance"); here on 8x8 digits.
Measured: loss 0.075, held-out 0.059 after 1,200 steps; 10 minutes on one core that also did much
          other work (2026-11-25, jax 0.10.2). 95.1 % of the samples show the requested class at
          w = 0, and 99.7 % at w = 1. The diversity is 0.99 and 0.81 of the data's
          (`docs/guidance.md`).
"""

import ml_collections

from experiments import digits


def get_config() -> ml_collections.ConfigDict:
    """Return the config."""
    config = digits.get_config()
    config.model.class_conditional = True
    config.loss.p_uncond = 0.1
    return config
