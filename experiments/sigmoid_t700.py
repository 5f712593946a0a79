"""The model of a lecture: sigmoid schedule, T = 700, 32x32 images, simple U-Net, 10 epochs.

Command:  python -m experiments.train --config=experiments/sigmoid_t700.py
          --config.data.name=emoji trains on a set that needs no download.
Source:   a lecture's exercise, not reproduced exactly. This config has its parts: beta_t on a
          sigmoid, 700 timesteps, sinusoidal time embedding, a small U-Net, Adam, 10 epochs. The
          lecture gives no FID.
Measured: nothing on CIFAR-10. On Fashion-MNIST, with half the channels: docs/schedules.md.
"""

import ml_collections

from experiments import base

NUM_TRAIN = 50_000  # CIFAR-10


def get_config() -> ml_collections.ConfigDict:
    """Return the config."""
    config = base.get_config()
    config.data.name = "cifar10"
    config.process.schedule = "sigmoid"
    config.process.num_timesteps = 700
    config.process.beta_1 = 1e-4
    config.process.beta_T = 0.02
    config.model.channels = 64
    config.model.channel_multipliers = (1, 2, 4)
    config.model.num_res_blocks = 1
    config.model.attention_resolutions = ()
    config.model.num_groups = 8
    config.model.dropout = 0.0
    config.optim.learning_rate = 1e-3
    config.optim.warmup_steps = 100
    config.optim.ema_decay = 0.995
    config.train.batch_size = 128
    config.train.num_steps = 10 * NUM_TRAIN // config.train.batch_size
    config.train.sample_every = 0
    config.train.checkpoint_every = 500
    config.train.keep_every = 0
    config.eval.every = 500
    return config
