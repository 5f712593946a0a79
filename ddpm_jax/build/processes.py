"""The forward process of a config.

A new schedule needs a function in `schedules.py` and a row of `SCHEDULES`.
"""

import dataclasses

from ddpm_jax import schedules
from ddpm_jax.config import ProcessConfig
from ddpm_jax.config_checks import Choice, choose
from ddpm_jax.errors import UserError
from ddpm_jax.process import GaussianProcess, make_process

LAST, BOTH = ("beta_T", "zero_terminal_snr"), ("beta_1", "beta_T", "zero_terminal_snr")
SCHEDULES = {  # functions of `config.process` that return the betas
    "linear": Choice(
        lambda c: schedules.linear(c.num_timesteps, c.beta_1 or None, c.beta_T or None), BOTH
    ),
    "quadratic": Choice(
        lambda c: schedules.quadratic(c.num_timesteps, c.beta_1 or None, c.beta_T or None), BOTH
    ),
    "sigmoid": Choice(
        lambda c: schedules.sigmoid(c.num_timesteps, c.beta_1 or None, c.beta_T or None), BOTH
    ),
    "constant": Choice(lambda c: schedules.constant(c.num_timesteps, c.beta_T or None), LAST),
    "cosine": Choice(lambda c: schedules.cosine(c.num_timesteps), ("zero_terminal_snr",)),
}


def process(config: ProcessConfig) -> GaussianProcess:
    """Build the forward process of `config.process` with a fixed schedule.

    Raises:
      UserError: the schedule is learned or unknown, or an option is out of its range or not used by
        this schedule.
    """
    betas = check(config)(config)
    return make_process(schedules.zero_terminal_snr(betas) if config.zero_terminal_snr else betas)


def check(config: ProcessConfig):
    """Return the function config -> betas of the schedule.

    Raises:
      UserError: the schedule is unknown, or an option is set that this schedule does not use.
    """
    learned = Choice(_only_trained, ("gamma_min", "gamma_max"))
    return choose(SCHEDULES | {"learned": learned}, config, "schedule")


def with_schedule(config: ProcessConfig, schedule: str) -> ProcessConfig:
    """Return the config with another schedule; options that it does not use become defaults."""
    used = {"num_timesteps", *SCHEDULES[schedule].options}
    kept = {name: value for name, value in dataclasses.asdict(config).items() if name in used}
    return ProcessConfig(schedule=schedule, **kept)


def _only_trained(config: ProcessConfig):
    raise UserError(
        "process.schedule is learned, so its chain is known only after training (ddpm_jax.load); "
        f"here set process.schedule to one of {', '.join(SCHEDULES)}"
    )
