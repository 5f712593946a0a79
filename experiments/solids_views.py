"""Novel views of rendered solids, 32x32, from one view.

Command:  python -m experiments.train --config=experiments/solids_views.py          one GPU
          python -m experiments.train --config=experiments/solids_views.py:small    two CPU cores
          python -m experiments.train --config=experiments/solids_views.py:regression
          --workdir=runs/solids_regression
          python -m experiments.views --workdir=runs/solids_views
Data:     8,000 solids of eight classes in 16 views each, rendered here at the first start; 800
          others are held out. `:small` and `:regression` have 800 and 80.
Paper:    Watson et al. 2022. The network is theirs, with fewer channels (`docs/novel_views.md`).
Measured: `:small`: PSNR 15.7 ± 0.3 dB of views of held-out objects (the given view copied: 16.2;
          `:regression`: 20.0), after 90 minutes of one shared core (2026-11-27, jax 0.10.2;
          docs/novel_views.md). The full config: nothing yet.

The network of `:small` sees patches of 2x2 pixels as channels, so it runs at 16x16, 8x8 and 4x4.
`:regression` is the baseline of `:small`: the same network, data and number of steps, but the chain
has one step from noise. So the network learns the mean of the views that fit, in one evaluation.
"""

import ml_collections

from experiments import base


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Return the config; `variant` is "", "small" or "regression"."""
    base.check_variant(__file__, variant, ("", "small", "regression"))
    config = base.get_config()
    config.data.name = "solids"
    config.data.flip = False
    config.process.schedule = "cosine"
    config.loss.kind = "v"
    config.model.name = "xunet"
    config.model.num_heads = 4
    config.model.dropout = 0.0
    config.optim.decay = "cosine"
    config.sample.sampler = "dpm_solver_pp_2m"
    config.sample.timesteps = "trailing"
    config.sample.num_steps = 25
    if variant == "":
        config.data.objects_per_class = 1000
        config.model.channels = 64
        config.model.channel_multipliers = (1, 2, 4)
        config.model.attention_resolutions = (8, 16)
        config.optim.learning_rate = 4e-4
        config.optim.warmup_steps = 1000
        config.optim.ema_decay = 0.999
        config.train.num_steps = 100_000
        return config
    config.model.patch_size = 2
    config.model.channels = 32
    config.model.channel_multipliers = (1, 2, 2)
    config.model.num_res_blocks = 2
    config.model.attention_resolutions = (4, 8)
    config.model.num_groups = 8
    config.loss.kind = "x_0"  # v spends half of its loss where the view cannot help
    config.optim.learning_rate = 2e-3
    config.optim.warmup_steps = 100
    config.optim.ema_decay = 0.995
    config.train.num_steps = 6250
    config.train.batch_size = 16
    config.train.num_samples = 16
    config.train.sample_every = 0
    config.train.checkpoint_every = 500
    config.train.keep_every = 0
    config.eval.every = 500
    config.eval.num_examples = 256
    if variant == "regression":
        config.process.schedule = "constant"
        config.process.num_timesteps = 1
        config.process.beta_T = 0.9999  # alpha_1 = 0.01: practically noise
        config.sample.sampler = "ancestral"
        config.sample.timesteps = "uniform"
        config.sample.num_steps = 0
    return config
