"""Metrics of the held-out images during training: their loss, or a classifier's accuracy."""

import math
from collections.abc import Callable, Mapping

import jax
import numpy as np

from ddpm_jax import data
from ddpm_jax.config import Config
from ddpm_jax.runtime import compiler, sharding
from ddpm_jax.training.parts import Parts
from ddpm_jax.types import Params


def make_held_out(
    config: Config,
    dataset: data.Dataset,
    rows: Mapping[str, np.ndarray],
    parts: Parts,
    mesh: jax.sharding.Mesh,
) -> Callable[[Params], dict[str, float]] | None:
    """Return params -> {name: mean over the held-out images}, or None if no images are held out.

    Args:
      config: the config of the run. Batches have `train.batch_size` images; the mean is over the
        first `eval.num_examples` images.
      dataset: the data of the run.
      rows: name -> [N, ...], other inputs of the network for each held-out image (`data.cond`).
      parts: the parts of the run.
      mesh: the devices, which share each batch.
    """
    test = dataset.test
    if test is None:
        return None
    size_of_network = compiler.of_network(jax.eval_shape(parts.init).params)
    eval_step = jax.jit(
        parts.eval_step,
        out_shardings=sharding.replicated(mesh),
        compiler_options=compiler.options(size_of_network),
    )
    over_batch = sharding.over_batch(mesh)
    size = config.train.batch_size
    count = min(config.eval.num_examples, len(test))

    def held_out(params: Params) -> dict[str, float]:
        found = []
        for i in range(math.ceil(count / size)):
            indices = np.arange(i * size, (i + 1) * size) % count  # fills the last batch
            images, labels = test.read(indices)
            batch = {"image": images, "label": labels}
            batch |= {name: value[indices] for name, value in rows.items()}
            shared = {
                name: jax.make_array_from_callback(value.shape, over_batch, value.__getitem__)
                for name, value in batch.items()
            }
            found.append(eval_step(params, shared, i))
        found = jax.device_get(found)
        return {
            name: float(np.concatenate([figures[name] for figures in found])[:count].mean())
            for name in found[0]
        }

    return held_out
