"""A training run from config to pictures: `train`, to be read from top to bottom.

The host only deals batches and looks at metrics an interval late; it never waits for the step in
progress, but to save a checkpoint or draw a grid. Everything random follows from (seed, step), so a
run that was interrupted goes on from its newest checkpoint as if it had never stopped.
"""

import logging
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from ddpm_jax import build, data
from ddpm_jax.api import sample_in_chunks
from ddpm_jax.config import Config
from ddpm_jax.data.ahead import map_ahead
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import grids
from ddpm_jax.models import count_parameters
from ddpm_jax.training import devices
from ddpm_jax.training.checkpoint import Checkpoints
from ddpm_jax.training.interrupt import StopRequest
from ddpm_jax.training.metrics import Interval, MetricsWriter
from ddpm_jax.training.optimizer import learning_rate, make_optimizer
from ddpm_jax.training.progress import ProgressLine
from ddpm_jax.training.state import TrainState, init_state
from ddpm_jax.training.step import fuse_steps, make_eval_step, make_train_step
from ddpm_jax.training.workdir import DatasetFacts, WorkDir, open_for_training, write_facts

SMALL_SET = 1000  # images; below this a network tends to copy its training set
logger = logging.getLogger(__name__)


class Result(NamedTuple):
    """How a run ended.

    Attributes:
      state: the last state.
      signal: the signal that stopped the run before its end, or None.
    """

    state: TrainState
    signal: int | None


def train(config: Config, root: str | os.PathLike) -> Result:
    """Train as the config says, in the work directory `root`; resume the run that is there.

    Raises:
      UserError: a config, data or directory that cannot work; too many non-finite updates.
    """
    console = Console(soft_wrap=True)
    say = lambda text: console.print(text, highlight=False, markup=False)  # noqa: E731
    say(devices.describe_devices())
    if warning := devices.cpu_fallback_warning():
        console.print(warning, style="bold red", highlight=False, markup=False)

    # What the config names; every mistake in it shows here, before anything is written.
    mesh = devices.make_mesh(config)
    process = build.process(config.process)
    dataset = data.open_dataset(config.data)
    model = build.model(config.model, dataset.image_shape, dataset.num_classes)
    optimizer = make_optimizer(config.optim, config.train.num_steps)
    rate = learning_rate(config.optim, config.train.num_steps)
    sample = build.sample_fn(config, process, model, dataset.image_shape)
    loss_fn = build.loss_fn(config.loss, process, model)
    batches = data.Batches(
        dataset.train,
        config.train.batch_size,
        config.train.seed,
        config.data.flip,
        jax.process_index(),
        jax.process_count(),
    )
    sample_t = build.time_sampler(config.loss, process.num_timesteps)
    init_key, train_key, eval_key, sample_key = jax.random.split(
        jax.random.key(config.train.seed), 4
    )
    on_cpu = jax.default_backend() == "cpu"
    train_step = make_train_step(
        loss_fn,
        sample_t,
        optimizer,
        num_timesteps=process.num_timesteps,
        loss_config=config.loss,
        optim_config=config.optim,
        conditional=config.model.class_conditional,
        accumulate=config.train.accumulate,
        unroll=on_cpu,
        key=train_key,
    )
    steps_per_call = config.train.steps_per_call or (1 if on_cpu else 10)
    single = jax.jit(train_step, donate_argnums=0)
    fused = jax.jit(fuse_steps(train_step, steps_per_call), donate_argnums=0)
    held_out = _make_held_out(config, dataset, loss_fn, sample_t, eval_key, mesh)

    # The state: new, or the newest whole checkpoint of this directory.
    workdir = open_for_training(root, config)
    facts = DatasetFacts(dataset.image_shape, dataset.num_classes, dataset.class_names)
    write_facts(workdir, facts)
    checkpoints = Checkpoints(workdir.checkpoints, config.train.keep_last, config.train.keep_every)
    replicated = devices.replicated(mesh)
    init = jax.jit(lambda key: init_state(model, optimizer, key), out_shardings=replicated)
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated),
        jax.eval_shape(init, init_key),
    )
    held = f", {len(dataset.test):,} held out" if dataset.test else ""
    height, width, channels = dataset.image_shape
    say(
        f"data: {config.data.name}, {len(dataset.train):,} training images{held}, "
        f"{height}x{width}x{channels}, {dataset.num_classes or 'no'} classes"
    )
    if len(dataset.train) < SMALL_SET:
        say(
            f"note: on fewer than {SMALL_SET:,} images a network tends to copy its training set; "
            "watch held_out_loss in the metrics"
        )
    say(f"model: {count_parameters(abstract.params):,} parameters; work directory: {workdir.root}")
    state = checkpoints.restore_latest(abstract)
    if state is None:
        state = init(init_key)
    else:
        say(f"resumed at step {int(state.step)}")

    step = start = int(state.step)
    last = config.train.num_steps
    writer = MetricsWriter(workdir, step)
    interval: Interval = Interval()
    pending: tuple[int, Interval] | None = None
    every = {
        "log": config.train.log_every,
        "eval": config.eval.every if held_out else 0,
        "sample": config.train.sample_every,
        "checkpoint": config.train.checkpoint_every,
    }
    due = lambda name, step: bool(every[name]) and step % every[name] == 0  # noqa: E731

    def write(progress: ProgressLine, late: tuple[int, Interval] | None) -> None:
        """Write the metrics of an interval that has ended; stop where updates are not finite."""
        if late is None:
            return
        at, metrics = late[0], late[1].fetch()
        speed = progress.update(at, metrics["loss"])
        metrics.update(learning_rate=float(rate(at - 1)), images_per_second=speed)
        writer.scalars(at, metrics)
        if metrics["skipped_in_a_row"] >= config.optim.max_nonfinite:
            raise UserError(
                f"stopped at step {at}: the last {metrics['skipped_in_a_row']} updates were not "
                "finite (NaN or infinity) and were skipped; the last good checkpoint is in "
                f"{workdir.checkpoints}; try a lower optim.learning_rate, optim.clip_norm=1.0 or "
                "model.dtype=float32"
            )

    calls = list(_plan_calls(start, last, steps_per_call, [*every.values()]))
    load = _make_load(batches, mesh)
    try:
        with (
            StopRequest() as stop,
            ProgressLine(console, start, last, config.train.batch_size) as progress,
        ):
            for (step, n), batch in zip(calls, map_ahead(load, calls, 1, 2), strict=True):
                state, metrics = (single if n is None else fused)(state, batch)
                step += n or 1
                interval.add(metrics)
                if step == start + (n or 1):
                    jax.block_until_ready(metrics)  # compiled: the clock starts here
                    progress.restart_clock(step)
                stopping = stop.signal is not None or step == last
                if due("log", step) or stopping or due("checkpoint", step):
                    write(progress, pending)
                    pending, interval = (step, interval), Interval()
                if stopping or any(due(name, step) for name in ("eval", "sample", "checkpoint")):
                    write(progress, pending)
                    pending = None
                    if due("eval", step):
                        writer.scalars(step, {"held_out_loss": held_out(state.ema_params)})
                    if due("sample", step):
                        for name, params in (("ema", state.ema_params), ("raw", state.params)):
                            _draw_grid(
                                config,
                                sample,
                                params,
                                sample_key,
                                facts,
                                workdir,
                                writer,
                                step,
                                name,
                            )
                    if due("checkpoint", step) or stopping:
                        checkpoints.save(state, wait=stopping)
                    progress.restart_clock(step)
                if stop.signal is not None:
                    say(f"stopped by signal {stop.signal} at step {step}; saved")
                    break
        if step == last:
            path = _draw_grid(
                config, sample, state.ema_params, sample_key, facts, workdir, writer, step, "ema"
            )
            say(f"done: {last} steps")
            say(f"samples (EMA weights): {path}")
            say(f"metrics: {workdir.metrics} (TensorBoard: {workdir.tensorboard})")
            say(f"checkpoint: {workdir.checkpoints / str(step)}")
    finally:
        writer.close()
        checkpoints.close()
    return Result(state, stop.signal)


def _plan_calls(
    start: int, stop: int, steps_per_call: int, every: list[int]
) -> Iterator[tuple[int, int | None]]:
    """Yield (step, n): n steps fused into one call, or None for one plain step.

    A fused call never passes over a step at which something is due.
    """
    step = start
    while step < stop:
        due = min([(step // e + 1) * e for e in every if e] + [stop])
        n = steps_per_call if steps_per_call > 1 and step + steps_per_call <= due else None
        yield step, n
        step += n or 1


def _make_load(batches: data.Batches, mesh: jax.sharding.Mesh) -> Callable[[tuple], Any]:
    """Return (step, n) -> the batch on the devices, or n of them stacked: [n, B, ...]."""

    def load(call: tuple[int, int | None]) -> dict[str, jax.Array]:
        step, n = call
        if n is None:
            local, sharding = batches.batch(step), devices.over_batch(mesh)
        else:
            parts = [batches.batch(step + i) for i in range(n)]
            local = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
            sharding = devices.over_batch(mesh, axis=1)
        return {
            name: jax.make_array_from_process_local_data(sharding, value)
            for name, value in local.items()
        }

    return load


def _make_held_out(config, dataset, loss_fn, sample_t, key, mesh):
    """Return params -> mean loss of the held-out images, or None where there are none."""
    if dataset.test is None or not config.eval.every:
        return None
    size, count = config.train.batch_size, min(config.eval.num_examples, len(dataset.test))
    eval_step = jax.jit(
        make_eval_step(loss_fn, sample_t, conditional=config.model.class_conditional, key=key)
    )

    def held_out(params) -> float:
        losses = []
        for i in range(math.ceil(count / size)):
            indices = np.arange(i * size, (i + 1) * size) % count  # the last batch is filled up
            images, labels = dataset.test.read(indices)
            batch = jax.device_put({"image": images, "label": labels}, devices.over_batch(mesh))
            losses.append(eval_step(params, batch, i))
        return float(np.concatenate(jax.device_get(losses))[:count].mean())

    return held_out


def _draw_grid(
    config: Config,
    sample: Callable,
    params: Any,
    key: jax.Array,
    facts: DatasetFacts,
    workdir: WorkDir,
    writer: MetricsWriter,
    step: int,
    name: str,
) -> pathlib.Path:
    """Draw the samples of one set of weights as a PNG and in TensorBoard; return the path."""
    start = time.perf_counter()
    n = config.train.num_samples
    cond = None
    if config.model.class_conditional:
        cond = {"label": np.arange(n, dtype=np.int32) % facts.num_classes}
    chunks = sample_in_chunks(sample, params, key, n, config.sample.chunk_size, cond)
    images = grids.to_uint8(np.concatenate(list(chunks)))
    grid = grids.make_grid(images, side=32)
    path = workdir.samples / f"step_{step:07d}_{name}.png"
    grids.save_png(path, grid)
    writer.image(step, f"samples_{name}", grid)
    logger.info("%d samples of %s weights in %.1f s", n, name, time.perf_counter() - start)
    return path
