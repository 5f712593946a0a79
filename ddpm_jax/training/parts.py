"""The parts of a run, built from its config: everything that differs between kinds of network.

`training.loop` runs any `Parts`. `config.model.name` chooses the function that builds the parts, in
the table PARTS. To add a kind of network, write a function that returns `Parts`, and add one row to
the table.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from ddpm_jax import build
from ddpm_jax.build.chain import sample_fn
from ddpm_jax.build.loss import time_sampler as time_sampler_of
from ddpm_jax.config import Config
from ddpm_jax.data.cond import check, make_cond_fn
from ddpm_jax.errors import UserError, look_up
from ddpm_jax.models import Model
from ddpm_jax.noisy_classifier import is_right, label_loss
from ddpm_jax.runs.state import TrainState
from ddpm_jax.runtime.sharding import gatherer
from ddpm_jax.time_samplers import TimeSampler
from ddpm_jax.training.optimizer import learning_rate, make_optimizer
from ddpm_jax.training.step import (
    ACCURACIES,
    CondFn,
    EvalStep,
    LossFn,
    TrainStep,
    init_state,
    make_accuracy_step,
    make_eval_step,
    make_train_step,
)
from ddpm_jax.types import Params, PRNGKey

Gather = Callable[[Params], Params]  # sharded parameters -> whole parameters


class Parts(NamedTuple):
    """Pure functions, none of them jitted except `sample`.

    Attributes:
      name: the name of the network in messages.
      model: the network.
      rate: step -> learning rate.
      init: () -> the state before the first step.
      train_step: (state, batch) -> (state, metrics).
      eval_step: (params, batch, index) -> {name: [B]}, the metrics of each held-out image. The log
        has their means under the same names.
      figures: the names that `eval_step` returns.
      sample: (params, key, n, cond) -> images [n, H, W, C] float32; None if the network makes no
        images.
      sample_key: the key of all grids of a run.
    """

    name: str
    model: Model
    rate: optax.Schedule
    init: Callable[[], TrainState]
    train_step: TrainStep
    eval_step: EvalStep
    figures: tuple[str, ...]
    sample: Callable[..., Any] | None = None
    sample_key: Any = None


def build_parts(
    config: Config,
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    mesh: Mesh | None = None,
) -> Parts:
    """Build the parts of a run; `config.model.name` chooses the kind of network.

    Args:
      config: the config of the run.
      image_shape: (H, W, C).
      num_classes: number of classes in the data; 0 is no classes.
      mesh: the devices over which the state will be sharded; None if the state is not sharded.

    Raises:
      UserError: a name, number or combination in the config that cannot work.
    """
    of_kind = look_up(PARTS, "model.name", config.model.name)
    gather = (lambda params: params) if mesh is None else gatherer(mesh)
    return of_kind(config, image_shape, num_classes, gather)


def denoiser_parts(
    config: Config, image_shape: tuple[int, int, int], num_classes: int, gather: Gather
) -> Parts:
    """Build the parts of a diffusion model: its held-out metric is the loss, and it can sample.

    Args:
      config: the config of the run.
      image_shape: (H, W, C).
      num_classes: number of classes in the data; 0 is no classes.
      gather: sharded parameters -> whole parameters.

    Raises:
      UserError: as `build_parts`.
    """
    model = build.model(config.model, image_shape, num_classes)
    chain = build.make_chain(config)
    loss_fn = _of_gathered(chain.loss(model.apply), gather)
    model = chain.joint(model)
    check(config, image_shape)
    cond_fn = make_cond_fn(config)
    seed_key = jax.random.key(config.train.seed)
    init_key, train_key, eval_key, sample_key = jax.random.split(seed_key, 4)
    loss_step = make_eval_step(loss_fn, chain.held_out_times, cond_fn=cond_fn, key=eval_key)
    return Parts(
        name="model",
        model=model,
        **_training(config, model, loss_fn, chain.time_sampler, cond_fn, init_key, train_key),
        eval_step=lambda *args: {"held_out_loss": loss_step(*args)},
        figures=("held_out_loss",),
        sample=sample_fn(config, model, image_shape),
        sample_key=sample_key,
    )


def classifier_parts(
    config: Config, image_shape: tuple[int, int, int], num_classes: int, gather: Gather
) -> Parts:
    """Build the parts of a classifier of noisy images: its metrics are accuracies by quarter of t.

    The classifier learns from every label. `loss.p_uncond` is only for networks with the label as
    an input. The arguments and errors are the same as in `denoiser_parts`.
    """
    process = build.process(config.process)
    model = build.classifier(config.model, image_shape, num_classes)
    if config.data.text:
        raise UserError("data.text is True, but a classifier takes no text; set it to False")

    def loss_fn(params, x_0, t, eps, cond, train, key):
        label = cond["label"]
        return label_loss(process, model.apply, params, x_0, t, eps, label, train=train, key=key)

    loss_fn = _of_gathered(loss_fn, gather)
    right_fn = _of_gathered(functools.partial(is_right, process, model.apply), gather)
    time_sampler = time_sampler_of(config.loss, process.num_timesteps)
    # Three keys, where a denoiser has four. Classifiers had three when they had their own loop.
    # A run from then must resume with the t, noise and dropout that it would have had.
    init_key, train_key, eval_key = jax.random.split(jax.random.key(config.train.seed), 3)
    return Parts(
        name="classifier",
        model=model,
        **_training(
            config,
            model,
            loss_fn,
            time_sampler,
            lambda batch: {"label": batch["label"]},
            init_key,
            train_key,
            p_uncond=0.0,
        ),
        eval_step=make_accuracy_step(right_fn, process.num_timesteps, key=eval_key),
        figures=ACCURACIES,
    )


# model.name -> (config, image_shape, num_classes, gather) -> Parts
PARTS = {"unet": denoiser_parts, "classifier": classifier_parts}


def _training(
    config: Config,
    model: Model,
    loss_fn: LossFn,
    time_sampler: TimeSampler,
    cond_fn: CondFn,
    init_key: PRNGKey,
    train_key: PRNGKey,
    p_uncond: float | None = None,
) -> dict[str, Any]:
    """Return the fields `rate`, `init` and `train_step` of `Parts` that train on `loss_fn`."""
    optimizer = make_optimizer(config.optim, config.train.num_steps)
    train_step = make_train_step(
        loss_fn,
        time_sampler,
        optimizer,
        num_timesteps=config.process.num_timesteps,
        p_uncond=config.loss.p_uncond if p_uncond is None else p_uncond,
        optim_config=config.optim,
        cond_fn=cond_fn,
        accumulate=config.train.accumulate,
        key=train_key,
    )
    return dict(
        rate=learning_rate(config.optim, config.train.num_steps),
        init=lambda: init_state(model, optimizer, init_key, time_sampler),
        train_step=train_step,
    )


def _of_gathered(function: Callable, gather: Gather) -> Callable:
    """Return the function (params, ...) with a gather of the sharded parameters before it."""
    return lambda params, *rest: function(gather(params), *rest)
