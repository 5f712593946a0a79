"""CIFAR-10 on the bound, with a learned noise schedule: VDM (Kingma et al. 2021, appendix B).

Command:  python -m experiments.train --config=experiments/cifar10_vdm.py --workdir=runs/cifar10_vdm
Paper:    2.65 bits/dim without augmentation (2.49 with), 10M steps on 8 TPUv3 chips.
Measured: nothing on this data set.

The settings follow the authors' configs/cifar10.py: learned γ with ends that start at -13.3 and 5;
Fourier features; antithetic times; eps; AdamW with b2 0.99 and weight decay 0.01, 2e-4 after 100
steps, batch 128, dropout 0.1, EMA 0.9999, no clipping, no flips. The schedule is the paper's
monotone network. The authors' config uses a straight line between two learned ends instead.

Deviates in the network, which is this library's U-Net with 4 levels. VDM's network keeps one
resolution throughout, with 32 blocks of 128 channels each way, and attends only in the middle. Here
the EMA is warmed up, and the weight decay also applies to the schedule.
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
    config.optim.warmup_steps = 100
    config.optim.b2 = 0.99
    config.optim.weight_decay = 0.01
    config.optim.clip_norm = 0.0
    config.optim.ema_decay = 0.9999
    config.train.num_steps = 10_000_000
    config.train.batch_size = 128
    config.sample.variance = "fixed_small"
    return config
