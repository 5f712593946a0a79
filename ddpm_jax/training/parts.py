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
from ddpm_jax.build import autoencoders, latents
from ddpm_jax.build.chain import sample_fn
from ddpm_jax.build.loss import time_sampler as time_sampler_of
from ddpm_jax.codec import Codec
from ddpm_jax.config import Config
from ddpm_jax.config_checks import check_unused
from ddpm_jax.data.cond import check, make_cond_fn
from ddpm_jax.errors import UserError, look_up
from ddpm_jax.noisy_classifier import is_right, label_loss
from ddpm_jax.runs.state import TrainState
from ddpm_jax.runtime.sharding import gatherer
from ddpm_jax.training import autoencoder
from ddpm_jax.training.autoencoder import Features
from ddpm_jax.training.objectives import (
    ACCURACIES,
    CleanFn,
    EvalStep,
    Objective,
    clean_latents,
    clean_pixels,
    make_accuracy_step,
    make_eval_step,
    of_noisy_images,
)
from ddpm_jax.training.optimizer import learning_rate, make_optimizer
from ddpm_jax.training.step import TrainStep, init_state, make_train_step
from ddpm_jax.types import Params, PRNGKey

Gather = Callable[[Params], Params]  # sharded parameters -> whole parameters


class Setting(NamedTuple):
    """What the parts of a run depend on, apart from the config.

    Attributes:
      image_shape: (H, W, C) of the images.
      num_classes: number of classes in the data; 0 is no classes.
      gather: sharded parameters -> whole parameters, those that the network uses in `model.dtype`
        rounded to it.
      codec: images <-> latents, if the run is on latents; None if it is on pixels.
      features: images [B, H, W, C] in [-1, 1] -> [B, D], for an autoencoder's perceptual term.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    gather: Gather = lambda params: params
    codec: Codec | None = None
    features: Features | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of x_0: that of the latents or of the images."""
        return self.image_shape if self.codec is None else self.codec.latent_shape

    @property
    def clean_fn(self) -> CleanFn:
        """The function (key, batch) -> x_0."""
        return clean_pixels if self.codec is None else clean_latents(self.codec.scale)


class Parts(NamedTuple):
    """Pure functions, none of them jitted except `sample`.

    Attributes:
      name: the name of the network in messages.
      rate: step -> learning rate.
      init: () -> the state before the first step.
      train_step: (state, batch) -> (state, metrics).
      eval_step: (params, batch, index) -> {name: [B]}, the metrics of each held-out image. The log
        has their means under the same names.
      figures: the names that `eval_step` returns.
      sampler_of: config -> a function (params, key, n, cond) -> samples [n, H, W, C] float32, by
        the sampler of that config; None if the network draws no samples.
      draw: (params, key, n, cond) -> the images of a grid, float32; None if the network makes no
        images.
      drawn: what the grids show.
      sample_key: the key of all grids of a run.
    """

    name: str
    rate: optax.Schedule
    init: Callable[[], TrainState]
    train_step: TrainStep
    eval_step: EvalStep
    figures: tuple[str, ...]
    sampler_of: Callable[[Config], Callable[..., Any]] | None = None
    draw: Callable[..., Any] | None = None
    drawn: str = "samples"
    sample_key: Any = None


def build_parts(
    config: Config,
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    mesh: Mesh | None = None,
    codec: Codec | None = None,
    features: Features | None = None,
) -> Parts:
    """Build the parts of a run; `config.model.name` chooses the kind of network.

    Args:
      config: the config of the run.
      image_shape: (H, W, C).
      num_classes: number of classes in the data; 0 is no classes.
      mesh: the devices over which the state will be sharded; None if the state is not sharded.
      codec: the codec that config.data.codec names; None if the run is on pixels.
      features: the features of an autoencoder's perceptual term; None if there is none.

    Raises:
      UserError: a name, number or combination in the config that cannot work.
    """
    of_kind = look_up(PARTS, "model.name", config.model.name)
    gather = (lambda params: params) if mesh is None else gatherer(mesh, config.model.dtype)
    return of_kind(config, Setting(image_shape, num_classes, gather, codec, features))


def denoiser_parts(config: Config, setting: Setting) -> Parts:
    """Build the parts of a diffusion model: its held-out metric is the loss, and it can sample.

    Args:
      config: the config of the run.
      setting: what else the parts depend on.

    Raises:
      UserError: as `build_parts`.
    """
    latents.check(config)
    _check_no_autoencoder(config)
    if config.loss.p_uncond and config.model.class_conditional and not config.model.null_class:
        raise UserError(
            f"loss.p_uncond is {config.loss.p_uncond}, but the network has no null class "
            "(model.null_class is False); set loss.p_uncond=0"
        )
    model = build.model(config.model, setting.shape, setting.num_classes)
    chain = build.make_chain(config)
    loss_fn = _of_gathered(chain.loss(model.apply), setting.gather)
    model = chain.joint(model)
    check(config, setting.image_shape)
    cond_fn = make_cond_fn(config)
    seed_key = jax.random.key(config.train.seed)
    init_key, train_key, eval_key, sample_key = jax.random.split(seed_key, 4)
    objective = of_noisy_images(
        loss_fn,
        chain.time_sampler,
        num_timesteps=config.process.num_timesteps,
        p_uncond=config.loss.p_uncond,
        clean_fn=setting.clean_fn,
        cond_fn=cond_fn,
    )
    loss_step = make_eval_step(
        loss_fn, chain.held_out_times, clean_fn=setting.clean_fn, cond_fn=cond_fn, key=eval_key
    )

    def sampler_of(config: Config) -> Callable[..., Any]:
        sample = sample_fn(config, model, setting.shape)
        return latents.decoded(sample, setting.codec)

    return Parts(
        name="model",
        **_training(config, model.init, objective, init_key, train_key),
        eval_step=lambda *args: {"held_out_loss": loss_step(*args)},
        figures=("held_out_loss",),
        sampler_of=sampler_of,
        draw=sampler_of(config),
        sample_key=sample_key,
    )


def autoencoder_parts(config: Config, setting: Setting) -> Parts:
    """Build the parts of an autoencoder: its grids show images beside their reconstructions.

    The arguments and errors are the same as in `denoiser_parts`.
    """
    init = autoencoders.init_fn(config, setting.image_shape)
    network = autoencoders.autoencoder(config.model, setting.image_shape)
    init_key, train_key = jax.random.split(jax.random.key(config.train.seed))
    return Parts(
        name="autoencoder",
        **_training(
            config,
            init,
            autoencoder.objective(config, network, setting.gather, setting.features),
            init_key,
            train_key,
        ),
        eval_step=autoencoder.make_reconstruction_step(network, setting.gather),
        figures=autoencoder.FIGURES,
        draw=autoencoder.make_reconstruct(network),
        drawn="reconstructions",
    )


def classifier_parts(config: Config, setting: Setting) -> Parts:
    """Build the parts of a classifier of noisy images: its metrics are accuracies by quarter of t.

    The classifier learns from every label. `loss.p_uncond` is only for networks with the label as
    an input. The arguments and errors are the same as in `denoiser_parts`.
    """
    process = build.process(config.process)
    _check_no_autoencoder(config)
    model = build.classifier(config.model, setting.shape, setting.num_classes)
    if config.data.text:
        raise UserError("data.text is True, but a classifier takes no text; set it to False")

    def loss_fn(params, x_0, t, eps, cond, train, key):
        label = cond["label"]
        return label_loss(process, model.apply, params, x_0, t, eps, label, train=train, key=key)

    loss_fn = _of_gathered(loss_fn, setting.gather)
    right_fn = _of_gathered(functools.partial(is_right, process, model.apply), setting.gather)
    T = process.num_timesteps
    objective = of_noisy_images(
        loss_fn,
        time_sampler_of(config.loss, T),
        num_timesteps=T,
        p_uncond=0.0,
        clean_fn=setting.clean_fn,
        cond_fn=lambda batch: {"label": batch["label"]},
    )
    # Three keys, where a denoiser has four. Classifiers had three when they had their own loop.
    # A run from then must resume with the t, noise and dropout that it would have had.
    init_key, train_key, eval_key = jax.random.split(jax.random.key(config.train.seed), 3)
    return Parts(
        name="classifier",
        **_training(config, model.init, objective, init_key, train_key),
        eval_step=make_accuracy_step(right_fn, T, clean_fn=setting.clean_fn, key=eval_key),
        figures=ACCURACIES,
    )


# model.name -> (config, setting) -> Parts
PARTS = {
    "unet": denoiser_parts,
    "xunet": denoiser_parts,
    "classifier": classifier_parts,
    "autoencoder": autoencoder_parts,
}


def _check_no_autoencoder(config: Config) -> None:
    """Refuse options of the section `autoencoder` for other networks."""
    who = f"model.name={config.model.name}"
    check_unused(config.autoencoder, vars(config.autoencoder), who, " (autoencoder: yes)")


def _training(
    config: Config,
    init: Callable[[PRNGKey], Params],
    objective: Objective,
    init_key: PRNGKey,
    train_key: PRNGKey,
) -> dict[str, Any]:
    """Return the fields `rate`, `init` and `train_step` of `Parts` that train on an objective."""
    optimizer = make_optimizer(config.optim, config.train.num_steps)
    return dict(
        rate=learning_rate(config.optim, config.train.num_steps),
        init=lambda: init_state(init, optimizer, init_key, objective.init()),
        train_step=make_train_step(
            objective,
            optimizer,
            optim_config=config.optim,
            accumulate=config.train.accumulate,
            key=train_key,
        ),
    )


def _of_gathered(function: Callable, gather: Gather) -> Callable:
    """Return the function (params, ...) with a gather of the sharded parameters before it."""
    return lambda params, *rest: function(gather(params), *rest)
