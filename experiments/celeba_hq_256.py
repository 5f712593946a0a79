"""CelebA-HQ at 256x256, by the recipe of Ho et al. 2020 (appendix B).

Command:  python -m experiments.train --config=experiments/celeba_hq_256.py
          --config.data.path=IMAGES
Data:     IMAGES is a folder of images of any size. Each is cropped to its central square and
          resized. The set (30,000 images) is not downloaded: export it to a folder first.
Paper:    The paper gives no FID for this set. 0.5M steps at 2.2 steps/s on a TPU v3-8, about 63
          hours; 128 samples in 300 s; 114M parameters (here 113,673,219).
Measured: nothing yet (2026-11-23).
"""

import ml_collections

from experiments import base


def get_config() -> ml_collections.ConfigDict:
    """Return the config."""
    config = base.get_config()
    config.data.name = "folder"
    config.data.image_size = 256
    config.data.channels = 3
    config.data.flip = True
    config.data.holdout = 0.01
    config.model.channel_multipliers = (1, 1, 2, 2, 4, 4)
    config.model.dropout = 0.0
    config.optim.learning_rate = 2e-5
    config.train.num_steps = 500_000
    config.train.batch_size = 64
    config.train.steps_per_call = 1  # a step is long; a request to stop waits for two calls
    config.train.num_samples = 16
    config.sample.chunk_size = 16
    return config
