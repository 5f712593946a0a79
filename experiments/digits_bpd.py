"""Handwritten digits, 8x8, for likelihood: L_simple, L_hybrid and L_vlb on two CPU cores.

Command:  python -m experiments.train --config=experiments/digits_bpd.py:hybrid
          --workdir=runs/digits_bpd_hybrid
          python -m experiments.evaluate --workdir=runs/digits_bpd_hybrid
          The variants are simple, hybrid and vlb. Give each its own --workdir.
Paper:    Nichol & Dhariwal 2021, section 3: a learned variance lowers bits/dim. L_vlb, with
          timesteps drawn by importance, lowers it most. L_simple gives better samples than L_vlb.
Measured: held-out bits/dim 4.785 ± 0.040 (simple, fixed_small), 4.621 ± 0.035 (simple,
          fixed_large), 4.455 ± 0.034 (hybrid), 4.475 ± 0.031 (vlb), one training each (2026-11-25,
          two CPU cores; docs/likelihood.md).
"""

import ml_collections

from experiments import base, digits


def get_config(variant: str = "hybrid") -> ml_collections.ConfigDict:
    """Return the config; `variant` is "simple", "hybrid" or "vlb"."""
    base.check_variant(__file__, variant, ("simple", "hybrid", "vlb"))
    config = digits.get_config()
    config.process.schedule = "cosine"
    config.sample.variance = "fixed_small"
    if variant != "simple":
        config.model.learn_variance = True
        config.loss.objective = variant
        config.sample.variance = "learned_range"
    if variant == "vlb":
        config.loss.t_sampler = "loss_second_moment"
    return config
