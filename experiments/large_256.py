"""Half a billion parameters at 256x256, for your own images, on several accelerators.

Command:  python -m experiments.train --config=experiments/large_256.py --config.data.path=IMAGES
          on every host of a pod or cluster, with --distributed=auto (docs/scaling.md).
Data:     images and labels as in `folder.py`.
Network:  501,189,123 parameters. The widths and the attention are those of Dhariwal & Nichol 2021
          (table 4, ImageNet 256x256: 256 channels, 1-1-2-2-4-4, attention at 32, 16 and 8, AdaGN).
          The resampling is that of Ho et al. (strided and nearest-neighbour), so this is not their
          network.
Memory:   The state takes 7.5 GiB, or 0.93 GiB on each of eight devices. The blocks' activations are
          recomputed in the backward pass. docs/scaling.md has the compiler's figures.
Measured: nothing was run. docs/scaling.md has the compiler's plans, with an estimated speed.
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
    config.train.steps_per_call = 1  # a step is long; a request to stop waits for two calls
    config.train.num_samples = 16
    config.sample.chunk_size = 16
    config.mesh.fsdp = 8
    return config
