"""Train a model.

    python -m experiments.train --config=experiments/digits.py --workdir=runs/digits

The same command, started again, resumes from the newest checkpoint in the work directory. You can
set any field of the config on the command line: --config.train.num_steps=10. To use several
machines, start the same command on each with --distributed (docs/scaling.md).
"""

from absl import flags

from ddpm_jax.config import from_dict
from ddpm_jax.runtime import distributed
from ddpm_jax.training.loop import train
from experiments import command, config_flag

CONFIG = config_flag.define("The experiment's config file.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Work directory of the run. Default: runs/<name of the config file>."
)
DISTRIBUTED = flags.DEFINE_string(
    "distributed",
    "",
    "For a run of several processes: how they find each other. auto: ask the platform (Cloud TPU, "
    "Slurm, Open MPI, Kubernetes). HOST:PORT,COUNT,INDEX: the address of process 0, the number of "
    "processes, and the index of this process. Default: one process.",
)
HEARTBEAT = flags.DEFINE_integer(
    "heartbeat",
    100,
    "For a run of several processes: seconds without a sign of one process until the others end.",
    lower_bound=1,
)


def connect() -> None:
    distributed.connect(DISTRIBUTED.value, HEARTBEAT.value)


def main() -> int:
    result = train(from_dict(CONFIG.value), WORKDIR.value or config_flag.default_workdir())
    return 0 if result.signal is None else 128 + result.signal


if __name__ == "__main__":
    command.run(main, before=connect)
