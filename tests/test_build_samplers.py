"""Samplers and grids that the config names: how they are built, get their options, are refused."""

import dataclasses
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import ddpm_jax
from ddpm_jax import build, samplers
from ddpm_jax.build.sampling import _churn
from ddpm_jax.config import Config, SampleConfig, from_dict
from ddpm_jax.errors import UserError
from ddpm_jax.models import Model

PROCESS = ddpm_jax.make_process(oracles.betas("linear", 100))


def network(params, x_t, t, cond, *, train, key):
    return 0.5 * x_t


MODEL = Model(init=None, apply=network)


@pytest.mark.parametrize("name", build.SAMPLERS)
def test_every_sampler_is_built_and_draws(name):
    config = Config(sample=SampleConfig(sampler=name, num_steps=3))
    keep = dict(collect=samplers.predicted_x_0, num_frames=2)
    sample = build.sample_fn(config, PROCESS, MODEL, (2, 2, 1), **keep)
    images, frames = sample(None, jax.random.key(0), 8)
    assert frames.shape == (2, 8, 2, 2, 1)
    np.testing.assert_array_equal(frames[-1], images)  # x_0-hat of the last step


@pytest.mark.parametrize("name", build.GRIDS)
def test_every_grid_is_built(name):
    grid = build.GRIDS[name].build(PROCESS, 7, SampleConfig())
    first = 85 if name == "leading" else 100  # 1 + 6 (100 // 7)
    assert len(grid) == 8 and grid[0] == first and grid[-1] == 0


CHANGES = {
    "ancestral": dict(variance="fixed_small"),
    "ddim": dict(eta=1.0),
    "euler": dict(s_churn=10.0),
    "heun": dict(s_churn=10.0, s_noise=1.1),
    "dpm_solver_pp_2m": dict(stochastic=True),
    "unipc": dict(order=3),
    "predictor_corrector": dict(corrector_snr=0.3, num_corrections=2),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_options_reach_the_sampler(name):
    keys, x_T = jax.random.split(jax.random.key(0), 2), jnp.ones((2, 3))
    x_0 = []
    for change in ({}, CHANGES[name]):
        config = SampleConfig(sampler=name, num_steps=20, **change)
        sampler = build.sampler(config, PROCESS)
        grid = build.grid(config, PROCESS)
        x_0.append(
            samplers.sample_loop(sampler, oracles.mixture_denoiser(PROCESS), keys, grid, x_T)
        )
    assert np.abs(x_0[0] - x_0[1]).max() > 1e-4


def test_churn_is_shared_by_the_steps_and_capped():
    config = SampleConfig(sampler="heun", s_churn=30.0, num_steps=100, s_min=0.1, s_noise=1.01)
    assert _churn(PROCESS, config) == dict(gamma=0.3, s_min=0.1, s_max=np.inf, s_noise=1.01)
    few = dataclasses.replace(config, num_steps=10, s_max=5.0)
    assert _churn(PROCESS, few)["gamma"] == pytest.approx(np.sqrt(2) - 1)
    assert _churn(PROCESS, few)["s_max"] == 5.0
    assert _churn(PROCESS, dataclasses.replace(config, num_steps=0))["gamma"] == 0.3


OPTIONS = sorted({option for row in build.SAMPLERS.values() for option in row.options})


@pytest.mark.parametrize("name", build.SAMPLERS)
def test_a_sampler_reads_the_options_of_its_row_and_no_others(name):
    """A config with only those options builds the sampler. Without one of them it does not."""
    used = dict.fromkeys(build.SAMPLERS[name].options) | {"num_steps": 3}
    build.SAMPLERS[name].build(PROCESS, types.SimpleNamespace(**only(used)))
    for option in build.SAMPLERS[name].options:
        fewer = {key: None for key in used if key != option}
        with pytest.raises(AttributeError, match=option):
            build.SAMPLERS[name].build(PROCESS, types.SimpleNamespace(**only(fewer)))


def only(names):
    return {name: getattr(SampleConfig(num_steps=3), name) for name in names}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_that_the_sampler_does_not_use_is_an_error(option):
    default = getattr(SampleConfig, option)
    value = {"variance": "fixed_small", "stochastic": True}.get(option)
    value = default + 1 if value is None else value
    config = SampleConfig(sampler="dpm_solver_pp_3m", **{option: value})
    users = ", ".join(name for name, row in build.SAMPLERS.items() if option in row.options)
    message = (
        f"sample.{option} is {value!r}, but sample.sampler=dpm_solver_pp_3m does not use it "
        f"({users}: yes); leave it at {default!r}"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        build.sampler(config, PROCESS)


def test_rho_without_the_karras_grid_and_unknown_names_are_errors():
    for sample, message in (
        (dict(rho=5.0), "sample.rho is 5.0, but sample.timesteps=.* does not use it .karras: yes"),
        (dict(timesteps="karas"), "unknown sample.timesteps 'karas'; did you mean 'karras'"),
        (dict(sampler="dpm_solver_pp"), "unknown sample.sampler 'dpm_solver_pp'; did you mean"),
        (dict(sampler="unipc", order=4), r"sample.order must be in \[2, 3\], found 4"),
    ):
        with pytest.raises(UserError, match=message):
            config = from_dict({"sample": sample})
            build.sample_fn(config, PROCESS, MODEL, (2, 2, 1))
