"""A training run from config to pictures: `train`, to be read from top to bottom.

`training.parts` builds what is trained; the loop is the same for every kind of network. The host
prepares batches a few calls ahead of the devices and reads metrics one interval late. It waits for
the current step only to save a checkpoint, draw a grid or evaluate held-out images. All randomness
is a function of (seed, step). So an interrupted run continues from its newest checkpoint as if it
had never stopped.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from ddpm_jax import data
from ddpm_jax.codec import Codec
from ddpm_jax.config import Config, from_dict, to_dict
from ddpm_jax.data import arrays, latents
from ddpm_jax.data.cond import grid_cond, pairs_of, rows_of, text_rows
from ddpm_jax.errors import SourceError
from ddpm_jax.models import count_parameters
from ddpm_jax.pretrained import text_encoder
from ddpm_jax.runs.checkpoint import Checkpoints
from ddpm_jax.runs.codec import known_scale, open_codec
from ddpm_jax.runs.metrics import MetricsWriter
from ddpm_jax.runs.metrics import read as read_metrics
from ddpm_jax.runs.state import TrainState
from ddpm_jax.runs.workdir import (
    DatasetFacts,
    WorkDir,
    check_same_run,
    locked,
    open_for_training,
)
from ddpm_jax.runtime import devices, distributed, sharding
from ddpm_jax.runtime.files import absolute
from ddpm_jax.runtime.interrupt import StopRequest
from ddpm_jax.runtime.output import surviving
from ddpm_jax.training.autoencoder import perceptual_features
from ddpm_jax.training.feed import Call, feed, plan_calls
from ddpm_jax.training.held_out import make_held_out
from ddpm_jax.training.in_flight import InFlight
from ddpm_jax.training.log import Log
from ddpm_jax.training.monitor import make_monitor
from ddpm_jax.training.parts import Parts, build_parts
from ddpm_jax.training.pictures import Pictures
from ddpm_jax.training.programs import Programs, give_back_memory, steps_per_call
from ddpm_jax.training.progress import ProgressLine, Throttled

SMALL_SET = 1000  # images; with fewer images a network tends to copy its training set


class Result(NamedTuple):
    """How a run ended.

    Attributes:
      state: the last state.
      signal: number of the signal that stopped the run before its end, or None.
      figures: name -> mean over the held-out images, with the EMA weights of the last step. The
        accuracies of a classifier and the errors of an autoencoder are always present. A denoiser's
        loss is present only if `eval.every` divides the last step.
    """

    state: TrainState
    signal: int | None
    figures: dict[str, float]


def train(
    config: Config | Mapping[str, Any],
    root: str | os.PathLike,
    images: Any = None,
    labels: Any = None,
) -> Result:
    """Train as the config says, in the work directory `root`; resume a run that is there.

        from experiments import digits  # in a clone of the repository

        ddpm_jax.train(digits.get_config(), "runs/digits")
        sample, params = ddpm_jax.load("runs/digits")

    SIGTERM, Ctrl-C and a closed terminal (SIGHUP) save the state and end the run early. The devices
    first finish the calls that they hold: a second of work, or two calls if one takes longer.
    `train` handles signals, so it must run in the main thread.

    Args:
      config: a `Config`, or a mapping of sections to mappings of fields, such as the
        `ml_collections.ConfigDict` of a file in `experiments/`.
      root: the work directory; it is created if it does not exist.
      images: uint8 [N, H, W, C] or [N, H, W], the images to train on; None uses `config.data`.
      labels: integers [N] of at least 0, the classes of `images`; None is no classes.

    Returns:
      The last state, the signal that stopped the run, and the held-out metrics.

    Raises:
      UserError: a config, data or directory that cannot work; too many non-finite updates; a
        checkpoint that could not be saved; another process that trains in `root`.
      SourceError: the data cannot be read any more; a run of one process saves its state first.
    """
    if not isinstance(config, Config):
        config = from_dict(config)
    given = None
    if images is not None or labels is not None:
        data_config, given = arrays.of_program(config.data, images, labels)
        config = dataclasses.replace(config, data=data_config)
    if config.data.codec:  # so that the run is opened from any directory
        place = dataclasses.replace(config.data, codec=str(absolute(config.data.codec)))
        config = dataclasses.replace(config, data=place)
    with contextlib.ExitStack() as at_end:
        return _train(config, root, given, at_end)


def _train(
    config: Config,
    root: str | os.PathLike,
    given: arrays.Arrays | None,
    at_end: contextlib.ExitStack,
) -> Result:
    """Run `train`. The caller closes `at_end` afterwards, also after an error."""
    leader = distributed.is_leader()
    console = Console(
        file=surviving(sys.stdout), soft_wrap=True, markup=False, highlight=False, quiet=not leader
    )
    console.print(devices.describe_devices())
    if warning := devices.cpu_fallback_warning():
        console.print(warning, style="bold red")

    # Everything that the config names. A mistake in the config shows here, before any write.
    distributed.check_same("config", str(to_dict(config)))
    mesh = devices.make_mesh(config)
    data.check_workdir(config.data, root)
    dataset = distributed.leader_first(lambda: data.open_dataset(config.data, given))
    distributed.check_same("data set", dataset.digest)
    codec = None
    if config.data.codec:
        codec = open_codec(config.data.codec, dataset.image_shape)
    sizes = dataset.image_shape, dataset.num_classes
    parts = build_parts(config, *sizes, mesh=mesh, codec=codec)
    if config.autoencoder.perceptual_weight:
        features = distributed.leader_first(lambda: perceptual_features(config.data, dataset))
        parts = build_parts(config, *sizes, mesh=mesh, features=features)
    encoder = text_encoder.NAME if config.data.text else ""
    facts = DatasetFacts(*sizes, dataset.class_names, encoder, dataset.digest)
    inputs, image = dataset, jax.ShapeDtypeStruct(dataset.image_shape, np.uint8)
    if codec is not None:
        facts = dataclasses.replace(facts, codec=codec.digest)
        distributed.leader_first(lambda: check_same_run(root, config, facts))
        encode = functools.partial(latents.encoded, config.data, dataset, codec)
        inputs, scale = distributed.leader_first(lambda: encode(Throttled(console)))
        image = latents.stored(codec)
        scale = known_scale(root) or scale
        codec = dataclasses.replace(codec, scale=scale)
        parts = build_parts(config, *sizes, mesh=mesh, codec=codec)
        mean, deviation = (tuple(map(float, part)) for part in scale)
        facts = dataclasses.replace(facts, latent_mean=mean, latent_deviation=deviation)
    train_rows, test_rows = rows_of(config, dataset)
    batches = data.Batches(
        inputs.train,
        config.train.batch_size,
        config.train.seed,
        config.data.flip,
        jax.process_index(),
        jax.process_count(),
        text_rows(config, dataset)[0],
        pairs_of(config, dataset)[0],
    )
    held_out = make_held_out(config, inputs, test_rows, parts, mesh)
    monitor = distributed.leader_first(lambda: make_monitor(config, dataset, train_rows, parts))

    # Compile first: the compiler's plan says whether a step fits in the memory of the devices.
    programs = Programs(config, parts, mesh, image, train_rows)
    last, fused = config.train.num_steps, steps_per_call(config)
    every = {
        "log": config.train.log_every,
        "held_out": config.eval.every if held_out else 0,
        "score": config.eval.samples_every,
        "sample": config.train.sample_every if parts.draw else 0,
        "checkpoint": config.train.checkpoint_every,
    }
    if leader:
        at_end.enter_context(locked(root))
    distributed.leader_first(lambda: check_same_run(root, config, facts))
    number = count_parameters(programs.state.params)
    _describe(console, config, dataset, parts, number, root, codec)
    if distributed.leader_first(WorkDir(absolute(root)).newest_step) < last:
        _, n = next(plan_calls(0, last, fused, list(every.values())))
        memory = programs.fitting(n)
        console.print(f"train step: compiled in {programs.seconds:.1f} s; memory {memory}")

    # The state: new, or from the newest complete checkpoint of this directory.
    workdir = distributed.leader_first(lambda: open_for_training(root, config, facts))
    checkpoints = Checkpoints(
        workdir.checkpoints,
        config.train.keep_last,
        config.train.keep_every,
        keep_best=monitor is not None,
    )
    state = checkpoints.restore_latest(programs.state)
    if state is None:
        state = programs.init()
    else:
        console.print(f"resumed at step {int(state.step)}")

    start = step = int(state.step)

    def calls() -> Iterator[Call]:  # not a list: a run may have millions of steps
        return plan_calls(start, last, fused, list(every.values()))

    for n in {n for _, n in itertools.islice(calls(), 10_000)}:
        programs.step(n)  # compiles, before the clock of the progress line starts
    writer = MetricsWriter(workdir, start, enabled=leader)
    pictures = None
    if parts.draw:
        cond = grid_cond(config, dataset, train_rows, test_rows)
        pictures = Pictures(config, parts, cond, workdir, writer, enabled=leader)
    progress = ProgressLine(console, start, last, config.train.batch_size)
    log = Log(writer, progress, parts.rate, config.optim.max_nonfinite, checkpoints.last_good)

    due, figures = set(), {}
    stop, in_flight = StopRequest(), InFlight()

    def hurry() -> bool:
        """Return whether to skip slow work, because a signal asks the run to stop."""
        return stop.signal is not None and step < last

    fed = feed(config.data, batches, mesh, calls(), hurry)
    try:
        if start > last:
            console.print(
                f"nothing to train: the run is at step {start}, beyond train.num_steps={last}"
            )
            return Result(state, None, {})
        with stop, progress:
            progress.restart_clock(start)
            for i, ((step, n), batch) in enumerate(zip(calls(), fed, strict=True)):
                state, metrics = programs.step(n)(state, batch)
                step += n or 1
                log.add(metrics)
                call = in_flight.add(metrics)
                stopping = stop.now(i)  # asked once: a signal can come at any line
                ending = stopping or step == last
                due = {name for name, n in every.items() if n and step % n == 0}
                if step == last and held_out and not parts.sampler_of:
                    due.add("held_out")
                if due or ending:
                    log.end_interval(step, call)
                if due - {"log"} or ending:
                    skipped = log.flush()
                    if held_out and "held_out" in due and not hurry():
                        figures = held_out(state.ema_params)
                        writer.scalars(step, figures)
                    if pictures and "sample" in due and not hurry():
                        pictures.draw(step, "raw", sharding.on_this_process(mesh, state.params))
                    if due & {"sample", "score"} and not hurry():
                        ema = sharding.on_this_process(mesh, state.ema_params)
                    if pictures and "sample" in due and not hurry():
                        pictures.draw(step, "ema", ema)
                    score = monitor(ema) if monitor and "score" in due and not hurry() else None
                    if score:
                        writer.scalars(step, score)
                    writer.flush()  # before the checkpoint: a run that resumes there has this row
                    stopping = stopping or hurry()  # a signal may have come during this work
                    ending = ending or stopping
                    good = due & {"checkpoint", "score"} and not skipped  # keep the last good one
                    if ending or good:
                        checkpoints.save(state, score=score, wait=ending)
                        give_back_memory()
                    progress.restart_clock(step)
                if stopping:
                    break

        # The end: a grid, or the held-out metrics of a network that makes no images.
        if step < last:
            console.print(f"stopped by signal {stop.signal} at step {step}; the state is saved")
            return Result(state, stop.signal, {})
        # A finished run that is started again has both already, and compiles nothing.
        if pictures:
            grid = pictures.path(step, "ema")
            if not (start == last and distributed.leader_first(grid.exists)):
                grid = pictures.draw(step, "ema", sharding.on_this_process(mesh, state.ema_params))
        if held_out and start == last and not parts.sampler_of:
            rows = [row for row in read_metrics(workdir.metrics) if row["step"] == last]
            figures = {name: row[name] for row in rows for name in parts.figures if name in row}
            figures = figures or held_out(state.ema_params)
        skipped = int(state.opt_state.total_notfinite)
        console.print(
            f"done: {last} steps"
            + (f", {skipped} of them skipped (not finite: NaN or infinity)" if skipped else "")
        )
        if pictures:
            console.print(f"{parts.drawn}: {grid or 'none, they are not finite'} (EMA weights)")
        if not parts.sampler_of:
            for name, value in figures.items():
                console.print(f"held-out {name.removeprefix('held_out_')}: {value:.3f}")
        console.print(f"metrics: {workdir.metrics} (TensorBoard: {workdir.tensorboard})")
        console.print(f"checkpoint: {workdir.checkpoints / str(step)}")
        if monitor and (best := checkpoints.best()):
            console.print(f"best checkpoint: {workdir.checkpoints / str(best[0])} ({best[1]})")
        return Result(state, None, figures if not parts.sampler_of or "held_out" in due else {})
    except SourceError as error:
        if step == start or jax.process_count() > 1:  # all must save together
            raise
        log.end_interval(step, call)
        log.flush()
        checkpoints.save(state, wait=True)
        raise SourceError(f"{error}; the state of step {step} is saved") from error
    finally:
        writer.close()
        checkpoints.close()


def _describe(
    console: Console,
    config: Config,
    dataset: data.Dataset,
    parts: Parts,
    num_parameters: int,
    root: str | os.PathLike,
    codec: Codec | None,
) -> None:
    """Print the data, the network with its number of parameters, and notes on the config."""
    held = f", {len(dataset.test):,} held out" if dataset.test else ""
    height, width, channels = dataset.image_shape
    line = (
        f"data: {config.data.name}, {len(dataset.train):,} training images{held}, "
        f"{height}x{width}x{channels}, {dataset.describe_classes()}"
    )
    # The name of a class may contain characters that this terminal cannot show.
    console.print(line.encode(console.encoding, "backslashreplace").decode(console.encoding))
    if parts.sampler_of and len(dataset.train) < SMALL_SET:
        watch = "watch held_out_loss in the metrics" if dataset.test else "no images are held out"
        console.print(
            f"note: on fewer than {SMALL_SET:,} images a network tends to copy its training set; "
            f"{watch}"
        )
    steps, warmup = config.train.num_steps, config.optim.warmup_steps
    if steps <= warmup:
        console.print(
            f"note: optim.warmup_steps={warmup} is not less than train.num_steps={steps}: the "
            f"learning rate only reaches {parts.rate(steps - 1):.1e} of "
            f"{config.optim.learning_rate:.1e}; take fewer warm-up steps"
        )
    if codec is not None:
        console.print(f"latents: {codec.latent_shape} of the autoencoder in {config.data.codec}")
    console.print(f"{parts.name}: {num_parameters:,} parameters; work directory: {absolute(root)}")
