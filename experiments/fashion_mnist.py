"""Fashion-MNIST, 28x28 grey, conditional on its 10 classes, with a null class for guidance.

Command:  python -m experiments.train --config=experiments/fashion_mnist.py          one GPU
          python -m experiments.train --config=experiments/fashion_mnist.py:small    two CPU cores
Data:     60,000 training and 10,000 test images (Xiao et al. 2017). On Debian,
          `apt install dataset-fashion-mnist` brings them (31 MB); otherwise they are downloaded.
Measured: `:small`: 17 min 1 s with compilation and 64 samples, on two cores on which a few short
          tests also ran; 270 images/s; loss 0.138, held-out loss 0.142 (2026-11-26, jax 0.10.2).
          Most garments can be named at a glance. Fréchet distance of 3 x 1,000 samples to the
          training images 13.2 ± 0.7, precision 0.875, recall 0.73, in the features of
          `benchmarks/fashion_quality.py` (1,000 real test images: 2.5 ± 0.2). One training.
          The full config with train.num_steps=10000, in bfloat16 on one H100: 3.0 ± 0.1, precision
          0.89, recall 0.84; 4 minutes beside other work (2026-11-27, jax 0.11.2; the command is in
          benchmarks/README.md).

The full config has a network like that of CIFAR-10, with half the channels. The network of `:small`
sees patches of 2x2 pixels as channels, so it runs at 14x14 and 7x7.
"""

import ml_collections

from experiments import base


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Return the config; `variant` is "" or "small"."""
    base.check_variant(__file__, variant, ("", "small"))
    config = base.get_config()
    config.data.name = "fashion_mnist"
    config.data.flip = False  # shoes point to the left
    config.process.schedule = "cosine"
    config.loss.kind = "v"
    config.model.class_conditional = True
    config.optim.decay = "cosine"
    if variant == "":
        config.model.channels = 64
        config.model.channel_multipliers = (1, 2, 2)
        config.model.attention_resolutions = (14,)
        config.optim.learning_rate = 4e-4
        config.optim.warmup_steps = 1000
        config.optim.ema_decay = 0.999
        config.train.num_steps = 50_000
    else:
        config.model.patch_size = 2
        config.model.channels = 32
        config.model.channel_multipliers = (1, 2)
        config.model.attention_resolutions = (7,)
        config.model.num_groups = 8
        config.model.dropout = 0.0
        config.optim.learning_rate = 3e-3
        config.optim.warmup_steps = 100
        config.optim.ema_decay = 0.995
        config.train.num_steps = 8000
        config.train.batch_size = 32
        config.train.sample_every = 0
        config.train.checkpoint_every = 1000
        config.train.keep_every = 0
        config.eval.every = 1000
        config.sample.sampler = "dpm_solver_pp_2m"
        config.sample.timesteps = "trailing"
        config.sample.num_steps = 25
    return config
