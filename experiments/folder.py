"""Your own images: a folder of any files that Pillow opens.

Command:  python -m experiments.train --config=experiments/folder.py --config.data.path=IMAGES
          --workdir=runs/mine
Size:     Each image is turned upright (EXIF) and converted to RGB over white. It is resized so that
          its shorter side is `data.image_size` (64), and cropped to the central square.
          `data.crop=stretch` squeezes the image instead of cropping it. `data.channels=1` makes
          images grey; `data.channels=4` keeps transparency.
Labels:   Sub-folders are classes. Use them with --config.model.class_conditional=True.
Held out: 5 % of the images (`data.holdout`), for the held-out loss.
Links:    Links to files outside the folder are refused, unless `data.follow_links=True`.
Hardware: one GPU. The quality to expect depends on the images. Not measured (2026-11-23).

The network is the CIFAR-10 U-Net with one more level. It will learn to copy a set of only a few
hundred images: stop when `held_out_loss` rises.
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
