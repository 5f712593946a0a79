"""Your own images: a folder of any files that Pillow opens.

Command:  python -m experiments.train --config=experiments/folder.py --config.data.path=IMAGES
          --workdir=runs/mine
Size:     images are turned upright (EXIF), converted to RGB over white, resized so that the shorter
          side is `data.image_size` (64) and cropped to the central square; `data.crop=stretch`
          squeezes instead of cropping. `data.channels=1` makes them grey, 4 keeps transparency.
          Links that lead out of the folder are refused, unless `data.follow_links=True`.
Labels:   class sub-folders give labels; use them with --config.model.class_conditional=True.
Held out: 5 % of the images (`data.holdout`), for the held-out loss.
Hardware: one GPU; the number to expect depends on the images. Not measured (2026-11-23).

The network is the CIFAR-10 U-Net with one more level. On few images (some hundreds) it will learn
to copy them: stop when `held_out_loss` rises.
"""

import ml_collections

from experiments import base


def get_config() -> ml_collections.ConfigDict:
    """Return the config."""
    config = base.get_config()
    config.data.name = "folder"
    config.data.image_size = 64
    config.data.channels = 3
    config.model.channel_multipliers = (1, 2, 2, 2, 2)
    config.optim.learning_rate = 1e-4
    config.train.num_steps = 200_000
    config.train.batch_size = 64
    config.train.sample_every = 5000
    config.train.checkpoint_every = 1000
    config.eval.every = 1000
    return config
