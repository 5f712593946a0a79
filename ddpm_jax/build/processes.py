"""The forward process that a config asks for."""

from ddpm_jax import schedules
from ddpm_jax.config import ProcessConfig
from ddpm_jax.errors import UserError, look_up
from ddpm_jax.process import GaussianProcess, make_process

SCHEDULES = {
    "linear": lambda c: schedules.linear(c.num_timesteps, c.beta_1 or None, c.beta_T or None),
    "quadratic": lambda c: schedules.quadratic(c.num_timesteps, c.beta_1 or None, c.beta_T or None),
    "sigmoid": lambda c: schedules.sigmoid(c.num_timesteps, c.beta_1 or None, c.beta_T or None),
    "constant": lambda c: schedules.constant(c.num_timesteps, c.beta_T or None),
    "cosine": lambda c: schedules.cosine(c.num_timesteps),
}


def process(config: ProcessConfig) -> GaussianProcess:
    """Build the forward process of `config.process`, of a schedule that is not learned."""
    if config.schedule == "learned":
        raise UserError(
            "process.schedule is learned, so its chain is known only of a trained run "
            f"(ddpm_jax.load); here, take one of {', '.join(SCHEDULES)}"
        )
    for name in ("gamma_min", "gamma_max"):
        if getattr(config, name) != getattr(ProcessConfig, name):
            raise UserError(
                f"process.{name} is {getattr(config, name)}, but the {config.schedule} schedule "
                f"does not use it (learned: yes); leave it at {getattr(ProcessConfig, name)}"
            )
    betas = look_up(SCHEDULES, "process.schedule", config.schedule)(config)
    for name in {"cosine": ["beta_1", "beta_T"], "constant": ["beta_1"]}.get(config.schedule, []):
        if getattr(config, name):
            raise UserError(
                f"process.{name} is {getattr(config, name)}, but the {config.schedule} schedule "
                "does not use it; leave it at 0"
            )
    return make_process(schedules.zero_terminal_snr(betas) if config.zero_terminal_snr else betas)
