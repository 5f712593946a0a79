"""Novel views of ShapeNet cars, 128x128, from one view (3DiM).

Command:  python -m experiments.train --config=experiments/three_dim.py --config.data.path=CARS
          python -m experiments.train --config=experiments/three_dim.py:64 --config.data.path=CARS
          python -m experiments.views --workdir=runs/three_dim
Data:     ShapeNet cars or chairs as rendered for Scene Representation Networks (Sitzmann et al.
          2019). CARS is a directory with cars_train and cars_test, unpacked from their archives.
Paper:    Watson et al. 2022, "Novel View Synthesis with Diffusion Models": 471M parameters, 256
          sampling steps. Batch, learning rate, warm-up, Adam's b2 and EMA are those of the paper's
          appendix, as a public reimplementation quotes it.
Hardware: eight accelerators: the activations are recomputed, and the state is sharded over them.
Measured: nothing yet.
"""

import ml_collections

from experiments import base


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Return the config; `variant` is "" (128x128) or "64"."""
    base.check_variant(__file__, variant, ("", "64"))
    config = base.get_config()
    config.data.name = "srn"
    config.data.image_size = 64 if variant == "64" else 128
    config.data.channels = 3
    config.data.flip = False
    config.process.schedule = "cosine"
    config.model.name = "xunet"
    config.model.channels = 256
    config.model.channel_multipliers = (1, 2, 2, 4)
    config.model.num_res_blocks = 3
    config.model.attention_resolutions = (8, 16, 32) if variant == "64" else (16, 32)
    config.model.num_heads = 4
    config.model.dropout = 0.1
    config.model.dtype = "bfloat16"
    config.model.remat = True
    config.optim.learning_rate = 1e-4
    config.optim.b2 = 0.99
    config.optim.warmup_steps = 78_125  # 10 million examples
    config.optim.ema_decay = 0.99982  # half-life of 500,000 examples
    config.train.batch_size = 128
    config.train.num_samples = 16
    config.train.steps_per_call = 1
    config.sample.num_steps = 256
    config.sample.chunk_size = 16
    config.mesh.fsdp = 8
    return config
