"""Your own images: a folder of any files that Pillow opens.

Command:  python -m experiments.train --config=experiments/folder.py --config.data.path=IMAGES
          --workdir=runs/mine                                                  one GPU
          python -m experiments.train --config=experiments/folder.py:small --config.data.path=IMAGES
          --workdir=runs/mine_small                                            two CPU cores
Size:     Each image is turned upright (EXIF) and converted to RGB over white. It is resized so that
          its shorter side is `data.image_size` (64; 32 in `:small`), and cropped to the central
          square. `data.crop=stretch` squeezes the image instead of cropping it.
          `data.channels=1` makes images grey; `data.channels=4` keeps transparency.
Labels:   Sub-folders are classes. Use them with --config.model.class_conditional=True.
Held out: 5 % of the images (`data.holdout`), for the held-out loss.
Links:    Links to files outside the folder are refused, unless `data.follow_links=True`.
Measured: `:small`: 10 minutes with compilation and 64 samples, on two cores on which a few tests
          also ran; 239 images/s; loss 0.141, held-out loss 0.134. The images were 1,764 emoji of
          64x64 pixels: faces, flags and suits can be recognised among blots (2026-11-26, jax
          0.10.2). The full config: nothing yet. The quality depends on the images.

The network of the full config is the CIFAR-10 U-Net with one more level: 45.7M parameters. It will
learn to copy a set of only a few hundred images: stop when `held_out_loss` rises.

The network of `:small` has 1.0M parameters and sees patches of 2x2 pixels as channels. The recipe
is that of `fashion_mnist.py:small`, and images are drawn in 100 steps. A network on pixels at a
third of the learning rate took 1,200 steps in 8 minutes; all its samples were blots.
"""

import ml_collections

from experiments import base


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Return the config; `variant` is "" or "small"."""
    base.check_variant(__file__, variant, ("", "small"))
    config = base.get_config()
    config.data.name = "folder"
    config.data.channels = 3
    if variant == "":
        config.data.image_size = 64
        config.model.channel_multipliers = (1, 2, 2, 2, 2)
        config.optim.learning_rate = 1e-4
        config.train.num_steps = 200_000
        config.train.batch_size = 64
        config.train.sample_every = 5000
        config.train.checkpoint_every = 1000
        config.eval.every = 1000
    else:
        config.data.image_size = 32
        config.process.schedule = "cosine"
        config.loss.kind = "v"
        config.model.patch_size = 2
        config.model.channels = 32
        config.model.channel_multipliers = (1, 2)
        config.model.attention_resolutions = (8,)
        config.model.num_groups = 8
        config.model.dropout = 0.0
        config.optim.learning_rate = 3e-3
        config.optim.warmup_steps = 100
        config.optim.decay = "cosine"
        config.optim.ema_decay = 0.995
        config.train.num_steps = 4000
        config.train.batch_size = 32
        config.train.log_every = 50
        config.train.sample_every = 0
        config.train.checkpoint_every = 500
        config.train.keep_every = 0
        config.eval.every = 500
        config.sample.variance = "fixed_small"
        config.sample.num_steps = 100
    return config
