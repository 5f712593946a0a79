"""Latent diffusion on Fashion-MNIST: 8x8 latents with 4 channels of 32x32 images.

Command:  python -m experiments.train --config=experiments/fashion_autoencoder.py
          python -m experiments.train --config=experiments/fashion_latent.py          one GPU
          or both with `:small`                                                       two CPU cores
Measured: `:small`: Fréchet distance of 2 x 1,000 samples 16.5 ± 0.3 after 10,999 steps, and
          19.8 ± 0.5 after 5,958, on two cores (2026-11-26, jax 0.10.2; docs/latent.md). The full
          config: nothing yet.
Paper:    Rombach et al. 2022. For an autoencoder in another directory, give
          --config.data.codec=DIRECTORY.

The network is conditional on the 10 classes, with a null class for guidance.
"""

import ml_collections

from experiments import base, fashion_mnist


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Return the config; `variant` is "" or "small"."""
    base.check_variant(__file__, variant, ("", "small"))
    config = fashion_mnist.get_config(variant)
    config.data.image_size = 32
    config.data.crop = "pad"
    config.data.codec = "runs/fashion_autoencoder"
    config.model.patch_size = 1
    if variant == "":
        config.model.channels = 128
        config.model.channel_multipliers = (1, 2)
        config.model.attention_resolutions = (8,)
    else:
        config.model.channels = 48
        config.model.channel_multipliers = (1, 2)
        config.model.attention_resolutions = (4,)
    return config
