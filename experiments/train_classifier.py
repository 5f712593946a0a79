"""Train a classifier of noisy images, for classifier guidance.

    python -m experiments.train_classifier --config=experiments/digits_classifier.py

The same command, started again, resumes the run. The program prints the accuracy on held-out images
for each quarter of the timesteps. `experiments.train` trains a classifier's config too, also on
several machines.
"""

from absl import flags

from ddpm_jax.build.network import check_name
from ddpm_jax.config import from_dict
from ddpm_jax.training.loop import train
from experiments import command, config_flag

CONFIG = config_flag.define("The classifier's config file.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Work directory of the run. Default: runs/<name of the config file>."
)


def main() -> int:
    config = from_dict(CONFIG.value)
    check_name(config.model, "classifier")
    result = train(config, WORKDIR.value or config_flag.default_workdir())
    return 0 if result.signal is None else 128 + result.signal


if __name__ == "__main__":
    command.run(main)
