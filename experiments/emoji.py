"""Emoji, 32x32 RGB, conditional on their 9 groups (people, food, flags ...).

Command:  python -m experiments.train --config=experiments/emoji.py            one GPU
          python -m experiments.train --config=experiments/emoji.py:small      two CPU cores
Data:     3,641 pictures, rendered from the Noto colour emoji font. Nothing is downloaded, but the
          font must be installed (Debian: apt install fonts-noto-color-emoji unicode-data). On other
          systems, set data.font_path and data.emoji_test_path. The set can replace CIFAR-10 on a
          machine without network.
Measured: `:small` (16x16): loss 0.138; 17 minutes on two cores that also did other work, 0.24 s a
          step on two idle ones (2026-11-23, jax 0.10.2). Faces, people and flags can be recognised;
          most other samples are coloured blots. The full config: nothing yet.

The full config is the CIFAR-10 U-Net with the cosine schedule and v-prediction in bfloat16. It
trains for 50,000 steps, about 1,800 passes over the set. Dropout and flips are there against
memorisation; whether they are enough is not measured yet.
"""

import ml_collections

from experiments import base


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Return the config; `variant` is "" or "small"."""
    base.check_variant(__file__, variant, ("", "small"))
    config = base.get_config()
    config.data.name = "emoji"
    config.process.schedule = "cosine"
    config.loss.kind = "v"
    config.model.class_conditional = True
    config.optim.warmup_steps = 1000
    config.optim.decay = "cosine"
    if variant == "":
        config.model.dtype = "bfloat16"
        config.optim.ema_decay = 0.999
        config.train.num_steps = 50_000
    else:
        config.data.image_size = 16
        config.model.channels = 32
        config.model.channel_multipliers = (1, 2, 4)
        config.model.num_res_blocks = 1
        config.model.attention_resolutions = (8,)
        config.model.num_groups = 8
        config.model.dropout = 0.0
        config.optim.learning_rate = 1e-3
        config.optim.warmup_steps = 100
        config.optim.ema_decay = 0.995
        config.train.num_steps = 3200
        config.train.batch_size = 32
        config.train.num_samples = 63
        config.train.sample_every = 0
        config.train.checkpoint_every = 500
        config.train.keep_every = 0
        config.eval.every = 500
        config.sample.variance = "fixed_small"
        config.sample.num_steps = 100
    return config
