"""A trained run: from its work directory to a sampling function and weights."""

import os
from collections.abc import Callable

import jax

from ddpm_jax import build
from ddpm_jax.training.checkpoint import restore_ema
from ddpm_jax.training.workdir import open_for_reading, read_config, read_facts
from ddpm_jax.types import Params


def load(root: str | os.PathLike, step: int | None = None) -> tuple[Callable, Params]:
    """Open a trained run: `sample, params = load("runs/digits")`.

    Args:
      root: the work directory of the training.
      step: which checkpoint; None is the newest whole one.

    Returns:
      sample: `sample(params, key, n, cond=None) -> [n, H, W, C]` float32 in [-1, 1], with the
        process and sampler of the run's config (`ddpm_jax.make_sample`). A class-conditional model
        takes cond={"label": [n] int32}; without it, it samples its null class.
      params: the EMA weights.

    Raises:
      UserError: not a run, or no readable checkpoint.
    """
    workdir = open_for_reading(root)
    config, facts = read_config(workdir), read_facts(workdir)
    process = build.process(config.process)
    model = build.model(config.model, facts.image_shape, facts.num_classes)
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract
    )
    _, params = restore_ema(workdir.checkpoints, abstract, step)
    return build.sample_fn(config, process, model, facts.image_shape), params
