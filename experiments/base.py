"""The base of every config here: the library's defaults, as a ConfigDict."""

import pathlib

import ml_collections

from ddpm_jax import config
from ddpm_jax.errors import UserError, unknown


def get_config() -> ml_collections.ConfigDict:
    """Return the defaults of `ddpm_jax/config.py`: Ho et al.'s CIFAR-10 recipe.

    The config is locked: a field that does not exist is an error in the line that sets it.
    """
    return ml_collections.ConfigDict(config.to_dict(config.Config())).lock()


def check_variant(file: str, variant: str, allowed: tuple[str, ...]) -> None:
    """Check the variant of a config file.

    Args:
      file: `__file__` of the config file.
      variant: found behind the colon of --config=FILE.py:VARIANT.
      allowed: the variants that the file has; "" is the file without a variant.

    Raises:
      UserError: an unknown variant; the message lists the known ones.
    """
    if variant not in allowed:
        error = unknown(f"variant of {pathlib.Path(file).name}", variant, filter(None, allowed))
        raise UserError(f"{error}, or no variant" if "" in allowed else str(error))
