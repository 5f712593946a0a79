"""A trained run: from its work directory to a sampling function and weights."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import jax

from ddpm_jax import build
from ddpm_jax import config as config_lib
from ddpm_jax.config import Config
from ddpm_jax.models import Model
from ddpm_jax.training.checkpoint import restore_ema
from ddpm_jax.training.workdir import WorkDir, open_for_reading, read_config, read_facts
from ddpm_jax.types import Params


def load(
    root: str | os.PathLike, step: int | None = None, *, sample: Mapping[str, Any] | None = None
) -> tuple[Callable, Params]:
    """Open a trained run: `sample, params = load("runs/digits")`.

    Args:
      root: the work directory of the training.
      step: which checkpoint; None is the newest whole one.
      sample: fields of `config.sample` in place of the run's own, e.g. {"guidance": 1.5}.

    Returns:
      sample: `sample(params, key, n, cond=None) -> [n, H, W, C]` float32 in [-1, 1], with the
        process and sampler of the run's config (`ddpm_jax.make_sample`). A class-conditional model
        takes cond={"label": [n] int32}; without it, it samples its null class, if not guided.
      params: the EMA weights.

    Raises:
      UserError: not a run, no readable checkpoint, or a field that is not the config's.
    """
    workdir = open_for_reading(root)
    config, facts = override(read_config(workdir), sample), read_facts(workdir)
    process = build.process(config.process)
    model = build.model(config.model, facts.image_shape, facts.num_classes)
    sample_fn = build.sample_fn(config, process, model, facts.image_shape)
    return sample_fn, _restore(workdir, model, step)


def override(config: Config, sample: Mapping[str, Any] | None) -> Config:
    """Return the config with some fields of its section `sample` replaced and checked."""
    sections = config_lib.to_dict(config)
    return config_lib.from_dict(sections | {"sample": sections["sample"] | dict(sample or {})})


def _restore(workdir: WorkDir, model: Model, step: int | None) -> Params:
    """Return the EMA weights of a run."""
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract
    )
    _, params = restore_ema(workdir.checkpoints, abstract, step)
    return params
