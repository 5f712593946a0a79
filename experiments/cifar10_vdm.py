"""CIFAR-10 on the bound, with a learned noise schedule: VDM (Kingma et al. 2021, appendix B).

Paper:    2.65 bits/dim without augmentation (2.49 with), 10M steps on 8 TPUv3 chips.
Command:  python -m experiments.train --config=experiments/cifar10_vdm.py --workdir=runs/cifar10_vdm
Measured: nothing on this data set.

The paper's: γ from -13.3 to 5, learned with its ends; Fourier features n = 7, 8; antithetic times;
eps; AdamW, 2e-4, batch 128, dropout 0.1, EMA 0.9999, constant rate, no clipping, no flips; b2 0.99
and weight decay 0.01 as in its code (all written from memory, not held against the text).

Deviates in the network, which is this library's U-Net of 4 levels: VDM's keeps one resolution all
through, 32 blocks of 128 channels each way, with attention in the middle alone. The EMA is warmed
up, and the weight decay is on the schedule too.
"""

import ml_collections

from experiments import base


def get_config() -> ml_collections.ConfigDict:
    """Return the config."""
    config = base.get_config()
    config.data.name = "cifar10"
    config.data.flip = False
    config.process.schedule = "learned"
    config.process.num_timesteps = 1000  # of the chain that samples
    config.process.gamma_min = -13.3
    config.process.gamma_max = 5.0
    config.model.fourier_features = (7, 8)
    config.model.dropout = 0.1
    config.optim.name = "adamw"
    config.optim.learning_rate = 2e-4
    config.optim.warmup_steps = 0
    config.optim.b2 = 0.99
    config.optim.weight_decay = 0.01
    config.optim.clip_norm = 0.0
    config.optim.ema_decay = 0.9999
    config.train.num_steps = 10_000_000
    config.train.batch_size = 128
    config.sample.variance = "fixed_small"
    return config
