"""Open a codec: the autoencoder that `config.data.codec` names, from its work directory."""

import dataclasses
import os
import pathlib

import jax
import numpy as np

from ddpm_jax.build import autoencoders
from ddpm_jax.codec import Codec, Scale
from ddpm_jax.errors import UserError
from ddpm_jax.models import digest
from ddpm_jax.models.autoencoder import Autoencoder
from ddpm_jax.pretrained import autoencoder_kl
from ddpm_jax.runs.checkpoint import restore_ema
from ddpm_jax.runs.state import abstract_params
from ddpm_jax.runs.workdir import (
    DatasetFacts,
    WorkDir,
    open_for_reading,
    read_config,
    read_facts,
)
from ddpm_jax.runtime.files import absolute
from ddpm_jax.types import Params


def open_codec(root: str | os.PathLike, image_shape: tuple[int, int, int]) -> Codec:
    """Return the codec of a trained autoencoder, with its newest EMA weights and no scale yet.

    Args:
      root: the work directory of the autoencoder's training, or a directory of diffusers'
        AutoencoderKL.
      image_shape: (H, W, C) of the images to encode.

    Raises:
      UserError: the directory is missing or not the run of an autoencoder; the autoencoder was
        trained on images of another shape.
    """
    if autoencoder_kl.is_folder(absolute(root)):
        return _of_diffusers(absolute(root), image_shape)
    try:
        workdir = open_for_reading(root)
    except UserError as error:
        raise UserError(f"data.codec: {error}") from error
    config, facts = read_config(workdir), read_facts(workdir)
    if config.model.name != "autoencoder":
        raise UserError(
            f"data.codec={root} is a run of model.name={config.model.name!r}; pass the work "
            "directory of an autoencoder, such as that of experiments/fashion_autoencoder.py"
        )
    if facts.image_shape != image_shape:
        raise UserError(
            f"data.codec={root} encodes images of {facts.image_shape}, but the data have "
            f"{image_shape}; set data.image_size and data.channels, or train another autoencoder"
        )
    network = autoencoders.autoencoder(config.model, image_shape)
    abstract = abstract_params(autoencoders.init_fn(config, image_shape))
    _, params = restore_ema(workdir.checkpoints, abstract, None)
    return _codec(network, params["autoencoder"], image_shape)


def _of_diffusers(root: pathlib.Path, image_shape: tuple[int, int, int]) -> Codec:
    """Return the codec of a directory of diffusers' AutoencoderKL."""
    sizes = autoencoder_kl.read_sizes(root)
    if sizes.image_channels != image_shape[2]:
        raise UserError(
            f"data.codec={root} encodes images with {sizes.image_channels} channels, but the data "
            f"have {image_shape[2]}; set data.channels={sizes.image_channels}"
        )
    network = autoencoders.autoencoder(sizes.model, image_shape)
    abstract = jax.eval_shape(network.init, jax.random.key(0))
    params = autoencoder_kl.read_params(root, abstract, sizes.model)
    return _codec(network, params, image_shape)


def _codec(network: Autoencoder, params: Params, image_shape: tuple[int, int, int]) -> Codec:
    """Return a codec without a scale."""
    none = np.zeros(0, np.float32)
    return Codec(
        params,
        Scale(none, none),
        network.encode,
        network.decode,
        image_shape,
        network.latent_shape,
        digest(params),
    )


def known_scale(root: str | os.PathLike) -> Scale | None:
    """Return the scale of the latents of the run in a work directory; None if there is none yet."""
    workdir = WorkDir(absolute(root))
    if not workdir.dataset.exists() or not (facts := read_facts(workdir)).latent_mean:
        return None
    return _scale(facts)


def of_run(root: str | os.PathLike, facts: DatasetFacts, where: str | os.PathLike) -> Codec:
    """Return the codec of a trained run on latents.

    Args:
      root: the directory of the codec.
      facts: the facts of the run.
      where: the run, for the message.

    Raises:
      UserError: as `open_codec`, or the codec is not the one of the training.
    """
    try:
        codec = open_codec(root, facts.image_shape)
    except UserError as error:
        raise UserError(
            f"{error}; if the codec of {where} is in another place now, change data.codec in its "
            "config.json"
        ) from error
    if codec.digest != facts.codec:
        raise UserError(
            f"the codec in {root} has other weights than when {where} was trained: {facts.codec} "
            f"then, {codec.digest} now; bring the old directory back, or train another run"
        )
    return dataclasses.replace(codec, scale=_scale(facts))


def _scale(facts: DatasetFacts) -> Scale:
    mean, deviation = facts.latent_mean, facts.latent_deviation
    return Scale(np.asarray(mean, np.float32), np.asarray(deviation, np.float32))
