"""The loss of the held-out images while training."""

import math
from collections.abc import Callable, Mapping

import jax
import numpy as np

from ddpm_jax import compiler, data
from ddpm_jax.config import Config
from ddpm_jax.training import devices
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

    `rows` are what else the network is told of each of them (`training.conditioning`).
    """
    if dataset.test is None or not config.eval.every:
        return None
    eval_step = jax.jit(parts.eval_step, compiler_options=compiler.options(compiler.NETWORK))
    size = config.train.batch_size
    count = min(config.eval.num_examples, len(dataset.test))

    def held_out(params: Params) -> float:
        losses = []
        for i in range(math.ceil(count / size)):
            indices = np.arange(i * size, (i + 1) * size) % count  # fills the last batch up
            images, labels = dataset.test.read(indices)
            batch = {"image": images, "label": labels}
            batch |= {name: value[indices] for name, value in rows.items()}
            losses.append(eval_step(params, jax.device_put(batch, devices.over_batch(mesh)), i))
        return float(np.concatenate(jax.device_get(losses))[:count].mean())

    return held_out
