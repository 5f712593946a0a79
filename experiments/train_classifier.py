"""Train a classifier of noisy images, for classifier guidance:

python -m experiments.train_classifier --config=experiments/digits_classifier.py

The same command again resumes. At the end it prints the accuracy on held-out images by quarter of
t. `experiments.train` does the same with a classifier's config, on several machines too.
"""

import os

from absl import flags
from ml_collections import config_flags

from ddpm_jax.config import from_dict
from ddpm_jax.errors import UserError
from ddpm_jax.training.loop import train
from experiments import command

CONFIG = config_flags.DEFINE_config_file("config", None, "The classifier's config file.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lies; runs/<config's name> if unset.")
flags.mark_flag_as_required("config")


def main() -> int:
    name = os.path.splitext(os.path.basename(flags.FLAGS["config"].config_filename))[0]
    config = from_dict(CONFIG.value)
    if config.model.name == "unet":
        raise UserError(
            "model.name is 'unet', but a classifier is wanted here (denoisers: experiments.train)"
        )
    result = train(config, WORKDIR.value or os.path.join("runs", name))
    return 0 if result.signal is None else 128 + result.signal


if __name__ == "__main__":
    command.run(main)
