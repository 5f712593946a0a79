"""Open a trained run: from its work directory to a sampling function and weights."""

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ddpm_jax import build
from ddpm_jax.build import latents
from ddpm_jax.build.overrides import override
from ddpm_jax.codec import Codec
from ddpm_jax.config import Config
from ddpm_jax.errors import UserError
from ddpm_jax.models import Model
from ddpm_jax.process import GaussianProcess
from ddpm_jax.runs.checkpoint import restore_ema
from ddpm_jax.runs.codec import of_run
from ddpm_jax.runs.state import abstract_params
from ddpm_jax.runs.workdir import DatasetFacts, WorkDir, open_for_reading, read_config, read_facts
from ddpm_jax.types import Params


def load(
    root: str | os.PathLike,
    step: int | None = None,
    *,
    sample: Mapping[str, Any] | None = None,
    classifier: str | os.PathLike | None = None,
    classifier_scale: float = 1.0,
) -> tuple[Callable, Params]:
    """Open a trained run: `sample, params = load("runs/digits")`.

    Args:
      root: the work directory of the training.
      step: the step of the checkpoint; None is the newest complete one.
      sample: {field: value} to replace in `config.sample`, e.g. {"guidance": 1.5}.
      classifier: the work directory of a run of `experiments.train_classifier`, or None. The
        classifier guides towards cond["label"], in addition to any other guidance. A negative
        label is no class.
      classifier_scale: weight of the classifier's guidance, at least 0.

    Returns:
      sample: `sample(params, key, n, cond=None) -> [n, H, W, C]` float32 in [-1, 1], with the
        process and sampler of the run's config (`ddpm_jax.make_sample`). `cond` depends on the
        model. Class-conditional: {"label": [n] int32}; without cond and without guidance the model
        samples its null class. Text: `pretrained.text_encoder.conditioning(texts)`.
        Super-resolution: {"image": [n, H, W, C] in [-1, 1]}, the small images with their pixels
        repeated to the model's size.
      params: the EMA weights; with a classifier, {"model": ..., "classifier": ...}.

    Raises:
      UserError: the directory is not a run; no checkpoint can be read; `sample` names an unknown
        field; the classifier has another process, image shape or number of classes; or the codec of
        a run on latents is missing or has changed.
    """
    return sample_of(open_run(root, step, sample=sample), classifier, classifier_scale)


class Run(NamedTuple):
    """The parts of a trained run.

    `params` are the EMA weights of the network at the checkpoint of `step`. The process is that of
    the same checkpoint, if the schedule is learned. `codec` is None for a run on pixels.
    """

    config: Config
    facts: DatasetFacts
    process: GaussianProcess
    model: Model
    params: Params
    step: int
    codec: Codec | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of what the network sees: that of the latents or of the images."""
        return self.facts.image_shape if self.codec is None else self.codec.latent_shape

    def encode(self, images: Any) -> Any:
        """Return the x_0 of images [n, H, W, C] in [-1, 1]: latents, or the images."""
        return latents.encode(self.codec, images)

    def decode(self, x_0: Any) -> Any:
        """Return the images [n, H, W, C] of x_0: [n, *shape]."""
        return latents.decode(self.codec, x_0)

    def sample_fn(self, **options: Any) -> Callable:
        """Return `sample(params, key, n, cond=None)` with the run's process and sampler.

        Args:
          **options: options of `build.sample_fn`, such as `collect`.
        """
        sample = build.sample_fn(self.config, self.process, self.model, self.shape, **options)
        return latents.decoded(sample, self.codec)


def open_run(
    root: str | os.PathLike, step: int | None = None, *, sample: Mapping[str, Any] | None = None
) -> Run:
    """Open the parts of a trained run; arguments and errors as in `load`."""
    workdir = open_for_reading(root)
    config, facts = override(read_config(workdir), sample), read_facts(workdir)
    codec = of_run(config.data.codec, facts, root) if config.data.codec else None
    shape = facts.image_shape if codec is None else codec.latent_shape
    model = build.model(config.model, shape, facts.num_classes)
    chain = build.make_chain(config)
    step, params = _restore(workdir, chain.joint(model), step)
    process, params = chain.split(params)
    return Run(config, facts, process, model, params, step, codec)


def sample_of(
    run: Run, classifier: str | os.PathLike | None = None, classifier_scale: float = 1.0
) -> tuple[Callable, Params]:
    """Return the sampling function and the weights of an open run; arguments as in `load`."""
    if classifier is None:
        return run.sample_fn(), run.params
    other = open_for_reading(classifier)
    _check_fits(classifier, other, run)
    judge = build.classifier(read_config(other).model, run.shape, run.facts.num_classes)
    sample_fn = run.sample_fn(classifier=judge, scale=classifier_scale)
    return sample_fn, {"model": run.params, "classifier": _restore(other, judge, None)[1]}


def _check_fits(root: str | os.PathLike, workdir: WorkDir, run: Run) -> None:
    """Raise `UserError` if the classifier has other images, classes or noise than the model."""
    config, facts = read_config(workdir), read_facts(workdir)
    for what, found, wanted in (
        ("data.num_classes", facts.num_classes, run.facts.num_classes),
        ("image shape", facts.image_shape, run.facts.image_shape),
        ("process", config.process, run.config.process),
        ("codec", facts.codec or "none", run.facts.codec or "none"),
    ):
        if found != wanted:
            raise UserError(
                f"the classifier in {root} does not fit the model: its {what} is {found}, the "
                f"model's is {wanted}; train a classifier on the same data and process"
            )


def _restore(workdir: WorkDir, model: Model, step: int | None) -> tuple[int, Params]:
    """Return the step of a checkpoint and its EMA weights, on one local device."""
    return restore_ema(workdir.checkpoints, abstract_params(model.init), step)
