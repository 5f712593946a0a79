"""Integers given as x_0 are refused by every function that takes clean data.

In JAX's default promotion, which users have, uint8 pixels pass through all arithmetic in silence.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax import editing, losses, noisy_classifier, samplers
from ddpm_jax.errors import UserError
from ddpm_jax.likelihood import continuous, ode, terms
from ddpm_jax.types import Prediction

pytestmark = pytest.mark.loose_promotion(reason="integers meet floats, as in a user's program")

PROCESS = ddpm_jax.make_process(ddpm_jax.schedules.linear(20, beta_1=0.05, beta_T=0.6))
SAMPLER = samplers.ancestral(PROCESS)
GRID = np.array([2, 1, 0])
T, EPS = jnp.full(2, 2, jnp.int32), jnp.zeros((2, 2, 2, 1))
KEYS = jax.random.split(jax.random.key(0), 2)
NETWORK = dict(train=False, key=None)


def network(params, x_t, t, cond, *, train, key):
    return 0.5 * x_t


def denoise_fn(x_t, t):
    return Prediction(x_t, x_t)


CALLS = {
    "q_sample": lambda x: ddpm_jax.q_sample(PROCESS, x, T, EPS),
    "q_mean_variance": lambda x: ddpm_jax.q_mean_variance(PROCESS, x, T),
    "q_posterior": lambda x: ddpm_jax.q_posterior(PROCESS, x, EPS, T),
    "denoising_loss": lambda x: losses.denoising_loss(PROCESS, network, None, x, T, EPS, **NETWORK),
    "noisy classifier": lambda x: noisy_classifier.label_loss(
        PROCESS, lambda *args, **kwargs: EPS[:, 0, :, 0], None, x, T, T, EPS, **NETWORK
    ),
    "prior_term": lambda x: terms.prior_term(PROCESS, x),
    "step_term": lambda x: terms.step_term(PROCESS, Prediction(EPS, EPS), x, EPS, T),
    "continuous bound": lambda x: continuous.bound_terms(
        network,
        None,
        (jnp.float32(-5), jnp.float32(5)),
        lambda u: u,
        x,
        jnp.full(2, 0.5),
        EPS,
        told=(-5, 5),
        **NETWORK,
    ),
    "ode": lambda x: ode.make_log_prob(PROCESS, network)(None, KEYS[0], x),
    "encode": lambda x: samplers.encode(PROCESS, denoise_fn, np.arange(20, -1, -1), x),
    "sdedit": lambda x: editing.sdedit(PROCESS, SAMPLER, denoise_fn, KEYS, x, GRID),
    "interpolate": lambda x: editing.interpolate(
        PROCESS, SAMPLER, denoise_fn, KEYS, EPS, x, 0.5, GRID
    ),
    "inpaint": lambda x: editing.inpaint(
        PROCESS, SAMPLER, denoise_fn, KEYS, x, np.ones((2, 2, 1)), np.arange(20, -1, -1)
    ),
}


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
@pytest.mark.parametrize("name", CALLS)
def test_integers_as_x_0_are_refused_in_one_line(name, dtype):
    x_0 = np.full((2, 2, 2, 1), 200, dtype)
    with pytest.raises(UserError, match=f"x_0 must be float, .* found {dtype.__name__}; convert"):
        CALLS[name](x_0)
