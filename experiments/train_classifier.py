"""Train a classifier of noisy images, for classifier guidance.

    python -m experiments.train_classifier --config=experiments/digits_classifier.py

The same command, started again, resumes the run. The program prints the accuracy on held-out images
for each quarter of the timesteps.
"""

import os

from absl import flags
from ml_collections import config_flags

from ddpm_jax.config import from_dict
from ddpm_jax.training.classifier import train_classifier
from experiments import command

CONFIG = config_flags.DEFINE_config_file("config", None, "The classifier's config file.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Work directory of the run. Default: runs/<name of the config file>."
)
flags.mark_flag_as_required("config")


def main() -> int:
    name = os.path.splitext(os.path.basename(flags.FLAGS["config"].config_filename))[0]
    result = train_classifier(from_dict(CONFIG.value), WORKDIR.value or os.path.join("runs", name))
    return 0 if result.signal is None else 128 + result.signal


if __name__ == "__main__":
    command.run(main)
