"""Training on the bound: the options of a config, and its history as part of the state."""

import dataclasses

import jax
import numpy as np
import pytest
from test_training import abstract, assert_equal, make_batch, make_parts
from tiny import make_config

from ddpm_jax import build, samplers
from ddpm_jax.build import loss as objectives
from ddpm_jax.errors import UserError
from ddpm_jax.runs.checkpoint import Checkpoints
from ddpm_jax.types import Prediction

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sharding info not provided"),
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
    pytest.mark.quick_to_compile,
]
BOUND = dict(
    model__learn_variance=True,
    loss__objective="vlb",
    loss__t_sampler="loss_second_moment",
    sample__variance="learned_range",
)


@pytest.mark.slow
def test_the_history_of_losses_is_saved_and_a_run_goes_on_as_if_never_stopped(tmp_path):
    parts, step = make_parts(make_config(**BOUND))
    straight = [jax.jit(parts.init)()]
    for i in range(4):
        straight.append(step(straight[-1], make_batch(i))[0])
    checkpoints = Checkpoints(tmp_path, keep_last=1, keep_every=0)
    checkpoints.save(straight[2], wait=True)
    state = checkpoints.restore_latest(abstract(straight[0]))
    checkpoints.close()
    for i in (2, 3):
        state, _ = step(state, make_batch(i))
    assert_equal(state, straight[-1])
    assert int(state.time_state.counts.sum()) == 4 * 16
    assert np.all(np.isfinite(state.time_state.losses)) and np.any(state.time_state.losses)


@pytest.mark.slow
def test_the_history_does_not_learn_from_an_update_that_is_skipped():
    parts, step = make_parts(make_config(**BOUND))
    state = jax.jit(parts.init)()
    broken = jax.tree.map(lambda leaf: np.full(leaf.shape, np.nan, leaf.dtype), state.params)
    after, metrics = step(dataclasses.replace(state, params=broken), make_batch())
    assert int(metrics["skipped"]) == 1
    assert_equal(after.time_state, parts.init().time_state)


def test_the_network_says_its_variance_to_the_sampler():
    process = build.process(make_config().process)
    x = jax.random.normal(jax.random.key(0), (3, 2, 2, 1))
    key = jax.random.split(jax.random.key(1), 3)

    def step(variance, fraction):
        def denoise_fn(x_t, t):
            return Prediction(0.5 * x_t, x_t, np.full(x_t.shape, fraction, np.float32))

        sampler = samplers.ancestral(process, variance)
        return sampler.step(denoise_fn, key, sampler.init(x), 5, 3)[0].x

    np.testing.assert_allclose(step("learned_range", 0.0), step("fixed_small", 0.0), rtol=1e-5)
    np.testing.assert_allclose(step("learned_range", 1.0), step("fixed_large", 1.0), rtol=1e-5)
    assert np.any(step("learned_range", 0.5) != step("fixed_small", 0.5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(model__learn_variance=True), "simple never trains the variance; set loss.objective"),
        (dict(loss__objective="hybrid"), "learn_variance is False; set model.learn_variance to"),
        (dict(loss__objective="vlb", loss__vlb_lambda=0.1), "vlb_lambda is 0.1, but .* not use it"),
        (dict(loss__objective="elbo"), "unknown loss.objective 'elbo'"),
        (dict(loss__p2_k=2.0), r"p2_k is 2.0, but loss.weighting=simple does .* \(p2: yes\)"),
        (dict(loss__t_sampler="importance"), "unknown loss.t_sampler 'importance'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes, message):
    config = make_config(**changes)
    process = build.process(config.process)
    with pytest.raises(UserError, match=message):
        objectives.time_sampler(config.loss, process.num_timesteps)
        loss = objectives.loss_fn(config, process, lambda params, x_t, *_, **__: x_t)
        x = np.zeros((1, 2, 2, 1), np.float32)
        loss({}, x, np.ones(1, np.int32), x, None, False, None)


def test_a_learned_variance_that_is_not_learned_is_refused_when_sampling():
    config = make_config(sample__variance="learned_range")
    model = build.model(config.model, (8, 8, 1), 10)
    with pytest.raises(UserError, match="sample.variance is learned_range, but model.learn_varia"):
        build.sample_fn(config, build.process(config.process), model, (8, 8, 1))
