import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import ddpm_jax
from ddpm_jax.denoise import apply_network, make_denoise_fn
from ddpm_jax.predictions import KINDS


def process_of(schedule="linear", T=1000):
    return ddpm_jax.make_process(oracles.betas(schedule, T))


class Recorder:
    """A network that remembers how it was called and returns a fixed output."""

    def __init__(self, output):
        self.output = output

    def __call__(self, params, x_t, t, cond, *, train, key):
        self.seen = dict(params=params, x_t=x_t, t=t, cond=cond, train=train, key=key)
        return self.output


@pytest.mark.parametrize("t", [7, jnp.int32(7), np.full(3, 7), jnp.full(3, 7)])
def test_the_network_is_told_t_minus_1_of_each_image(t):
    network, x = Recorder(jnp.zeros((3, 2))), jnp.ones((3, 2))
    apply_network(process_of(), network, "params", x, t, None, train=False, key=None)
    np.testing.assert_array_equal(network.seen["t"], [6, 6, 6])
    assert network.seen["t"].dtype == jnp.int32


def test_on_a_respaced_chain_the_network_is_told_the_original_timestep():
    network, x = Recorder(jnp.zeros((3, 2))), jnp.ones((3, 2))
    short = ddpm_jax.respace(process_of(), [10, 300, 1000])
    apply_network(short, network, "params", x, jnp.array([1, 2, 3]), None, train=False, key=None)
    np.testing.assert_array_equal(network.seen["t"], [9, 299, 999])


def test_everything_else_reaches_the_network_untouched():
    network, x = Recorder(jnp.zeros((3, 2))), jnp.ones((3, 2))
    cond, key = {"label": jnp.arange(3)}, jax.random.key(0)
    apply_network(process_of(), network, "params", x, 1, cond, train=True, key=key)
    seen = network.seen
    assert seen["params"] == "params" and seen["x_t"] is x and seen["cond"] is cond
    assert seen["train"] is True and seen["key"] is key
    make_denoise_fn(process_of(), network, "params", cond)(x, 1)
    assert network.seen["train"] is False and network.seen["key"] is None
    assert network.seen["cond"] is cond


def test_a_bfloat16_output_becomes_float32():
    network, x = Recorder(jnp.full((3, 2), 0.3, jnp.bfloat16)), jnp.ones((3, 2))
    for clip_x_0 in (True, False):
        denoise_fn = make_denoise_fn(process_of(), network, None, clip_x_0=clip_x_0)
        assert all(view.dtype == jnp.float32 for view in denoise_fn(x, 500)[:2])


@jax.jit
def predict_and_rebuild(process, output, x_t, t):
    results = {}
    for kind in KINDS:
        for clip_x_0 in (True, False):
            x_0, eps, _ = make_denoise_fn(
                process, Recorder(output), None, kind=kind, clip_x_0=clip_x_0
            )(x_t, t)
            results[kind, clip_x_0] = x_0, ddpm_jax.q_sample(process, x_0, t, eps)
    return list(results.values())  # in the order of the loops


@pytest.mark.parametrize("schedule", oracles.SCHEDULES)
@pytest.mark.parametrize("T", [1, 10, 1000])
def test_x_t_is_alpha_x_0_plus_sigma_eps_whatever_the_output(schedule, T):
    x_t, output = 3 * np.random.default_rng(0).normal(size=(2, T, 5)).astype(np.float32)
    results = predict_and_rebuild(process_of(schedule, T), output, x_t, np.arange(1, T + 1))
    for (kind, clip_x_0), (x_0, rebuilt) in zip(
        itertools.product(KINDS, (True, False)), results, strict=True
    ):
        if kind in oracles.kinds(schedule):
            np.testing.assert_allclose(rebuilt, x_t, atol=1e-5)
            assert (np.abs(x_0).max() <= 1) == clip_x_0


@pytest.mark.parametrize("kind", KINDS)
def test_clipping_does_not_touch_an_x_0_inside_the_range(kind):
    process = process_of("linear", 10)
    x_0, eps = np.random.default_rng(1).uniform(-0.9, 0.9, (2, 10, 5)).astype(np.float32)
    t = np.arange(1, 11)
    x_t = ddpm_jax.q_sample(process, x_0, t, eps)
    network = Recorder(ddpm_jax.predictions.training_target(process, x_0, eps, t, kind))
    clipped = make_denoise_fn(process, network, None, kind=kind)(x_t, t)
    free = make_denoise_fn(process, network, None, kind=kind, clip_x_0=False)(x_t, t)
    np.testing.assert_array_equal(clipped.x_0, free.x_0)
    np.testing.assert_allclose(clipped.eps, free.eps, atol=1e-5)


def test_clipping_is_to_minus_1_and_1():
    network = Recorder(jnp.array([[-3.0, -0.5, 0.5, 3.0]]))
    found = make_denoise_fn(process_of(), network, None, kind="x_0")(jnp.ones((1, 4)), 9)
    np.testing.assert_array_equal(found.x_0, [[-1.0, -0.5, 0.5, 1.0]])
