import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import ddpm_jax
from ddpm_jax.errors import UserError
from ddpm_jax.predictions import KINDS, check_kind, to_prediction, training_target

chains = pytest.mark.parametrize(("schedule", "T"), oracles.CHAINS)


def data(T):
    """Return x_0, eps and t of a batch that contains every t of the chain once."""
    x_0, eps = np.random.default_rng(T).normal(size=(2, T, 2, 3, 1)).astype(np.float32)
    return np.clip(x_0, -1, 1), eps, np.arange(1, T + 1)


@jax.jit
def cycles(process, x_0, t, eps):
    """Convert x_0 and eps to a target of kind 1 and back, then to a target of kind 2 and back.

    Returns both predictions for every pair of kinds.
    """
    x_t = ddpm_jax.q_sample(process, x_0, t, eps)
    result = {}
    for kind_1 in KINDS:
        target = training_target(process, x_0, eps, t, kind_1)
        first = to_prediction(process, target, x_t, t, kind_1)
        for kind_2 in KINDS:
            target = training_target(process, first.x_0, first.eps, t, kind_2)
            second = to_prediction(process, target, x_t, t, kind_2)
            result[f"{kind_1} {kind_2}"] = first, second
    return result


def assert_views_agree(schedule, T, prediction, x_0, eps):
    """Check x_0 and eps up to rounding.

    x_0 = (x_t - sigma eps) / alpha multiplies the rounding of x_t by sigma/alpha. The formula of
    eps multiplies it by alpha/sigma.
    """
    mean, covariance = oracles.chain_moments(schedule, T)
    sigma = np.sqrt(np.diag(covariance))[1:, None, None, None]
    alpha = mean[1:, None, None, None]
    rounding = 3e-6  # of float32 numbers of order 3
    with np.errstate(divide="ignore"):
        limit = rounding * (1 + np.minimum(sigma / alpha, 1e30))
    assert np.all(np.abs(prediction.x_0 - x_0) <= limit)
    assert np.all(np.abs(prediction.eps - eps) <= rounding * (1 + alpha / sigma))


@chains
def test_the_target_of_every_kind_gives_back_the_data_and_the_noise(schedule, T):
    process = ddpm_jax.make_process(oracles.betas(schedule, T))
    x_0, eps, t = data(T)
    result = cycles(process, x_0, t, eps)
    for kind in oracles.kinds(schedule):
        prediction, _ = result[f"{kind} {kind}"]
        assert_views_agree(schedule, T, prediction, x_0, eps)


@chains
def test_kinds_are_cycle_consistent(schedule, T):
    process = ddpm_jax.make_process(oracles.betas(schedule, T))
    x_0, eps, t = data(T)
    result = cycles(process, x_0, t, eps)
    log_snr = np.asarray(process.log_snr[1:], np.float64)
    # two roundings, each multiplied by at most sigma/alpha or alpha/sigma
    limit = 2e-5 * (1 + np.exp(np.clip(np.abs(log_snr), 0, 50) / 2))
    for kind_1 in oracles.kinds(schedule):
        for kind_2 in oracles.kinds(schedule):
            _, prediction = result[f"{kind_1} {kind_2}"]
            for ours, true in zip(prediction[:2], (x_0, eps), strict=True):
                assert np.all(np.abs(ours - true).max(axis=(1, 2, 3)) <= limit)


def test_an_arbitrary_output_is_read_by_the_definition_of_its_kind():
    process = ddpm_jax.make_process(oracles.betas("cosine", 10))
    mean, covariance = oracles.chain_moments("cosine", 10)
    output, x_t = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    for i, t in enumerate((1, 4, 7, 9)):
        alpha, sigma = mean[t], np.sqrt(covariance[t, t])
        angle = np.arctan2(sigma, alpha)  # x_t = cos(angle) x_0 + sin(angle) eps
        rotate = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        for kind, row in (("eps", [0.0, 1.0]), ("x_0", [1.0, 0.0]), ("v", rotate[1])):
            # two linear equations for (x_0, eps): the definitions of x_t and of the output
            x_0, eps = np.linalg.solve([rotate[0], row], [x_t[i], output[i]])
            ours = to_prediction(process, output[i : i + 1], x_t[i : i + 1], t, kind)
            np.testing.assert_allclose(ours.x_0, [x_0], rtol=2e-5, atol=1e-6, err_msg=kind)
            np.testing.assert_allclose(ours.eps, [eps], rtol=2e-5, atol=1e-6, err_msg=kind)


def test_v_is_the_velocity_of_x_t_along_the_angle():
    process = ddpm_jax.make_process(oracles.betas("linear", 1000))
    x_0, eps, t = data(1000)
    angle = jnp.arctan2(process.sqrt_one_minus_alphas_cumprod, process.sqrt_alphas_cumprod)
    angle = angle[1:, None, None, None]
    _, velocity = jax.jvp(
        lambda a: jnp.cos(a) * x_0 + jnp.sin(a) * eps, (angle,), (jnp.ones_like(angle),)
    )
    ours = training_target(process, x_0, eps, t, "v")
    np.testing.assert_allclose(ours, velocity, rtol=1e-5, atol=1e-5)


def test_eps_and_x_0_targets_are_the_noise_and_the_data_themselves():
    process = ddpm_jax.make_process(oracles.betas("linear", 10))
    x_0, eps, t = data(10)
    np.testing.assert_array_equal(training_target(process, x_0, eps, t, "eps"), eps)
    np.testing.assert_array_equal(training_target(process, x_0, eps, t, "x_0"), x_0)


def test_at_zero_terminal_snr_x_T_is_the_noise_and_predictions_are_exact():
    process = ddpm_jax.make_process(oracles.betas("linear_zero_snr", 10))
    x_0, eps, _ = data(10)
    np.testing.assert_array_equal(ddpm_jax.q_sample(process, x_0, 10, eps), eps)
    result = cycles(process, x_0, 10, eps)
    for kind in ("x_0", "v"):
        prediction, _ = result[f"{kind} {kind}"]
        np.testing.assert_array_equal(prediction.x_0, x_0)
        np.testing.assert_array_equal(prediction.eps, eps)


def test_an_unknown_kind_is_an_error_with_the_nearest_name():
    process = ddpm_jax.make_process(oracles.betas("linear", 10))
    x = jnp.ones((1, 2))
    for call in (
        lambda: to_prediction(process, x, x, 1, "epss"),
        lambda: training_target(process, x, x, 1, "epss"),
        lambda: check_kind(process, "epss"),
    ):
        with pytest.raises(UserError, match="unknown kind 'epss'; did you mean 'eps'?"):
            call()


@chains
def test_eps_is_refused_at_zero_terminal_snr_and_nothing_else_is(schedule, T):
    process = ddpm_jax.make_process(oracles.betas(schedule, T))
    for kind in KINDS:
        if kind in oracles.kinds(schedule):
            check_kind(process, kind)
        else:
            with pytest.raises(UserError, match="'eps' cannot be used with zero_terminal_snr"):
                check_kind(process, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_half_of_the_channels_is_the_variance(kind):
    process = ddpm_jax.make_process(oracles.betas("cosine", 10))
    rng = np.random.default_rng(0)
    output, x_t = (rng.normal(size=(2, 3, 3, c)).astype(np.float32) for c in (4, 2))
    whole = to_prediction(process, output, x_t, np.array([3, 7]), kind)
    alone = to_prediction(process, output[..., :2], x_t, np.array([3, 7]), kind)
    np.testing.assert_array_equal(whole.x_0, alone.x_0)
    np.testing.assert_array_equal(whole.eps, alone.eps)
    assert alone.log_variance_fraction is None
    np.testing.assert_allclose(whole.log_variance_fraction, (output[..., 2:] + 1) / 2, rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 3, 3, 3), (2, 3, 3), (2, 6, 3, 2)])
def test_an_output_of_another_shape_is_refused(shape):
    process = ddpm_jax.make_process(oracles.betas("cosine", 10))
    with pytest.raises(UserError, match="must have the shape of x_t.*or twice its channels"):
        to_prediction(process, jnp.zeros(shape), jnp.zeros((2, 3, 3, 2)), 3, "eps")
