"""Runs from diffusers, and for diffusers: a folder of a DDPMPipeline or DDIMPipeline.

    folder/model_index.json                the class of the pipeline, and of its components
    folder/unet/, folder/scheduler/        the components; old folders have them in the root

A folder of a UNet2DModel without a pipeline is read too. Its process is then the default of a
DDPMScheduler: linear betas, T = 1000, the network predicts eps.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from ddpm_jax.config import Config
from ddpm_jax.errors import UserError
from ddpm_jax.interop import diffusers_scheduler, hub, imported, model_card
from ddpm_jax.interop.diffusers_scheduler import DDIM, DDPM
from ddpm_jax.pretrained import diffusers_layout, unet_2d
from ddpm_jax.pretrained.diffusers_layout import read_json, refuse
from ddpm_jax.pretrained.unet_2d import Network
from ddpm_jax.runs import Run, open_run
from ddpm_jax.runs.workdir import WorkDir
from ddpm_jax.runtime.files import absolute, replacing
from ddpm_jax.types import Params

INDEX, SCHEDULER = "model_index.json", "scheduler_config.json"
PIPELINES = {"DDPMPipeline": DDPM, "DDIMPipeline": DDIM}
VERSION = "0.35.0"  # of diffusers, whose layout we write


def from_diffusers(
    path: str | os.PathLike, config: Config | None = None, *, revision: str | None = None
) -> Run:
    """Read a pipeline or network of diffusers as a run.

        run = from_diffusers("google/ddpm-church-256")
        images = run.sample_fn()(run.params, jax.random.key(0), 4)

    Args:
      path: the folder of a DDPMPipeline, a DDIMPipeline or a UNet2DModel; or an id of the Hugging
        Face Hub, if the package huggingface_hub is installed.
      config: what the folder does not say: the sections data, optim, train, eval, mesh, and most of
        loss. None is the defaults, with data from a folder of images of the right size.
      revision: commit, tag or branch of a model of the Hub.

    Raises:
      UserError: there is no such folder; a file cannot be read; a weight is missing or of another
        shape; or an option cannot be represented, which the message names with its value.
    """
    source = hub.locate(path, revision)
    folder = source.folder
    pipeline, unet = _components(folder)
    network = unet_2d.read_network(unet)
    file = _scheduler_file(folder)
    found: Mapping[str, Any] = {"_class_name": DDPM}
    if network.model.learn_variance:
        found = {**found, "variance_type": "learned_range"}
    if file.exists():
        found = read_json(file)
    elif pipeline:
        raise UserError(f"{folder} is a {pipeline}, but it has no {file.relative_to(folder)}")
    ddim = pipeline == "DDIMPipeline"
    chain = diffusers_scheduler.read(file, found, ddim=ddim, learns=network.model.learn_variance)

    def read_params(abstract: Params) -> Params:
        hub.fetch_weights(source)
        return unet_2d.read_params(unet, abstract)

    return imported.make_run(network, chain, read_params, config)


def to_diffusers(
    run: Run | str | os.PathLike,
    path: str | os.PathLike,
    *,
    step: int | None = None,
    licence: str = "",
    evaluation: Mapping[str, Any] | None = None,
) -> None:
    """Write a run as a folder that `diffusers.DDPMPipeline.from_pretrained` loads, with a card.

    The weights are the EMA weights. A run with the sampler ddim becomes a DDIMPipeline.

    Args:
      run: a run, or its work directory.
      path: the folder; it must be empty or not exist.
      step: the step of the checkpoint, if `run` is a work directory; None is the newest.
      licence: the Hub's name of the licence of the weights, such as "apache-2.0"; "" is none.
      evaluation: the content of evaluate.json; None reads the file if `run` is a work directory and
        the file is of the same checkpoint.

    Raises:
      UserError: the run has what diffusers does not, which the message names; the folder is not
        empty or cannot be written; the package safetensors is not installed.
    """
    if not isinstance(run, Run):
        report = WorkDir(absolute(run)).root / "evaluate.json"
        run = open_run(run, step)
        if evaluation is None and report.exists():
            found = read_json(report)
            evaluation = found if found.get("checkpoint") == run.step else None
    if run.codec is not None:
        raise UserError("data.codec makes this a run on latents, which a DDPMPipeline cannot hold")
    network = Network(run.config.model, run.facts.image_shape, run.facts.num_classes)
    options = {**unet_2d.options_of(network), "_diffusers_version": VERSION}
    scheduler = {**diffusers_scheduler.options_of(run.config), "_diffusers_version": VERSION}
    pipeline = next(n for n, kind in PIPELINES.items() if kind == scheduler["_class_name"])
    index = {
        "_class_name": pipeline,
        "_diffusers_version": VERSION,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "unet": ["diffusers", unet_2d.NAME],
    }
    folder = absolute(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{path} is not an empty folder; choose another one")
    card = model_card.write(run, pipeline, licence=licence, evaluation=evaluation or {})
    try:
        diffusers_layout.write(
            folder / "unet", options, unet_2d.state_of(run.params, run.config.model)
        )
        diffusers_layout.write_json(folder / "scheduler" / SCHEDULER, scheduler)
        diffusers_layout.write_json(folder / INDEX, index)
        with replacing(folder / "README.md") as part:
            part.write_text(card)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def _components(folder: pathlib.Path) -> tuple[str, pathlib.Path]:
    """Return the class of the pipeline, "" if there is none, and the folder of its network."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; pass the folder that diffusers saved")
    index = folder / INDEX
    if not index.exists():
        if not (folder / "config.json").exists():
            raise UserError(f"{folder} has neither {INDEX} nor config.json; diffusers writes one")
        return "", folder
    found = read_json(index)
    pipeline = found.get("_class_name")
    if pipeline not in PIPELINES:
        raise refuse(index, "_class_name", pipeline, f"only {' or '.join(PIPELINES)} can")
    for name, value in found.items():
        if name.startswith("_"):
            continue
        if name not in ("unet", "scheduler"):
            raise refuse(index, name, value, "only the components unet and scheduler can")
        if name == "unet" and value != ["diffusers", unet_2d.NAME]:
            raise refuse(index, name, value, f"only ['diffusers', {unet_2d.NAME!r}] can")
    unet = folder / "unet"
    return pipeline, unet if unet.is_dir() else folder


def _scheduler_file(folder: pathlib.Path) -> pathlib.Path:
    inner = folder / "scheduler" / SCHEDULER
    outer = folder / SCHEDULER
    return outer if outer.exists() and not inner.exists() else inner
