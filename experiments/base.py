"""The base of every config here: the library's defaults, as a ConfigDict."""

import ml_collections

from ddpm_jax import config


def get_config() -> ml_collections.ConfigDict:
    """Return the defaults of `ddpm_jax/config.py`: Ho et al.'s CIFAR-10 recipe.

    The config is locked: a field that does not exist is an error in the line that sets it.
    """
    return ml_collections.ConfigDict(config.to_dict(config.Config())).lock()
