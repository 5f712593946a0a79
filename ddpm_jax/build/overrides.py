"""A config with other fields for sampling than the run's own."""

from collections.abc import Mapping
from typing import Any

from ddpm_jax import config as config_lib
from ddpm_jax.build.sampling import without_sampler_options
from ddpm_jax.config import Config, SampleConfig


def override(config: Config, sample: Mapping[str, Any] | None) -> Config:
    """Return the config with some fields of its section `sample` replaced and checked.

    Another sampler begins with its own defaults, not with the options of the run's sampler.
    """
    sample = dict(sample or {})
    sections = config_lib.to_dict(config)
    if sample.get("sampler", config.sample.sampler) != config.sample.sampler:
        sample = without_sampler_options(config.sample) | sample
    return config_lib.from_dict(sections | {"sample": sections["sample"] | sample})


def for_evaluation(config: Config) -> Config:
    """Return the config with the sampler that `config.eval` names for judging quality."""
    return override(
        config,
        {
            "sampler": config.eval.sampler,
            "num_steps": min(config.eval.num_steps, config.process.num_timesteps),
            "timesteps": config.eval.timesteps,
            "rho": SampleConfig.rho,
        },
    )
