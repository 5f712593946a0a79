"""Make a run of imported weights, and write its work directory as if trained to step 0.

<workdir>/imported.json says where the weights are from, and the revision of a model of the Hub.
"""

import dataclasses
import json
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from ddpm_jax import build
from ddpm_jax.config import Config, DataConfig, ProcessConfig, SampleConfig, flatten
from ddpm_jax.config_checks import check_ranges
from ddpm_jax.errors import UserError
from ddpm_jax.interop.hub import Source
from ddpm_jax.pretrained.unet_2d import Network
from ddpm_jax.runs import Run
from ddpm_jax.runs.checkpoint import Checkpoints
from ddpm_jax.runs.state import TrainState
from ddpm_jax.runs.workdir import DatasetFacts, WorkDir, locked, open_for_training
from ddpm_jax.runtime.files import absolute, replacing
from ddpm_jax.training.parts import build_parts
from ddpm_jax.types import Params


class Chain(NamedTuple):
    """The process and the sampler of another library in our terms.

    Attributes:
      process: the section `process` of a config.
      kind: `loss.kind`, what the network predicts.
      sample: the section `sample`.
    """

    process: ProcessConfig
    kind: str
    sample: SampleConfig


def make_run(
    network: Network,
    chain: Chain,
    read_params: Callable[[Params], Params],
    config: Config | None = None,
) -> Run:
    """Return the run of an imported network.

    Args:
      network: the network.
      chain: the process and the sampler.
      read_params: from the shapes of our parameters to the parameters.
      config: what the other library does not say: the sections data, optim, train, eval, mesh, and
        most of loss. None is the defaults, with data from a folder of images of the right size.

    Raises:
      UserError: the config is for data of another size; a number is out of its range; or
        `read_params` raises it.
    """
    config = _with_data(network) if config is None else config
    _check_data(config, network)
    model = dataclasses.replace(
        network.model,
        dtype=config.model.dtype,
        remat=config.model.remat,
        remat_keep=config.model.remat_keep,
    )
    config = dataclasses.replace(
        config,
        process=chain.process,
        model=model,
        loss=dataclasses.replace(config.loss, kind=chain.kind, **_loss(config, network)),
        sample=dataclasses.replace(chain.sample, chunk_size=config.sample.chunk_size),
    )
    check_ranges(flatten(config))
    facts = DatasetFacts(network.image_shape, network.num_classes, (), known=False)
    make = build.classifier if model.name == "classifier" else build.model
    built = make(model, network.image_shape, network.num_classes)
    params = read_params(jax.eval_shape(built.init, jax.random.key(0)))
    return Run(config, facts, build.process(config.process), built, params, step=0)


def write_run(run: Run, root: str | os.PathLike, source: Source) -> None:
    """Write the work directory of an imported run: `load`, all mains and further training read it.

    The moments of the optimiser start at zero, and the averaged weights at the weights.

    Args:
      run: the run, with numpy or JAX arrays.
      root: the work directory; it must not hold a run.
      source: where the weights are from.

    Raises:
      UserError: the directory holds a run, or cannot be written; or the config cannot be trained.
    """
    if WorkDir(absolute(root)).config.exists():
        raise UserError(f"--workdir={root} already holds a run; choose another directory")
    parts = build_parts(run.config, run.facts.image_shape, run.facts.num_classes)

    def others() -> tuple:  # the compiler drops the random weights, which nothing reads
        state = parts.init()
        return state.step, state.opt_state, state.time_state

    step, opt_state, time_state = jax.jit(others)()
    params = jax.tree.map(jax.numpy.asarray, run.params)
    state = TrainState(step, params, params, opt_state, time_state)
    with locked(root):
        workdir = open_for_training(root, run.config, run.facts)
        with replacing(workdir.root / "imported.json") as part:
            part.write_text(json.dumps({"from": source.name, "revision": source.revision}) + "\n")
        checkpoints = Checkpoints(workdir.checkpoints, run.config.train.keep_last, 0)
        checkpoints.save(state, wait=True)
        checkpoints.close()


def _with_data(network: Network) -> Config:
    """Return the default config, with the size of the images that the network needs."""
    height, width, channels = network.image_shape
    channels = channels if channels in (1, 3, 4) else 0
    if height != width:  # images in a folder are square
        return Config(data=DataConfig(name="array", channels=channels))
    return Config(data=DataConfig(name="folder", image_size=height, channels=channels))


def _check_data(config: Config, network: Network) -> None:
    """Refuse data of another size than the network's."""
    height, width, channels = network.image_shape
    size = height if height == width else 0  # 0: images of any shape keep theirs
    for name, wanted in (("image_size", size), ("channels", channels)):
        if (value := getattr(config.data, name)) not in (0, wanted):
            raise UserError(
                f"data.{name} is {value}, but the network is for images of {height}x{width} with "
                f"{channels} channels; set it to {wanted}"
            )


def _loss(config: Config, network: Network) -> dict[str, Any]:
    """Return the fields of config.loss that the network decides."""
    fields: dict[str, Any] = {}
    if network.model.class_conditional:
        fields["p_uncond"] = 0.0  # there is no null class
    if network.model.learn_variance and config.loss.objective == "simple":
        fields["objective"] = "hybrid"
    return fields
