"""Changes to the section `sample` of a config."""

from collections.abc import Mapping
from typing import Any

from ddpm_jax import config as config_lib
from ddpm_jax.build.sampling import without_sampler_options
from ddpm_jax.config import Config, SampleConfig


def override(config: Config, sample: Mapping[str, Any] | None) -> Config:
    """Return the config with some fields of its section `sample` replaced and checked.

    If the sampler changes, the options of all samplers start from their defaults. The options of
    the run's sampler do not apply to another one.

    Args:
      config: the config of the run.
      sample: {field: value}; None or {} changes nothing.

    Raises:
      UserError: a field does not exist, or a value has the wrong type or range.
    """
    sample = dict(sample or {})
    sections = config_lib.to_dict(config)
    if sample.get("sampler", config.sample.sampler) != config.sample.sampler:
        sample = without_sampler_options(config.sample) | sample
    return config_lib.from_dict(sections | {"sample": sections["sample"] | sample})


def for_evaluation(config: Config) -> Config:
    """Return the config with the sampler, grid and steps that `config.eval` names.

    Quality is measured with this sampler. num_steps is at most T.
    """
    return override(
        config,
        {
            "sampler": config.eval.sampler,
            "num_steps": min(config.eval.num_steps, config.process.num_timesteps),
            "timesteps": config.eval.timesteps,
            "rho": SampleConfig.rho,
        },
    )
