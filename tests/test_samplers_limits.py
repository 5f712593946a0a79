"""The limits in the samplers' docstrings: a sampler equals another one, or is exact."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from sampler_cases import DETERMINISTIC, SAMPLERS

import ddpm_jax
from ddpm_jax import samplers, timesteps
from ddpm_jax.errors import UserError
from ddpm_jax.samplers.predictor_corrector import ZERO
from ddpm_jax.types import Prediction

T, SHAPE = 10, (4, 6)
POINT = 0.6
# Every grid has five steps, so that each sampler compiles once
JUMPS = np.array([10, 7, 3, 2, 1, 0])
LAST = np.array([10, 9, 8, 6, 5, 0])
FULL = np.array([5, 4, 3, 2, 1, 0])
SCHEDULES = ("linear", "cosine", "cosine_zero_snr")

seen = []  # the t of each evaluation, as the chains run


def process_of(schedule, T=T):
    return ddpm_jax.make_process(oracles.betas(schedule, T))


def half_point_half_wavy(process):
    """A denoiser that predicts one point in the first half, and a bounded function in the rest."""
    point = oracles.point_denoiser(process, POINT)

    def denoise_fn(x_t, t):
        jax.debug.callback(lambda t: seen.append(int(t)), t)
        alpha_t, sigma_t = oracles.tables(process, t)
        first, rest = jnp.split(x_t, 2, axis=1)
        x_0 = jnp.tanh(rest) * jnp.cos(jnp.asarray(t, jnp.float32) / 1.5)
        wavy = Prediction(x_0, (rest - alpha_t * x_0) / sigma_t)
        both = point(first, t), wavy
        return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *both)

    return denoise_fn


@functools.partial(jax.jit, static_argnames="name")
def run(process, keys, x_T, grid, name):
    return samplers.sample_loop(
        SAMPLERS[name](process),
        half_point_half_wavy(process),
        keys,
        grid,
        x_T,
        lambda t, s, state, prediction: (state.x, prediction.x_0),
    )


def setting(shape=SHAPE):
    keys = jax.random.split(jax.random.key(0), shape[0])
    return keys, np.random.default_rng(0).normal(size=shape).astype(np.float32)


def chain(name, process, grid):
    """x_s: [5, B, 6] and x_0-hat: [5, B, 6] of each step."""
    x_0, (x_s, x_0_hat) = run(process, *setting(), grid, name)
    np.testing.assert_array_equal(x_0, x_s[-1])
    return np.asarray(x_s), np.asarray(x_0_hat)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("first", "second"),
    [("ddim eta 1", "ancestral fixed_small"), ("euler", "ddim")],
    ids=["eta 1 is ancestral sampling with fixed_small", "Euler is DDIM"],
)
def test_two_names_for_one_sampler(schedule, first, second):
    for grid in (JUMPS, LAST, FULL):
        ours, theirs = (chain(name, process_of(schedule), grid)[0] for name in (first, second))
        np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=2e-6)


def test_eta_1_is_ancestral_sampling_with_fixed_small_on_a_long_chain():
    process, grid = process_of("linear", 1000), timesteps.quadratic(1000, 50)
    names = "ddim eta 1", "ancestral fixed_small"
    ours, theirs = (run(process, *setting(), grid, name)[1][0] for name in names)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_on_the_full_chain_dpm_solver_2s_is_ddim(schedule):
    """On the full chain no timestep is between t and s. On a coarser grid 2S differs from DDIM."""
    for grid, same in ((FULL, True), (LAST, False)):
        names = "dpm_solver_pp_2s", "ddim"
        ours, theirs = (chain(name, process_of(schedule), grid)[0] for name in names)
        assert np.allclose(ours, theirs, atol=2e-6) == same


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("dpm_solver_pp_2m", "ddim"),
        ("dpm_solver_pp_3m", "ddim"),
        ("unipc 2", "ddim"),
        ("unipc 3", "ddim"),
        ("dpm_solver_pp_2m sde", "ddim eta 1"),
    ],
)
def test_the_first_step_is_that_of_ddim(schedule, name, of):
    ours, theirs = (chain(n, process_of(schedule), JUMPS)[0] for n in (name, of))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=2e-6, atol=2e-6)
    assert np.abs(ours[2] - theirs[2]).max() > 1e-3


def test_3m_takes_its_second_step_as_2m_and_its_third_otherwise():
    names = "dpm_solver_pp_3m", "dpm_solver_pp_2m"
    ours, theirs = (chain(name, process_of("linear"), JUMPS)[0] for name in names)
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-6)
    assert np.abs(ours[2] - theirs[2]).max() > 1e-3


def test_without_corrections_predictor_corrector_is_ancestral_sampling():
    process, (keys, x_T) = process_of("linear"), setting()
    denoise_fn = half_point_half_wavy(process)
    sampler = samplers.predictor_corrector(process, "fixed_small", num_corrections=0)
    ancestral = samplers.ancestral(process, "fixed_small")
    ours, _ = sampler.step(denoise_fn, keys, sampler.init(x_T), 7, 3)
    own_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 0)
    theirs, _ = ancestral.step(denoise_fn, own_keys, ancestral.init(x_T), 7, 3)
    np.testing.assert_allclose(ours.x, theirs.x, rtol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-9, 1.0])
def test_predictor_corrector_and_its_gradient_are_finite_where_the_score_is_zero(scale):
    process, (keys, x_T) = process_of("linear"), setting()

    def stepped(scale, num_corrections=1):
        def denoise_fn(x_t, t):
            alpha_t, sigma_t = oracles.tables(process, t)
            eps = scale * x_t
            return Prediction((x_t - sigma_t * eps) / alpha_t, eps)

        sampler = samplers.predictor_corrector(process, num_corrections=num_corrections)
        return sampler.step(denoise_fn, keys, sampler.init(x_T), 7, 3)[0].x

    x, slope = jax.jvp(stepped, (scale,), (1.0,))
    assert np.isfinite(x).all() and np.isfinite(slope).all()
    assert np.isfinite(jax.grad(lambda scale: stepped(scale).sum())(scale))
    corrected = np.abs(x - stepped(scale, 0)).max() > 1e-6
    assert corrected == (scale > ZERO)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_last_step_returns_x_0_hat_bit_for_bit(name):
    for schedule in SCHEDULES:
        for grid in (JUMPS, LAST, FULL):
            x_s, x_0_hat = chain(name, process_of(schedule), grid)
            np.testing.assert_array_equal(x_s[-1], x_0_hat[-1])
            assert np.ptp(x_s[-1]) > 0.1


@pytest.mark.parametrize("name", SAMPLERS)
def test_data_that_are_one_point_are_returned_exactly(name):
    for schedule in SCHEDULES:
        for grid in (JUMPS, LAST, FULL):
            x_s, _ = chain(name, process_of(schedule), grid)
            np.testing.assert_array_equal(x_s[-1, :, :3], np.float32(POINT))


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_for_a_point_a_deterministic_path_keeps_its_noise(name):
    """x_s = alpha_s point + sigma_s eps with one eps for all s: the flow is a straight line."""
    for schedule in SCHEDULES:
        process = process_of(schedule)
        x_s, _ = chain(name, process, JUMPS)
        alpha, sigma = np.asarray(oracles.tables(process, jnp.arange(T + 1)))
        eps = (setting()[1][:, :3] - alpha[T] * POINT) / sigma[T]
        for s, x in zip(JUMPS[1:], x_s[:, :, :3], strict=True):
            np.testing.assert_allclose(x, alpha[s] * POINT + sigma[s] * eps, atol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_number_of_evaluations_is_what_the_docstring_says(name):
    """Count the calls while the chain runs: a branch that is not taken makes no call."""
    for schedule, expected in (
        ("linear", {"heun": 9, "dpm_solver_pp_2s": 7, "predictor_corrector": 10}),
        ("cosine_zero_snr", {"heun": 8, "dpm_solver_pp_2s": 6, "predictor_corrector": 10}),
    ):
        seen.clear()
        chain(name, process_of(schedule), JUMPS)
        jax.effects_barrier()
        assert len(seen) == expected.get(name.split()[0], 5)
        assert min(seen) >= 1  # never at clean data


def test_encoding_an_image_and_sampling_it_returns_it():
    """From x_0 itself, on a chain from clean data to noise and back."""
    process, errors = process_of("linear", 1000), []
    covariance = np.array([[0.5, 0.3, 0.0], [0.3, 0.4, 0.1], [0.0, 0.1, 0.2]])
    denoise_fn = oracles.gaussian_denoiser(process, covariance)
    rng = np.random.default_rng(0)
    x_0 = jnp.asarray(rng.multivariate_normal(np.zeros(3), covariance, 64), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 64)
    for num_steps in (50, 200):
        grid = timesteps.quadratic(1000, num_steps)
        x_T = samplers.encode(process, denoise_fn, grid, x_0)
        back = samplers.sample_loop(samplers.ddim(process), denoise_fn, keys, grid, x_T)
        errors.append(np.sqrt(np.mean((back - x_0) ** 2)))
    assert errors[1] < 0.3 * errors[0] and errors[1] < 0.02
    # the code of data is noise: the flow of a Gaussian is the matrix that whitens it
    np.testing.assert_allclose(np.sqrt(np.mean(x_T**2)), np.sqrt(np.mean(
        (x_0 @ np.linalg.inv(np.linalg.cholesky(covariance)).T) ** 2)), rtol=0.02)  # fmt: skip


def test_the_first_step_of_inversion_asks_at_its_target():
    process, seen = process_of("linear", 1000), []
    x_0 = setting()[1]

    def denoise_fn(x_t, t):
        seen.append((np.asarray(x_t), int(t)))
        return Prediction(x_t * 9.0, x_t * 0.5)

    step = samplers.ddim_inversion(process).step
    state = samplers.ddim_inversion(process).init(x_0)
    after, _ = step(denoise_fn, None, state, jnp.int32(0), jnp.int32(20))
    alpha, sigma = (np.asarray(table) for table in oracles.tables(process, 20))
    np.testing.assert_allclose(seen[0][0], alpha * x_0, rtol=1e-6)
    assert seen[0][1] == 20
    np.testing.assert_allclose(after.x, alpha * x_0 + sigma * 0.5 * alpha * x_0, rtol=1e-6)
    after, _ = step(denoise_fn, None, state, jnp.int32(5), jnp.int32(20))
    np.testing.assert_array_equal(seen[1][0], x_0)
    assert seen[1][1] == 5
    np.testing.assert_allclose(after.x, alpha * 9.0 * x_0 + sigma * 0.5 * x_0, rtol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda p: samplers.ddim(p, 1.1), r"eta must be in \[0, 1\], found 1.1"),
        (lambda p: samplers.ddim(p, -0.1), r"eta must be in \[0, 1\], found -0.1"),
        (lambda p: samplers.euler(p, 0.5), r"gamma must be in \[0, 0.4142\].*found 0.5"),
        (lambda p: samplers.heun(p, -0.1), r"gamma must be in .* found -0.1"),
        (lambda p: samplers.heun(p, 0.1, 3.0, 2.0), "s_min <= s_max, found 3.0 and 2.0"),
        (lambda p: samplers.heun(p, 0.1, s_noise=0.0), "s_noise must be > 0, found 0.0"),
        (lambda p: samplers.unipc(p, 4), "order must be 2 or 3, found 4"),
        (lambda p: samplers.predictor_corrector(p, snr=0.0), "snr must be > 0, found 0.0"),
        (
            lambda p: samplers.predictor_corrector(p, num_corrections=-1),
            "num_corrections must be >= 0, found -1",
        ),
        (lambda p: samplers.predictor_corrector(p, "fixed"), "unknown variance 'fixed'"),
    ],
)
def test_an_option_out_of_its_range_is_an_error(build, message):
    with pytest.raises(UserError, match=message):
        build(process_of("linear", 10))
