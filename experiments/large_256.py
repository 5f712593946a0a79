"""Half a billion parameters at 256x256, for your own images, on several accelerators.

Command:  python -m experiments.train --config=experiments/large_256.py --config.data.path=IMAGES
          on every host of a pod or cluster, with --distributed=auto (docs/scaling.md).
Network:  501,189,123 parameters: the widths and attention of Dhariwal & Nichol 2021 (table 4,
          ImageNet 256x256: 256 channels, 1-1-2-2-4-4, attention at 32, 16 and 8, AdaGN); plain
          strided and nearest-neighbour resampling as in Ho et al., so it is not their network.
Memory:   the state takes 7.5 GiB, cut over eight devices 0.93 GiB each; the blocks' activations
          are computed again in the backward pass (docs/scaling.md has the compiler's figures).
Measured: nothing but that plan (2026-11-25). Data and labels as in `folder`.
"""

import ml_collections

from experiments import base


def get_config() -> ml_collections.ConfigDict:
    """Return the config."""
    config = base.get_config()
    config.data.name = "folder"
    config.data.image_size = 256
    config.data.channels = 3
    config.data.holdout = 0.01
    config.process.schedule = "cosine"
    config.model.channels = 256
    config.model.channel_multipliers = (1, 1, 2, 2, 4, 4)
    config.model.attention_resolutions = (32, 16, 8)
    config.model.num_heads = 4
    config.model.scale_shift = True
    config.model.dropout = 0.0
    config.model.dtype = "bfloat16"
    config.model.remat = True
    config.optim.learning_rate = 1e-4
    config.train.num_steps = 1_000_000
    config.train.batch_size = 256
    config.train.num_samples = 16
    config.sample.chunk_size = 16
    config.mesh.fsdp = 8
    return config
