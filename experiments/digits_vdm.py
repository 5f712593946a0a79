"""Handwritten digits, 8x8, with a learned noise schedule: VDM (Kingma et al. 2021) in minutes.

Command:  python -m experiments.train --config=experiments/digits_vdm.py --workdir=runs/digits_vdm
Data:     the 1,797 digits of scikit-learn; nothing is downloaded.
Measured: held-out bits/dim 3.894 ± 0.028 (bound of 1,000 steps, all of them computed, fixed_small,
          163 images), held_out_loss 3.94; one training of 1,200 steps (2026-11-26, two CPU cores).

The network, the optimiser and the number of steps are those of `digits.py`. The loss is the bound
in bits/dim. `held_out_loss` is its estimate on the held-out images, with one time u per image.
"""

import ml_collections

from experiments import digits


def get_config() -> ml_collections.ConfigDict:
    """Return the config."""
    config = digits.get_config()
    config.process.schedule = "learned"
    config.model.fourier_features = (7, 8)
    config.sample.variance = "fixed_small"  # its bound converges to the loss as T grows
    return config
