"""Quality during training: the Fréchet distance of a few fast samples, from the EMA weights."""

import logging
from collections.abc import Callable, Mapping

import numpy as np

from ddpm_jax import data
from ddpm_jax.build.overrides import for_evaluation
from ddpm_jax.config import Config
from ddpm_jax.data.cond import drawn_cond
from ddpm_jax.errors import NotFiniteError, UserError
from ddpm_jax.evaluation import references
from ddpm_jax.evaluation.features import make_features
from ddpm_jax.evaluation.moments import check_enough, frechet_distance, streamed
from ddpm_jax.evaluation.table import frechet_name
from ddpm_jax.pixels import to_uint8
from ddpm_jax.sampling import sample_in_chunks
from ddpm_jax.training.parts import Parts
from ddpm_jax.types import Params

logger = logging.getLogger(__name__)


def make_monitor(
    config: Config, dataset: data.Dataset, rows: Mapping[str, np.ndarray], parts: Parts
) -> Callable[[Params], dict[str, float] | None] | None:
    """Return params -> {name: distance to the training images}, or None if the monitor is off.

    `config.eval` sets the number of samples and the sampler. The noise and the conditioning are the
    same each time, so two steps can be compared. The features are the hidden layer of the small
    classifier of the data. Samples that are not finite have no distance: a warning says so, and the
    result is None. The monitor changes nothing: a run with it has the same weights as one without.

    Args:
      config: the config of the run.
      dataset: the data of the run.
      rows: name -> [N, ...], other inputs of the network for each training image (`data.cond`).
      parts: the parts of the run.

    Raises:
      UserError: parts that draw no samples, data without labels, or too few samples or images for
        the features.
    """
    every, n = config.eval.samples_every, config.eval.num_samples
    if not every:
        return None
    if parts.sampler_of is None:
        raise UserError(
            f"eval.samples_every is {every}, but the {parts.name} draws no samples to judge; "
            "set it to 0"
        )
    if dataset.num_classes < 2:
        raise UserError(
            f"eval.samples_every is {every}, but the data have no labels, and samples are "
            "judged in the features of a classifier that is trained on labels; set it to 0"
        )
    network, _ = references.classifier(config.data, dataset)
    reference = references.reference(config.data, dataset, "train", network)
    dim = len(reference.moments.mean)
    check_enough("samples (eval.num_samples)", n, dim)
    check_enough("in the training set", reference.moments.n, dim)
    sample = parts.sampler_of(for_evaluation(config))
    features = make_features(network)
    cond = drawn_cond(config, dataset.train, rows, n, config.train.seed)

    def monitor(params: Params) -> dict[str, float] | None:
        chunks = sample_in_chunks(
            sample, params, parts.sample_key, n, config.sample.chunk_size, cond
        )
        try:
            found = streamed(features(to_uint8(chunk)) for chunk in chunks)
        except NotFiniteError as error:
            logger.warning("the samples cannot be judged: %s", error)
            return None
        name = frechet_name(network.name, n, reference.split)
        return {name: frechet_distance(found, reference.moments)}

    return monitor
