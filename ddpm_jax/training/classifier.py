"""A classifier's training run, for classifier guidance: the train step of a denoiser, another loss.

The same work directory and checkpoints as a denoiser's run, so it resumes the same way: batches,
times and noise follow from (seed, step).
"""

import contextlib
import dataclasses
import functools
import math
import os
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from ddpm_jax import build, data
from ddpm_jax.build import loss as objectives
from ddpm_jax.config import Config
from ddpm_jax.errors import SourceError, UserError
from ddpm_jax.models import count_parameters
from ddpm_jax.noisy_classifier import is_right, label_loss
from ddpm_jax.pixels import to_x_0
from ddpm_jax.runs.checkpoint import Checkpoints
from ddpm_jax.runs.metrics import Interval, MetricsWriter
from ddpm_jax.runs.workdir import DatasetFacts, locked, open_for_training, write_facts
from ddpm_jax.runtime import compiler, devices, sharding
from ddpm_jax.runtime.interrupt import StopRequest
from ddpm_jax.training.feed import feed, plan_calls
from ddpm_jax.training.optimizer import make_optimizer
from ddpm_jax.training.progress import ProgressLine
from ddpm_jax.training.step import QUARTILES, init_state, make_train_step
from ddpm_jax.types import Array, Params, PRNGKey


class Result(NamedTuple):
    """How a run ended.

    Attributes:
      accuracy: of the averaged weights on held-out images by quarter of {1..T},
        `accuracy_t_quartile_1` .. `_4`; empty where nothing is held out.
      signal: the signal that stopped the run before its end, its state saved, or None.
    """

    accuracy: dict[str, float]
    signal: int | None


def train_classifier(config: Config, root: str | os.PathLike) -> Result:
    """Train the classifier of `config.model` in the work directory `root`; resume what is there.

    Raises:
      UserError: a config, data or directory that cannot work; another process that trains there.
      SourceError: data that stopped coming; the state is saved.
    """
    with contextlib.ExitStack() as at_end:
        return _train(config, root, at_end)


def _train(config: Config, root: str | os.PathLike, at_end: contextlib.ExitStack) -> Result:
    """Do `train_classifier`; `at_end` is closed after it, however it ends."""
    console = Console(soft_wrap=True, markup=False, highlight=False)
    console.print(devices.describe_devices())
    mesh = devices.make_mesh(config)
    dataset = data.open_dataset(config.data)
    process = build.process(config.process)
    T = process.num_timesteps
    model = build.classifier(config.model, dataset.image_shape, dataset.num_classes)
    optimizer = make_optimizer(config.optim, config.train.num_steps)
    time_sampler = objectives.time_sampler(config.loss, T)
    init_key, train_key, eval_key = jax.random.split(jax.random.key(config.train.seed), 3)

    def loss_fn(params, x_0, t, eps, cond, train, key):
        return label_loss(
            process, model.apply, params, x_0, t, eps, cond["label"], train=train, key=key
        )

    train_step = make_train_step(
        loss_fn,
        time_sampler,
        optimizer,
        num_timesteps=T,
        loss_config=dataclasses.replace(config.loss, p_uncond=0.0),  # no label is hidden
        optim_config=config.optim,
        cond_fn=lambda batch: {"label": batch["label"]},
        accumulate=config.train.accumulate,
        key=train_key,
    )
    for_network = compiler.options(compiler.NETWORK)
    step_fn = jax.jit(train_step, donate_argnums=0, compiler_options=for_network)
    batches = data.Batches(
        dataset.train, config.train.batch_size, config.train.seed, config.data.flip
    )

    at_end.enter_context(locked(root))
    workdir = open_for_training(root, config)
    write_facts(
        workdir, DatasetFacts(dataset.image_shape, dataset.num_classes, dataset.class_names)
    )
    checkpoints = Checkpoints(workdir.checkpoints, config.train.keep_last, config.train.keep_every)
    replicated = sharding.replicated(mesh)
    init = jax.jit(
        lambda: init_state(model, optimizer, init_key, time_sampler),
        out_shardings=replicated,
        compiler_options=compiler.options(compiler.ONCE),
    )
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated),
        jax.eval_shape(init),
    )
    console.print(f"classifier: {count_parameters(abstract.params):,} parameters; {workdir.root}")
    state = checkpoints.restore_latest(abstract)
    if state is None:
        state = init()
    else:
        console.print(f"resumed at step {int(state.step)}")

    start = step = int(state.step)
    last = config.train.num_steps
    writer = MetricsWriter(workdir, step)
    progress = ProgressLine(console, step, last, config.train.batch_size)
    interval = Interval()
    calls = list(plan_calls(start, last, 1, []))
    try:
        with StopRequest() as stop, progress:
            for batch in feed(config.data, batches, mesh, calls, lambda: stop.signal is not None):
                state, metrics = step_fn(state, batch)
                step += 1
                interval.add(metrics)
                ending = stop.signal is not None or step == last
                if ending or step % config.train.log_every == 0:
                    row, interval = interval.fetch(), Interval()
                    _check_finite(row, step, config)
                    progress.update(step, row["loss"])
                    writer.scalars(step, row)
                every = config.train.checkpoint_every
                if ending or (every and step % every == 0):
                    checkpoints.save(state, wait=ending)
                if ending:
                    break
        accuracy = {}
        if step < last:
            console.print(f"stopped by signal {stop.signal} at step {step}; the state is saved")
        elif dataset.test is not None:
            right = functools.partial(is_right, process, model.apply)
            accuracy = _accuracy(right, dataset, state.ema_params, config, T, eval_key)
            writer.scalars(step, accuracy)
            for name, value in accuracy.items():
                console.print(f"held-out {name}: {value:.3f}")
    except SourceError as error:
        if step == start:
            raise
        if interval:
            writer.scalars(step, interval.fetch())
        checkpoints.save(state, wait=True)
        raise SourceError(f"{error}; the state of step {step} is saved") from error
    finally:
        writer.close()
        checkpoints.close()
    return Result(accuracy, stop.signal if step < last else None)


def _check_finite(row: dict[str, float], step: int, config: Config) -> None:
    """Stop the run where updates are not finite."""
    if row["skipped_in_a_row"] >= config.optim.max_nonfinite:
        raise UserError(
            f"stopped at step {step}: the last {row['skipped_in_a_row']} updates were not finite; "
            "try a lower optim.learning_rate, or model.dtype=float32"
        )


def _accuracy(
    right: Callable[..., Array],
    dataset: data.Dataset,
    params: Params,
    config: Config,
    T: int,
    key: PRNGKey,
) -> dict[str, float]:
    """Return the accuracy on the held-out images by quarter of {1..T}."""
    size = min(config.train.batch_size, len(dataset.test))
    count = min(config.eval.num_examples, len(dataset.test))

    @functools.partial(jax.jit, compiler_options=compiler.options(compiler.NETWORK))
    def hits(params: Params, image: Array, label: Array, i: Array, quarter: Array) -> Array:
        batch_key = jax.random.fold_in(jax.random.fold_in(key, quarter), i)
        t_key, eps_key = jax.random.split(batch_key)
        x_0 = to_x_0(image)
        u = jax.random.uniform(t_key, label.shape)
        t = 1 + ((quarter + u) * (T / QUARTILES)).astype(jnp.int32)
        return right(params, x_0, jnp.minimum(t, T), jax.random.normal(eps_key, x_0.shape), label)

    result = {}
    for quarter in range(QUARTILES):
        found = []
        for i in range(math.ceil(count / size)):
            images, labels = dataset.test.read(np.arange(i * size, (i + 1) * size) % count)
            found.append(np.asarray(hits(params, images, labels, i, quarter)))
        result[f"accuracy_t_quartile_{quarter + 1}"] = float(np.concatenate(found)[:count].mean())
    return result
