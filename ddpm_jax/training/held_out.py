"""The loss of the held-out images while training."""

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
) -> Callable[[Params], float] | None:
    """Return params -> mean loss of the held-out images, or None where there are none.

    `rows` are what else the network is told of each of them (`data.cond`).
    """
    if dataset.test is None or not config.eval.every:
        return None
    eval_step = jax.jit(
        parts.eval_step,
        out_shardings=sharding.replicated(mesh),
        compiler_options=compiler.options(compiler.NETWORK),
    )
    over_batch = sharding.over_batch(mesh)
    size = config.train.batch_size
    count = min(config.eval.num_examples, len(dataset.test))

    def held_out(params: Params) -> float:
        losses = []
        for i in range(math.ceil(count / size)):
            indices = np.arange(i * size, (i + 1) * size) % count  # fills the last batch up
            images, labels = dataset.test.read(indices)
            batch = {"image": images, "label": labels}
            batch |= {name: value[indices] for name, value in rows.items()}
            shared = {
                name: jax.make_array_from_callback(value.shape, over_batch, value.__getitem__)
                for name, value in batch.items()
            }
            losses.append(eval_step(params, shared, i))
        return float(np.concatenate(jax.device_get(losses))[:count].mean())

    return held_out
