"""An autoencoder of Fashion-MNIST at 32x32: latents of 8x8 with 4 channels (f = 4).

Command:  python -m experiments.train --config=experiments/fashion_autoencoder.py          one GPU
          python -m experiments.train --config=experiments/fashion_autoencoder.py:small    two cores
Then:     python -m experiments.train --config=experiments/fashion_latent.py:small
Measured: `:small`: PSNR 27.7 dB and mean absolute error 0.043 (of [-1, 1]) on 1,024 held-out
          images after 3,000 steps on two cores (2026-11-26, jax 0.10.2). The full config: nothing
          yet.
Paper:    Rombach et al. 2022, a KL autoencoder (f = 4 has 3 channels there, of 256x256 images).
"""

import ml_collections

from experiments import base


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Return the config; `variant` is "" or "small"."""
    base.check_variant(__file__, variant, ("", "small"))
    config = base.get_config()
    config.data.name = "fashion_mnist"
    config.data.image_size = 32
    config.data.crop = "pad"
    config.data.flip = False
    config.model.name = "autoencoder"
    config.model.latent_channels = 4
    config.model.attention_resolutions = ()
    config.model.dropout = 0.0
    config.optim.decay = "cosine"
    if variant == "":
        config.model.channels = 64
        config.model.channel_multipliers = (1, 2, 2)
        config.autoencoder.discriminator_weight = 0.5
        config.autoencoder.discriminator_start = 10_000
        config.optim.b1 = 0.5
        config.optim.b2 = 0.9
        config.optim.learning_rate = 2e-4
        config.optim.warmup_steps = 500
        config.optim.ema_decay = 0.999
        config.train.num_steps = 30_000
        config.train.batch_size = 64
    else:
        config.model.patch_size = 2
        config.model.channels = 32
        config.model.channel_multipliers = (1, 2)
        config.model.num_res_blocks = 1
        config.model.num_groups = 8
        config.autoencoder.kl_weight = 1e-2  # docs/latent.md, "Measured"
        config.optim.learning_rate = 2e-3
        config.optim.warmup_steps = 100
        config.optim.ema_decay = 0.995
        config.train.num_steps = 3000
        config.train.batch_size = 32
        config.train.sample_every = 0
        config.train.checkpoint_every = 1000
        config.train.keep_every = 0
        config.eval.every = 1000
    return config
