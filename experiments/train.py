"""Train a model: python -m experiments.train --config=experiments/digits.py --workdir=runs/digits

The same command again resumes from the newest checkpoint in the work directory. Any field of the
config can be set on the command line: --config.train.num_steps=10. On several machines, start the
same command on each with --distributed (docs/scaling.md).
"""

from absl import flags

from ddpm_jax.config import from_dict
from ddpm_jax.training import distributed
from ddpm_jax.training.loop import train
from experiments import command, config_flag

CONFIG = config_flag.define("The experiment's config file.")
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


def connect() -> None:
    distributed.connect(DISTRIBUTED.value, HEARTBEAT.value)


def main() -> int:
    result = train(from_dict(CONFIG.value), WORKDIR.value or config_flag.default_workdir())
    return 0 if result.signal is None else 128 + result.signal


if __name__ == "__main__":
    command.run(main, before=connect)
