"""Train a model: python -m experiments.train --config=experiments/digits.py --workdir=runs/digits

The same command again resumes from the newest checkpoint in the work directory. Any field of the
config can be set on the command line: --config.train.num_steps=10. On several machines, start the
same command on each with --distributed (docs/scaling.md).
"""

import os

from absl import flags
from ml_collections import config_flags

from ddpm_jax.config import from_dict
from ddpm_jax.runtime import distributed
from ddpm_jax.training.loop import train
from experiments import command

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's config file.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lies; runs/<config's name> if unset.")
DISTRIBUTED = flags.DEFINE_string(
    "distributed",
    "",
    "Several processes, one run: auto (Cloud TPU, Slurm, Open MPI, Kubernetes) or HOST:PORT,COUNT,"
    "INDEX: where process 0 listens, how many there are, and which this is.",
)
HEARTBEAT = flags.DEFINE_integer(
    "heartbeat", 100, "Seconds of silence of one process after which the others end.", lower_bound=1
)
flags.mark_flag_as_required("config")


def connect() -> None:
    distributed.connect(DISTRIBUTED.value, HEARTBEAT.value)


def main() -> int:
    name = os.path.splitext(os.path.basename(flags.FLAGS["config"].config_filename))[0]
    result = train(from_dict(CONFIG.value), WORKDIR.value or os.path.join("runs", name))
    return 0 if result.signal is None else 128 + result.signal


if __name__ == "__main__":
    command.run(main, before=connect)
