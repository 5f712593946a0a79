"""The small configs of the tests: networks that compile in a second or two, on the digits."""

from typing import Any

from ddpm_jax import config as config_lib
from ddpm_jax.config import Config

SMALL = {
    "data": {"name": "digits", "flip": False},
    "process": {"schedule": "cosine", "num_timesteps": 8},
    "model": {  # one level: quick to compile too
        "channels": 8,
        "channel_multipliers": (1,),
        "attention_resolutions": (),
        "num_groups": 4,
        "num_res_blocks": 1,
        "dropout": 0.0,
    },
    "optim": {"warmup_steps": 2, "learning_rate": 1e-3, "max_nonfinite": 3},
    "train": {"num_steps": 4, "batch_size": 16, "num_samples": 2, "log_every": 2},
    "eval": {"every": 2},
}


def small(**changes) -> dict[str, dict[str, Any]]:
    """The sections of the small config, with `section__field=value` changes.

    A section that is given as a whole, `section={...}`, replaces the small one.
    """
    merged = {section: dict(fields) for section, fields in SMALL.items()}
    for name, value in changes.items():
        section, _, field = name.partition("__")
        if field:
            merged.setdefault(section, {})[field] = value
        else:
            merged[section] = dict(value)
    return merged


def make_config(**changes) -> Config:
    """The small config with `section__field=value` changes."""
    return config_lib.from_dict(small(**changes))


# The same for a command line with --config=experiments/digits.py
FLAGS = {
    "process.num_timesteps": 4,
    "process.schedule": "cosine",
    "model.channels": 8,
    "model.channel_multipliers": "(1,)",
    "model.attention_resolutions": "()",
    "model.num_res_blocks": 1,
    "train.batch_size": 16,
    "train.num_samples": 2,
    "optim.warmup_steps": 1,
    "optim.decay": "constant",
    "eval.every": 0,
}
FLAGS = [f"--config.{key}={value}" for key, value in FLAGS.items()]
