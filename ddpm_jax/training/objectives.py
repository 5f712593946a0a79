"""What a run minimises: the objective of a train step, and the metrics of held-out images.

A train step draws the random inputs of its batch and takes the gradient of the mean weighted loss.
`Objective` names these two parts. Here is the objective of networks that see x_t: denoisers, and
classifiers of noisy images.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.codec import Scale, standardised
from ddpm_jax.conditioning import drop
from ddpm_jax.pixels import to_x_0
from ddpm_jax.time_samplers import TimeSampler
from ddpm_jax.types import Array, Conditioning, Params, PRNGKey

Batch = dict[str, Array]  # "image" [B, ...], "label" int32 [B], and other arrays of the data
# (params, x_0, t, eps, cond, train, key) -> [B]: the loss per example
LossFn = Callable[[Params, Array, Array, Array, Conditioning | None, bool, PRNGKey | None], Array]
# batch -> the conditioning that the network receives, or None
CondFn = Callable[[Batch], Conditioning | None]
# (key, batch) -> x_0 [B, H, W, C] float32, what the process adds noise to
CleanFn = Callable[[PRNGKey, Batch], Array]
# (params, batch, index of the batch) -> {name: [B]}: metrics of each image
EvalStep = Callable[[Params, Batch, Array], dict[str, Array]]

LATENTS = 2**31 - 1  # folded into a key: no step, batch or quarter has this number
NUM_KEYS = 3  # that `Objective.draw` receives
QUARTILES = 4
ACCURACIES = tuple(f"accuracy_t_quartile_{i + 1}" for i in range(QUARTILES))


class Objective(NamedTuple):
    """What a train step minimises, as pure functions.

    The objective may have a state of its own: what it has learned about the losses so far.

    Attributes:
      init: () -> the state before the first step.
      draw: (state, step, NUM_KEYS keys, batch) -> (inputs, weight): all that a step draws at
        random, apart from dropout. `inputs` is a pytree of arrays [B, ...]; `weight` is [B].
      loss: (params, inputs, key) -> (the loss per example, [B], its parts for the log,
        {name: [B]}).
      report: (inputs, weight, loss) -> {name: array}, further metrics of a step.
      learn: (state, inputs, loss) -> the next state.
    """

    init: Callable[[], Any]
    draw: Callable[[Any, Array, Sequence[PRNGKey], Batch], tuple[Any, Array]]
    loss: Callable[[Params, Any, PRNGKey], tuple[Array, dict[str, Array]]]
    report: Callable[[Any, Array, Array], dict[str, Array]]
    learn: Callable[[Any, Any, Array], Any]


def clean_pixels(key: PRNGKey, batch: Batch) -> Array:
    """Return x_0 of a batch of images: the pixels in [-1, 1]. Nothing is drawn with the key."""
    return to_x_0(batch["image"])


def clean_latents(scale: Scale) -> CleanFn:
    """Return (key, batch) -> standardised latents, drawn again from their moments at each step.

    Args:
      scale: the scale of the latents. The batch's "image" has their moments, [B, h, w, 2c].
    """

    def clean_fn(key: PRNGKey, batch: Batch) -> Array:
        # the key also draws ε, so the latents need one of their own
        return standardised(scale, batch["image"], jax.random.fold_in(key, LATENTS))

    return clean_fn


def of_noisy_images(
    loss_fn: LossFn,
    time_sampler: TimeSampler,
    *,
    num_timesteps: int,
    p_uncond: float,
    clean_fn: CleanFn,
    cond_fn: CondFn,
) -> Objective:
    """Return the objective of a network that sees x_t: E over t and ε of the weighted loss.

    Its report has the sums of the weighted loss and of the weights by quarter of {1..T}:
    `quartile_sum` and `quartile_count`, [4] each.

    Args:
      loss_fn: the loss per example, [B].
      time_sampler: draws the times of a batch and their weights.
      num_timesteps: T.
      p_uncond: probability that the conditioning of an example is dropped, in [0, 1].
      clean_fn: (key, batch) -> x_0.
      cond_fn: batch -> the conditioning that the network receives, or None.
    """

    def draw(state: Any, step: Array, keys: Sequence[PRNGKey], batch: Batch) -> tuple[Any, Array]:
        t_key, eps_key, null_key = keys
        x_0 = clean_fn(eps_key, batch)  #                                          [B, H, W, C]
        t, weight = time_sampler.draw(state, t_key, x_0.shape[0])  #               [B]
        eps = jax.random.normal(eps_key, x_0.shape)
        cond = cond_fn(batch)
        if cond is not None:  # one draw per example drops all of its conditioning, or nothing
            cond = drop(cond, jax.random.bernoulli(null_key, p_uncond, t.shape))
        return (x_0, t, eps, cond), weight

    def loss(params: Params, inputs: Any, key: PRNGKey) -> tuple[Array, dict[str, Array]]:
        x_0, t, eps, cond = inputs
        return loss_fn(params, x_0, t, eps, cond, True, key), {}

    def report(inputs: Any, weight: Array, loss: Array) -> dict[str, Array]:
        _, t, _, _ = inputs
        sums, counts = loss_by_quartile(loss, weight, t, num_timesteps)
        return dict(quartile_sum=sums, quartile_count=counts)

    def learn(state: Any, inputs: Any, loss: Array) -> Any:
        _, t, _, _ = inputs
        return time_sampler.update(state, t, loss)

    return Objective(time_sampler.init, draw, loss, report, learn)


def loss_by_quartile(
    loss: Array, weight: Array, t: Array, num_timesteps: int
) -> tuple[Array, Array]:
    """Return the sums of weight * loss and of weight over each quarter of {1..T}: [4] and [4].

    Args:
      loss: [B] float, the loss per example.
      weight: [B] float, the weight per example.
      t: [B] int32 or float, in 1..T.
      num_timesteps: T.
    """
    quartile = ((t - 1) * QUARTILES // num_timesteps).astype(jnp.int32)  # t may be fractional
    quartile = jax.nn.one_hot(quartile, QUARTILES)  #                              [B, 4]
    return ((weight * loss)[:, None] * quartile).sum(0), (weight[:, None] * quartile).sum(0)


def make_eval_step(
    loss_fn: LossFn,
    time_sampler: TimeSampler,
    *,
    clean_fn: CleanFn,
    cond_fn: CondFn,
    key: PRNGKey,
) -> Callable[[Params, Batch, Array], Array]:
    """Return eval_step(params, batch, index) -> weighted loss [B].

    t and ε depend only on `key` and `index`, so the losses of two sets of weights can be compared.

    Args:
      loss_fn: the loss per example, [B].
      time_sampler: draws the times of a batch and their weights.
      clean_fn: (key, batch) -> x_0.
      cond_fn: batch -> the conditioning that the network receives, or None.
      key: the evaluation key of the run.
    """

    def eval_step(params: Params, batch: Batch, index: Array) -> Array:
        t_key, eps_key = jax.random.split(jax.random.fold_in(key, index))
        x_0 = clean_fn(eps_key, batch)
        t, weight = time_sampler.draw(time_sampler.init(), t_key, x_0.shape[0])
        eps = jax.random.normal(eps_key, x_0.shape)
        return weight * loss_fn(params, x_0, t, eps, cond_fn(batch), False, None)

    return eval_step


def make_accuracy_step(
    right_fn: Callable[[Params, Array, Array, Array, Array], Array],
    num_timesteps: int,
    *,
    clean_fn: CleanFn,
    key: PRNGKey,
) -> EvalStep:
    """Return accuracy_step(params, batch, index) -> {"accuracy_t_quartile_1": [B], ...}.

    Every image is classified once in each quarter of {1..T}. t and ε depend only on `key`, `index`
    and the quarter.

    Args:
      right_fn: (params, x_0, t, eps, label) -> bool [B], whether the network's class for x_t is
        the label.
      num_timesteps: T.
      clean_fn: (key, batch) -> x_0.
      key: the evaluation key of the run.
    """

    def accuracy_step(params: Params, batch: Batch, index: Array) -> dict[str, Array]:
        x_0, label = clean_fn(jax.random.fold_in(key, index), batch), batch["label"]

        def right_in(quarter: Array) -> Array:
            quarter_key = jax.random.fold_in(jax.random.fold_in(key, quarter), index)
            t_key, eps_key = jax.random.split(quarter_key)
            u = jax.random.uniform(t_key, label.shape)
            t = 1 + ((quarter + u) * (num_timesteps / QUARTILES)).astype(jnp.int32)
            t = jnp.minimum(t, num_timesteps)  # the product can round up
            return right_fn(params, x_0, t, jax.random.normal(eps_key, x_0.shape), label)

        right = jax.lax.map(right_in, jnp.arange(QUARTILES))  #                   [4, B]
        return dict(zip(ACCURACIES, right, strict=True))

    return accuracy_step
