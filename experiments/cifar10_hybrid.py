"""CIFAR-10 by improved DDPM: cosine schedule, T = 4000, learned variance, L_hybrid.

Command:  python -m experiments.train --config=experiments/cifar10_hybrid.py --workdir=runs/hybrid
          python -m experiments.evaluate --workdir=runs/hybrid
Paper:    Nichol & Dhariwal 2021, table 2 and appendix A: FID 3.19, NLL 3.17 bits/dim after 500k
          iterations. 3 residual blocks, attention with 4 heads at 16 and 8, a time embedding that
          scales and shifts, dropout 0.3.
Measured: not trained with this code.
"""

import ml_collections

from experiments import cifar10


def get_config() -> ml_collections.ConfigDict:
    """Return the config."""
    config = cifar10.get_config()
    config.process.schedule = "cosine"
    config.process.beta_1 = config.process.beta_T = 0.0  # the cosine schedule has no ends to set
    config.process.num_timesteps = 4000
    config.model.num_res_blocks = 3
    config.model.attention_resolutions = (16, 8)
    config.model.num_heads = 4
    config.model.scale_shift = True
    config.model.dropout = 0.3
    config.model.learn_variance = True
    config.loss.objective = "hybrid"
    config.optim.learning_rate = 1e-4
    config.optim.warmup_steps = 0
    config.optim.clip_norm = 0.0
    config.train.num_steps = 500_000
    config.sample.variance = "learned_range"
    return config
