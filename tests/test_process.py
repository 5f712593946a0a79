import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import ddpm_jax
from ddpm_jax import timesteps
from ddpm_jax.errors import UserError
from ddpm_jax.process import jump, posterior_log_variance

ULP = 1.2e-7  # rounding of float32, relative
# Compiled: uncompiled, each new shape costs seconds
q_sample, q_one_step = jax.jit(ddpm_jax.q_sample), jax.jit(ddpm_jax.q_one_step)
q_mean_variance, q_posterior = jax.jit(ddpm_jax.q_mean_variance), jax.jit(ddpm_jax.q_posterior)
chains = pytest.mark.parametrize(("schedule", "T"), oracles.CHAINS)


def process_of(schedule, T):
    return ddpm_jax.make_process(oracles.betas(schedule, T))


def some_pairs(T):
    """Return pairs (t, s) with s < t: all if T <= 10, otherwise ends, neighbours and long jumps."""
    if T <= 10:
        return [(t, s) for t in range(1, T + 1) for s in range(t)]
    ts = np.array([1, 2, 3, 7, 50, T // 2, T - 1, T])
    return [(t, s) for t in ts for s in {0, 1, 2, 40, t // 3, t - 2, t - 1} if 0 <= s < t]


@chains
def test_tables_are_the_solution_of_the_chain(schedule, T):
    process = process_of(schedule, T)
    mean, covariance = oracles.chain_moments(schedule, T)
    variance = np.diag(covariance)
    for field, expected in {
        "betas": np.append(0.0, oracles.betas(schedule, T)),
        "sqrt_alphas_cumprod": mean,
        "alphas_cumprod": mean**2,
        "sqrt_one_minus_alphas_cumprod": np.sqrt(variance),
    }.items():
        np.testing.assert_allclose(getattr(process, field), expected, rtol=ULP, err_msg=field)
    with np.errstate(divide="ignore"):
        log_snr = 2 * np.log(mean) - np.log(variance)
    np.testing.assert_allclose(process.log_snr, log_snr, rtol=ULP, atol=ULP)


@chains
def test_tables_have_T_plus_1_float32_entries_that_start_at_clean_data(schedule, T):
    process = process_of(schedule, T)
    assert process.num_timesteps == T
    for field in dataclasses.fields(process):
        table = getattr(process, field.name)
        assert isinstance(table, jax.Array) and table.shape == (T + 1,), field.name
        assert table.dtype == (jnp.int32 if field.name == "timesteps" else jnp.float32)
        assert not np.any(np.isnan(table)), field.name
    assert process.alphas_cumprod[0] == 1 and process.sqrt_alphas_cumprod[0] == 1
    assert process.betas[0] == 0 and process.sqrt_one_minus_alphas_cumprod[0] == 0
    np.testing.assert_array_equal(process.timesteps, np.arange(T + 1))


@chains
def test_the_posterior_is_bayes_rule(schedule, T):
    process = process_of(schedule, T)
    ts = range(2, T + 1) if T <= 10 else [2, 3, 50, T // 2, T - 1, T]
    for t in ts:
        c_1, c_2, variance = oracles.posterior(schedule, T, t, t - 1)
        np.testing.assert_allclose(process.posterior_mean_coef1[t], c_1, rtol=1e-6)
        np.testing.assert_allclose(process.posterior_mean_coef2[t], c_2, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(process.posterior_variance[t], variance, rtol=1e-6)


@chains
def test_the_posterior_of_any_jump_is_bayes_rule(schedule, T):
    process = process_of(schedule, T)
    x_0, x_t = jnp.full((1, 2), 0.7), jnp.full((1, 2), -1.3)
    for t, s in some_pairs(T):
        mean, variance, log_variance = q_posterior(process, x_0, x_t, t, s)
        if s == 0:  # the mean is exactly x_0
            np.testing.assert_array_equal(mean, x_0)
            assert variance == 0 and np.isfinite(log_variance)
            continue
        c_1, c_2, expected = oracles.posterior(schedule, T, t, s)
        np.testing.assert_allclose(mean, c_1 * x_0 + c_2 * x_t, rtol=2e-6, atol=1e-6)
        np.testing.assert_allclose(variance[0, 0], expected, rtol=2e-6)
        np.testing.assert_allclose(log_variance[0, 0], np.log(expected), rtol=1e-6, atol=2e-6)


@jax.jit
def both_posteriors(process, x_0, x_t, t):
    return (
        ddpm_jax.q_posterior(process, x_0, x_t, t),
        ddpm_jax.q_posterior(process, x_0, x_t, t, t - 1),
    )


@chains
def test_the_posterior_without_s_is_the_neighbouring_jump(schedule, T):
    x_0, x_t = np.random.default_rng(0).normal(size=(2, T, 3)).astype(np.float32)
    tables, jumps = both_posteriors(process_of(schedule, T), x_0, x_t, np.arange(1, T + 1))
    for table, jumped in zip(tables, jumps, strict=True):
        np.testing.assert_allclose(table, jumped, rtol=2e-6, atol=2e-6)


@chains
def test_the_clipped_log_variance_is_hos(schedule, T):
    process = process_of(schedule, T)
    clipped = np.asarray(process.posterior_log_variance_clipped)
    if T == 1:
        assert clipped[1] == pytest.approx(np.log(oracles.betas(schedule, 1)[0]), rel=1e-6)
    else:
        assert clipped[1] == clipped[2]
        expected = np.log(np.asarray(process.posterior_variance[2:]))
        np.testing.assert_allclose(clipped[2:], expected, rtol=1e-6, atol=1e-6)
    t = np.arange(1, T + 1)
    ours = jax.jit(posterior_log_variance)(process, t, t - 1)
    np.testing.assert_allclose(ours, clipped[1:], rtol=1e-6, atol=1e-6)


@chains
def test_a_jump_between_any_two_timesteps_holds_to_float32_rounding(schedule, T):
    process = process_of(schedule, T)
    mean, covariance = oracles.chain_moments(schedule, T)
    t, s = np.array(some_pairs(T)).T
    # x_t = ratio x_s + noise is the regression of x_t on x_s; at s = 0 x_s is the constant x_0
    ratio = np.where(s == 0, mean[t], covariance[t, s] / np.where(s == 0, 1, covariance[s, s]))
    residual = covariance[t, t] - ratio**2 * covariance[s, s]
    ours = jump(process, jnp.asarray(t), jnp.asarray(s))
    np.testing.assert_allclose(ours[0], ratio, rtol=5e-7, atol=1e-30)
    np.testing.assert_allclose(ours[1], residual, rtol=5e-7)


@chains
def test_q_sample_is_the_composition_of_one_steps(schedule, T):
    process = process_of(schedule, T)
    t, one, zero = jnp.arange(1, T + 1), jnp.ones((T, 1)), jnp.zeros((T, 1))
    signal = np.asarray(q_one_step(process, one, t, zero), np.float64)[:, 0]
    noise = np.asarray(q_one_step(process, zero, t, one), np.float64)[:, 0]
    variance = np.zeros(T)
    for i in range(T):
        variance[i] = signal[i] ** 2 * (variance[i - 1] if i else 0.0) + noise[i] ** 2
    np.testing.assert_allclose(q_sample(process, one, t, zero)[:, 0], np.cumprod(signal), rtol=1e-4)
    np.testing.assert_allclose(q_sample(process, zero, t, one)[:, 0], np.sqrt(variance), rtol=1e-5)


def test_q_sample_adds_signal_and_noise_of_each_image_at_its_own_t():
    process = process_of("linear", 1000)
    x_0, eps = np.random.default_rng(0).normal(size=(2, 4, 3, 5, 1)).astype(np.float32)
    t = jnp.array([0, 1, 500, 1000])
    x_t = q_sample(process, jnp.asarray(x_0), t, jnp.asarray(eps))
    alphas_cumprod = [1.0] + [np.prod(1 - oracles.betas("linear", 1000)[:n]) for n in t[1:]]
    for i, a in enumerate(alphas_cumprod):
        expected = np.sqrt(a) * x_0[i] + np.sqrt(1 - a) * eps[i]
        np.testing.assert_allclose(x_t[i], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(x_t[0], x_0[0])  # t = 0 is clean data


@pytest.mark.parametrize("shape", [(3,), (3, 4, 8, 1), (3, 8, 4, 4)])
def test_a_scalar_t_is_the_same_as_a_batch_of_it(shape):
    process = process_of("cosine", 10)
    x, eps = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)

    @jax.jit
    def outputs(t):
        return (
            ddpm_jax.q_sample(process, x, t, eps),
            ddpm_jax.q_one_step(process, x, t, eps),
            ddpm_jax.q_mean_variance(process, x, t)[0],
            ddpm_jax.q_posterior(process, x, eps, t)[0],
            ddpm_jax.q_posterior(process, x, eps, t, t - 3)[0],
        )

    for scalar, batch in zip(outputs(6), outputs(np.full(3, 6)), strict=True):
        assert batch.shape == shape
        np.testing.assert_allclose(scalar, batch, rtol=1e-6, atol=1e-6)


@chains
def test_q_mean_variance_is_the_distribution_of_q_sample(schedule, T):
    process = process_of(schedule, T)
    t = jnp.arange(1, T + 1)
    x_0 = jnp.full((T, 2), 0.3)
    mean, variance, log_variance = q_mean_variance(process, x_0, t)
    zero = jnp.zeros_like(x_0)
    np.testing.assert_array_equal(mean, q_sample(process, x_0, t, zero))
    # q_sample is linear in eps, so its derivative is the standard deviation
    _, sigma = jax.jvp(lambda eps: q_sample(process, x_0, t, eps), (zero,), (jnp.ones_like(x_0),))
    np.testing.assert_allclose(variance, sigma[:, :1] ** 2, rtol=1e-6)
    np.testing.assert_allclose(log_variance, np.log(variance), rtol=1e-6, atol=1e-6)


@chains
def test_snr_is_signal_power_over_noise_power(schedule, T):
    process = process_of(schedule, T)
    mean, covariance = oracles.chain_moments(schedule, T)
    snr = ddpm_jax.snr(process, jnp.arange(T + 1))
    assert np.isposinf(snr[0])
    np.testing.assert_allclose(snr[1:], mean[1:] ** 2 / np.diag(covariance)[1:], rtol=1e-6)
    assert np.all(np.diff(snr) < 0)
    assert (snr[-1] == 0) == oracles.is_zero_snr(schedule)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "cosine_zero_snr"])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 50, 700])
def test_a_respaced_chain_is_the_original_seen_at_fewer_timesteps(schedule, num_steps):
    process = process_of(schedule, 700)
    kept = timesteps.uniform(700, num_steps)[-2::-1]
    short = ddpm_jax.respace(process, kept)
    whole = np.append(0, kept)
    assert short.num_timesteps == num_steps
    for field in ("alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "log_snr", "timesteps"):
        np.testing.assert_array_equal(getattr(short, field), getattr(process, field)[whole])
    mean, covariance = oracles.chain_moments(schedule, 700)
    for i, (t, s) in enumerate(zip(whole[1:], whole, strict=False), start=1):
        ratio = mean[t] / mean[s] if s == 0 else covariance[t, s] / covariance[s, s]
        beta = covariance[t, t] - ratio**2 * covariance[s, s]
        np.testing.assert_allclose(short.betas[i], beta, rtol=ULP)
        if s > 0 and i % 37 == 1:
            c_1, c_2, variance = oracles.posterior(schedule, 700, t, s)
            np.testing.assert_allclose(short.posterior_mean_coef1[i], c_1, rtol=1e-6)
            np.testing.assert_allclose(short.posterior_mean_coef2[i], c_2, rtol=1e-6, atol=1e-9)
            np.testing.assert_allclose(short.posterior_variance[i], variance, rtol=1e-6)


@chains
def test_respacing_to_every_timestep_changes_nothing(schedule, T):
    process = process_of(schedule, T)
    again = ddpm_jax.respace(process, np.arange(1, T + 1))
    jax.tree.map(np.testing.assert_array_equal, process, again)


def test_respacing_twice_is_respacing_once_and_remembers_the_original_timesteps():
    process = process_of("linear", 1000)
    once = ddpm_jax.respace(process, [10, 300, 1000])
    twice = ddpm_jax.respace(ddpm_jax.respace(process, [10, 200, 300, 900, 1000]), [1, 3, 5])
    np.testing.assert_array_equal(once.timesteps, [0, 10, 300, 1000])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=ULP), once, twice)


@pytest.mark.parametrize("kept", [[], [0, 5], [5, 3], [3, 3], [5, 11], [-1, 5]])
def test_respacing_to_timesteps_that_do_not_ascend_in_1_to_T_is_an_error(kept):
    with pytest.raises(UserError, match=r"timesteps must ascend strictly within 1..10 \(T\)"):
        ddpm_jax.respace(process_of("linear", 10), kept)


@pytest.mark.parametrize(
    "betas", [[], 0.1, [[0.1]], [0.0, 0.1], [0.1, 1.5], [1.0, 0.1], [0.1, -0.1], [0.1, np.nan]]
)
def test_betas_outside_the_unit_interval_are_an_error(betas):
    with pytest.raises(UserError, match="betas must be"):
        ddpm_jax.make_process(betas)


def test_the_error_names_the_first_bad_beta():
    with pytest.raises(UserError, match=r"betas must be in \(0, 1\), found beta_2 = 1.5"):
        ddpm_jax.make_process([0.1, 1.5, 2.0])


@pytest.mark.parametrize("t", [-1, 11, 1000])
def test_a_t_outside_the_chain_gives_nan_and_not_another_timestep(t):
    process = process_of("linear", 10)
    x = jnp.ones((2, 3))
    assert np.all(np.isnan(q_sample(process, x, jnp.array([t, t]), x)))
    assert np.all(np.isnan(q_posterior(process, x, x, t)[0]))
    assert np.all(np.isnan(ddpm_jax.snr(process, t)))


def test_a_process_is_a_jit_argument_and_another_of_its_length_does_not_recompile():
    traces = []

    @jax.jit
    def f(process, x):
        traces.append(process.num_timesteps)
        return ddpm_jax.q_sample(process, x, process.num_timesteps, -0.5 * x)

    x = jnp.ones((1, 2))
    long = process_of("linear", 1000)
    outputs = [
        f(process, x)
        for process in (
            long,
            process_of("cosine", 1000),
            ddpm_jax.respace(long, [500, 900]),
            ddpm_jax.respace(long, [1, 2]),
        )
    ]
    assert traces == [1000, 2]
    assert len({float(output[0, 0]) for output in outputs}) == 4
