"""What every sampler promises, over schedules x kinds x samplers x numbers of steps.

A new sampler joins by a line in `sampler_cases`, a new kind or schedule by itself.
"""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from sampler_cases import SAMPLERS

import ddpm_jax
from ddpm_jax import build, samplers, timesteps
from ddpm_jax.denoise import apply_network, make_denoise_fn
from ddpm_jax.predictions import KINDS
from ddpm_jax.randomness import draw_x_T

T, SHAPE = 1000, (3, 2, 1)
# (T, number of steps): all numbers of steps on a short chain, and a long chain whole
SLOW = [pytest.param(*c, marks=pytest.mark.slow) for c in ((10, 1), (10, 2), (10, 10), (T, T))]
CHAINS = [(10, 3), *SLOW]
# Each kind once, with an affine, a multi-step and a two-evaluation sampler, where every case costs
# compilations of its own
SOME = [("eps", "ancestral fixed_large"), ("x_0", "unipc 3"), ("v", "heun churn")]
PARAMS = {"w": np.float32(0.7)}
LABELS = np.arange(20, dtype=np.int32) % 3

traces = []


def network(params, x_t, t, cond, *, train, key):
    """An analytic network that depends on everything it is given."""
    traces.append(x_t.shape)
    wave = jnp.sin(t.astype(jnp.float32) / 100)[:, None, None, None]
    output = params["w"] * jnp.tanh(x_t) + 0.3 * wave * x_t
    if cond is None:
        return output
    return output + 0.1 * cond["label"].astype(jnp.float32)[:, None, None, None]


@jax.jit
def run(process, keys, grid):
    """x_0 of each case: [sampler, kind, B, *SHAPE]; process and grid are arguments, so one
    compilation serves every schedule and respacing of the same length, and all kinds share it."""
    x_T = draw_x_T(keys, SHAPE)

    def of_kind(sampler, kind):
        def denoise_fn(x_t, t):
            output = apply_network(process, network, PARAMS, x_t, t, None, train=False, key=None)
            say = lambda *args, **kwargs: output  # noqa: E731
            each = [make_denoise_fn(process, say, None, kind=name)(x_t, t) for name in KINDS]
            return jax.tree.map(lambda *leaves: jnp.stack(leaves)[kind], *each)

        return samplers.sample_loop(sampler, denoise_fn, keys, grid, x_T)

    return jnp.stack(
        [
            jax.vmap(lambda kind: of_kind(sampler(process), kind))(jnp.arange(len(KINDS)))  # noqa: B023
            for sampler in SAMPLERS.values()
        ]
    )


def processes(T):
    return {s: ddpm_jax.make_process(oracles.betas(s, T)) for s in oracles.SCHEDULES}


def test_every_schedule_and_sampler_of_the_configs_is_here():
    assert set(oracles.BASE_SCHEDULES) == set(build.SCHEDULES)
    assert {name.split()[0] for name in SAMPLERS} == set(build.SAMPLERS)


@pytest.mark.parametrize(("T", "num_steps"), CHAINS)
def test_samples_are_finite_and_in_range_and_every_schedule_shares_one_trace(T, num_steps):
    keys = jax.random.split(jax.random.key(0), 5)
    grid = timesteps.uniform(T, num_steps)
    traces.clear()
    for schedule, process in processes(T).items():
        x = np.asarray(run(process, keys, grid))
        assert x.shape == (len(SAMPLERS), len(KINDS), 5, *SHAPE) and x.dtype == np.float32
        for sampler, images in zip(SAMPLERS, x, strict=True):
            for kind, of_kind in zip(KINDS, images, strict=True):
                if kind in oracles.kinds(schedule):
                    assert np.all(np.abs(of_kind) <= 1), (schedule, kind, sampler)  # and not NaN
                    assert of_kind.std() > 0.01, (schedule, kind, sampler)
    # Once for each place in a step that looks at x_t, whatever the number of steps
    places = {"heun": 2, "dpm_solver_pp_2s": 2, "predictor_corrector": 2}
    assert len(traces) == sum(places.get(name.split()[0], 1) for name in SAMPLERS)


@pytest.mark.parametrize(("T", "num_steps"), CHAINS)
def test_an_image_depends_on_its_own_key_and_on_no_neighbour(T, num_steps):
    keys = jax.random.split(jax.random.key(0), 5)
    others = jax.random.split(jax.random.key(1), 5).at[3].set(keys[3])
    grid, process = timesteps.uniform(T, num_steps), processes(T)["cosine"]
    first, second = (np.asarray(run(process, k, grid)) for k in (keys, others))
    np.testing.assert_array_equal(first[:, :, 3], second[:, :, 3])
    for i in (0, 1, 2, 4):
        assert np.all(np.abs(first - second)[:, :, i].max(axis=(2, 3, 4)) > 1e-3)


@pytest.mark.slow
def test_fewer_images_are_a_prefix_of_more_for_every_sampler():
    process, grid = processes(10)["cosine"], timesteps.uniform(10, 3)
    keys = jax.random.split(jax.random.key(0), 5)
    np.testing.assert_array_equal(run(process, keys, grid)[:, :, :3], run(process, keys[:3], grid))


def make(kind, sampler, num_steps=3, **options):
    process = ddpm_jax.make_process(oracles.betas("linear", T))
    return ddpm_jax.make_sample(
        process,
        network,
        shape=SHAPE,
        sampler=SAMPLERS[sampler](process),
        kind=kind,
        timesteps=timesteps.uniform(T, num_steps),
        **options,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "sampler"), SOME)
def test_fewer_images_are_a_prefix_of_more_and_chunks_are_the_whole(kind, sampler):
    sample, key = make(kind, sampler), jax.random.key(7)
    traces.clear()
    eight, three = sample(PARAMS, key, 8), sample(PARAMS, key, 3)
    once = len(traces)  # 3 is padded to the 8 devices
    assert once == (2 if sampler.startswith("heun") else 1)
    np.testing.assert_array_equal(eight[:3], three)
    chunks = list(ddpm_jax.sample_in_chunks(sample, PARAMS, key, 20, 8))
    assert [chunk.shape for chunk in chunks] == [(7, *SHAPE), (7, *SHAPE), (6, *SHAPE)]
    assert len(traces) == once  # the short last chunk compiles nothing
    np.testing.assert_array_equal(chunks[0], eight[:7])
    twenty = sample(PARAMS, key, 20)
    np.testing.assert_array_equal(np.concatenate(chunks), twenty)


def some_cases(path):
    """Draw with conditioning on whatever devices there are, and save."""
    images = {
        f"{kind} {sampler}": make(kind, sampler)(
            PARAMS, jax.random.key(3), 5, {"label": LABELS[:5]}
        )
        for kind, sampler in SOME[:2]
    }
    np.savez(path, devices=jax.local_device_count(), **images)


@pytest.mark.slow
def test_one_device_and_eight_draw_the_same_images_bit_for_bit(tmp_path):
    tests = Path(__file__).parent
    environment = os.environ | {
        "XLA_FLAGS": "",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]),
    }
    subprocess.run(
        [
            sys.executable,
            "-c",
            f"import test_contracts as t; t.some_cases({str(tmp_path / 'one')!r})",
        ],
        env=environment,
        check=True,
    )
    some_cases(tmp_path / "eight")
    one, eight = (dict(np.load(tmp_path / f"{name}.npz")) for name in ("one", "eight"))
    assert (one.pop("devices"), eight.pop("devices")) == (1, 8)
    for name in one:
        np.testing.assert_array_equal(one[name], eight[name], err_msg=name)
