import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy import integrate, special, stats

import ddpm_jax
from ddpm_jax.errors import UserError
from ddpm_jax.likelihood import continuous
from ddpm_jax.likelihood import terms as likelihood
from ddpm_jax.process import alpha_sigma
from ddpm_jax.types import Prediction

BITS = 1.0 / np.log(2.0)
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(3)  # exact for quadratic functions
WEIGHTS = WEIGHTS / WEIGHTS.sum()


@functools.partial(jax.jit, static_argnames=("variance", "decoder"))
def step_term(process, prediction, x_0, x_t, t, variance="fixed_small", decoder="posterior"):
    return likelihood.step_term(
        process, prediction, x_0, x_t, t, variance=variance, decoder=decoder
    )


def process_of(schedule="linear", T=1000):
    return ddpm_jax.make_process(oracles.betas(schedule, T))


def sigma_squared(schedule, T, t, variance):
    """Return σ_t² of p(x_{t-1} | x_t) for t > 1, from the oracle."""
    if variance == "fixed_large":
        return oracles.betas(schedule, T)[t - 1]
    return oracles.posterior(schedule, T, t, t - 1)[2]


# Gaussian data with their exact denoiser: every term has a closed form.


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize(("schedule", "T"), [("linear", 10), ("cosine", 10), ("linear", 700)])
def test_for_gaussian_data_every_term_is_the_closed_form(schedule, T, variance):
    process, c = process_of(schedule, T), 0.25
    denoise_fn = oracles.gaussian_denoiser(process, ((c,),))
    x_0, eps = (a.reshape(-1, 1) for a in np.meshgrid(np.sqrt(c) * NODES, NODES))
    x_0, eps = jnp.asarray(x_0, jnp.float32), jnp.asarray(eps, jnp.float32)
    weight = np.outer(WEIGHTS, WEIGHTS).ravel()
    mean, covariance = oracles.chain_moments(schedule, T)
    for t in range(2, T + 1, max(1, T // 9)):
        x_t = ddpm_jax.q_sample(process, x_0, t, eps)
        prediction = denoise_fn(x_t, t)
        found = weight @ np.asarray(
            step_term(process, prediction, x_0, x_t, np.full(9, t), variance), np.float64
        )
        c_1, _, tilde = oracles.posterior(schedule, T, t, t - 1)
        sigma2 = sigma_squared(schedule, T, t, variance)
        left = 1.0 / (1.0 / c + mean[t] ** 2 / covariance[t, t])  # Var(x_0 | x_t)
        wanted = oracles.gaussian_kl(0.0, tilde, 0.0, sigma2) + c_1**2 * left / (2.0 * sigma2)
        assert found == pytest.approx(wanted * BITS, rel=1e-5, abs=1e-6), t


def test_a_learned_variance_between_both_costs_the_divergence_of_that_variance():
    process, t = process_of("linear", 100), np.full(1, 40)
    x = jnp.full((1, 1), 0.3)
    small, large = (sigma_squared("linear", 100, 40, v) for v in ("fixed_small", "fixed_large"))
    c_1 = oracles.posterior("linear", 100, 40, 39)[0]
    for fraction in (0.0, 0.3, 1.0, 1.2):
        sigma2 = np.exp(fraction * np.log(large) + (1.0 - fraction) * np.log(small))
        prediction = Prediction(x + 0.02, x, jnp.full((1, 1), fraction))
        found = step_term(process, prediction, x, x, t, "learned_range")
        wanted = oracles.gaussian_kl(0.0, small, 0.02 * c_1, sigma2) * BITS
        np.testing.assert_allclose(found, [wanted], rtol=2e-4, atol=1e-7)


def test_a_model_that_knows_nothing_costs_the_snr_it_wastes():
    """With x̂_0 = 0 and fixed_small, Σ_{t>1} L_{t-1} = m² (SNR_1 - SNR_T)/2 (Kingma et al. 2021)."""
    T, m = 200, 0.4
    process = process_of("linear", T)
    t = np.arange(2, T + 1)
    x_0 = jnp.full((t.size, 3), m)
    nothing = Prediction(jnp.zeros_like(x_0), x_0)
    total = np.asarray(step_term(process, nothing, x_0, x_0, t), np.float64).sum()
    alpha_bar = np.cumprod(1.0 - oracles.betas("linear", T))
    snr = alpha_bar / (1.0 - alpha_bar)
    assert total == pytest.approx(0.5 * m**2 * (snr[0] - snr[-1]) * BITS, rel=1e-5)


@pytest.mark.slow
def test_the_bound_of_an_exact_model_falls_to_the_entropy_as_T_grows():
    """The data are pixels with four values; E[x_0 | x_t] is known and integrals are by quadrature.

    At T = 1000 most of the gap comes from the decoder, because σ_1 is twice half a bin.
    """
    values = np.array([26, 90, 128, 230]) / 127.5 - 1.0
    p = np.array([0.4, 0.1, 0.3, 0.2])
    entropy = -(p * np.log2(p)).sum()
    nodes, weights = np.polynomial.hermite_e.hermegauss(48)
    x_0, eps = (jnp.asarray(a.reshape(-1, 1), jnp.float32) for a in np.meshgrid(values, nodes))
    weight = np.outer(weights / weights.sum(), p).ravel()
    known, log_p = jnp.float32(values[None]), jnp.float32(np.log(p)[None])

    def total(T):
        process = process_of("linear", T)

        def term(t):
            x_t = ddpm_jax.q_sample(process, x_0, t, eps)
            alpha_t, sigma_t = oracles.tables(process, t)
            logits = -0.5 * jnp.square((x_t - alpha_t * known) / sigma_t)
            posterior = jax.nn.softmax(logits + log_p, axis=1)
            mean = (posterior * known).sum(1, keepdims=True)
            prediction = Prediction(mean, x_t)
            return likelihood.step_term(process, prediction, x_0, x_t, t, variance="fixed_small")

        terms = jax.lax.map(term, jnp.arange(1, T + 1), batch_size=min(T, 1000))
        prior = weight @ np.asarray(likelihood.prior_term(process, x_0), np.float64)
        return prior + (np.asarray(terms, np.float64) @ weight).sum()

    totals = [total(T) for T in (100, 1000, 30_000)]
    assert totals[0] > totals[1] > totals[2] > entropy
    assert totals[2] - entropy < 0.01 * entropy


def test_L_T_of_the_cifar10_schedule_is_about_1e_5_bits_per_dim():
    process = process_of("linear", 1000)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)) / 127.5 - 1.0
    alpha_bar = np.prod(1.0 - oracles.betas("linear", 1000))
    kl = oracles.gaussian_kl(np.sqrt(alpha_bar) * pixels, 1.0 - alpha_bar, 0.0, 1.0)
    found = likelihood.prior_term(process, jnp.asarray(pixels, jnp.float32))
    np.testing.assert_allclose(found, kl.mean((1, 2, 3)) * BITS, rtol=1e-4)
    assert np.all((np.asarray(found) > 5e-6) & (np.asarray(found) < 2e-5))


# The decoder: a Gaussian integrated over the bin of a pixel value.


@pytest.mark.parametrize("deviation", [0.002, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("mean", [-1.1, -1.0, -0.3, 0.0, 0.998, 1.3])
def test_the_decoder_is_the_integral_of_the_normal_over_the_bin(mean, deviation):
    for k in (0, 1, 100, 127, 254, 255):
        x = k / 127.5 - 1.0
        low = -np.inf if k == 0 else x - 1.0 / 255.0
        high = np.inf if k == 255 else x + 1.0 / 255.0
        a, b = ((e - mean) / deviation for e in (low, high))
        if min(abs(a), abs(b)) > 30.0 and a * b > 0.0:
            continue  # the integral underflows; the next test covers this
        if np.isfinite(a) and np.isfinite(b):
            wanted = np.log(integrate.quad(stats.norm.pdf, a, b, epsabs=0.0, epsrel=1e-10)[0])
        else:
            wanted = stats.norm.logcdf(b) if k == 0 else stats.norm.logsf(a)
        found = likelihood.discretized_gaussian_log_prob(
            jnp.float32(x), jnp.float32(mean), jnp.float32(np.log(deviation))
        )
        np.testing.assert_allclose(found, wanted, rtol=3e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("log_deviation", [-9.0, -5.0, -2.0, 1.0])
@pytest.mark.parametrize("mean", [-1.5, -0.2, 0.003, 1.0])
def test_the_bins_share_all_of_the_mass_and_have_finite_gradients(mean, log_deviation):
    x = jnp.arange(256, dtype=jnp.float32) / 127.5 - 1.0

    def log_prob(mean, log_deviation):
        return likelihood.discretized_gaussian_log_prob(x, mean, log_deviation)

    values = np.asarray(log_prob(jnp.float32(mean), jnp.float32(log_deviation)), np.float64)
    assert np.all(np.isfinite(values)) and np.all(values <= 0.0)
    assert np.exp(values).sum() == pytest.approx(1.0, abs=2e-4)
    for slope in jax.jacobian(log_prob, (0, 1))(jnp.float32(mean), jnp.float32(log_deviation)):
        assert np.all(np.isfinite(slope))


VALUES = np.arange(256) / 127.5 - 1.0


def softmax_over_values(mean, deviation):
    """Return ln p(x_k | z_0) of all 256 values, in float64: [..., 256]."""
    logits = -0.5 * ((np.asarray(mean, np.float64)[..., None] - VALUES) / deviation) ** 2
    return special.log_softmax(logits, axis=-1)


@pytest.mark.parametrize("deviation", [1e-4, 0.0013, 0.004, 0.05, 2.0])
def test_the_discrete_decoder_is_the_softmax_over_the_256_values(deviation):
    mean = np.random.default_rng(0).uniform(-1.2, 1.2, (7, 1)).astype(np.float32)
    wanted = softmax_over_values(mean[:, 0], deviation)
    log_deviation = jnp.full((1, 1), np.log(deviation), jnp.float32)

    def log_prob_of(mean, log_deviation):
        x = jnp.asarray(VALUES, jnp.float32)[None]
        return likelihood.discrete_log_prob(x, mean, log_deviation)

    log_prob = functools.partial(log_prob_of, jnp.asarray(mean))
    found, slope = jax.jvp(log_prob, (log_deviation,), (jnp.ones_like(log_deviation),))
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=1e-6)
    assert np.all(found <= 0.0)
    assert np.exp(np.asarray(found, np.float64)).sum(1) == pytest.approx(np.ones(7), abs=1e-4)
    h = 1e-4
    ends = (softmax_over_values(mean[:, 0], deviation * np.exp(side * h)) for side in (1, -1))
    wanted_slope = np.subtract(*ends) / (2 * h)
    np.testing.assert_allclose(slope, wanted_slope, rtol=1e-3, atol=1e-3)
    h, exact = 1e-4 * deviation, mean[:, 0].astype(np.float64)
    ends = (softmax_over_values(exact + side * h, deviation) for side in (1.0, -1.0))
    wanted_slope = np.subtract(*ends) / (2 * h)
    slopes = jax.jacobian(lambda mean: log_prob_of(mean, log_deviation))(jnp.asarray(mean))
    found_slope = np.stack([slopes[i, :, i, 0] for i in range(7)])
    np.testing.assert_allclose(found_slope, wanted_slope, rtol=1e-3, atol=1e-3 / deviation)


def test_the_gradient_of_the_discrete_decoder_holds_no_256_numbers_for_a_pixel():
    def loss(log_deviation, x):
        mean = x + jnp.exp(log_deviation) * x
        return likelihood.discrete_log_prob(x, mean, log_deviation).mean()

    x = jax.ShapeDtypeStruct((4, 64, 64), jnp.float32)
    compiled = jax.jit(jax.grad(loss)).lower(jax.ShapeDtypeStruct((), jnp.float32), x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 64 * 4 * x.size


def test_the_discrete_decoder_is_tighter_than_the_integral_over_bins():
    """At VDM's first noise level, γ_0 = -13.3, L_0 falls from 0.051 to 0.010 bits/dim."""
    process = continuous.process_from_gamma(np.array([-13.3, 5.0]), (-13.3, 5.0))
    nodes = np.linspace(-6, 6, 601)
    weight = stats.norm.pdf(nodes) * (nodes[1] - nodes[0])
    x_0, eps = jnp.float32(VALUES[100]), jnp.asarray(nodes[:, None], jnp.float32)
    x_0 = jnp.full_like(eps, x_0)
    one = np.ones(601, np.int32)
    x_1 = ddpm_jax.q_sample(process, x_0, one, eps)
    found = {
        decoder: weight
        @ np.asarray(
            step_term(process, Prediction(x_0, x_0), x_0, x_1, one, decoder=decoder), np.float64
        )
        for decoder in ("flat", "discrete")
    }
    assert found["flat"] == pytest.approx(0.051, abs=5e-4)
    assert found["discrete"] == pytest.approx(0.010, abs=5e-4)
    s = np.exp(-13.3 / 2)
    wanted = -softmax_over_values(VALUES[100] + s * nodes, s)[:, 100] @ weight * BITS
    assert found["discrete"] == pytest.approx(wanted, rel=2e-3)


def test_L_0_is_the_decoder_at_the_models_mean_or_of_a_flat_prior():
    process = process_of("linear", 10)  # beta_1 = 0.05
    x_0 = jnp.array([[25.0, 200.0]]) / 127.5 - 1.0
    x_1, prediction = x_0 + 0.1, Prediction(x_0 - 0.02, x_0)
    one = np.ones(1, np.int32)
    bin_ = functools.partial(stats.norm.cdf)
    beta_1, tilde = 0.05, oracles.posterior("linear", 10, 2, 1)[2]
    for decoder, mean, deviation in (
        ("posterior", np.asarray(x_0) - 0.02, np.sqrt(tilde)),
        ("flat", np.asarray(x_1) / np.sqrt(1 - beta_1), np.sqrt(beta_1 / (1 - beta_1))),
    ):
        low, high = (
            bin_((np.asarray(x_0, np.float64) + e - mean) / deviation) for e in (-1 / 255, 1 / 255)
        )
        found = step_term(process, prediction, x_0, x_1, one, decoder=decoder)
        np.testing.assert_allclose(found, -np.log2(high - low).mean(1), rtol=2e-4)


# Terms at several timesteps of each image.


def denoiser_of_images(process, c=1.0):
    """Return the exact denoiser of N(0, c) data, for a batch with one timestep per image."""

    def denoise_fn(x_t, t):
        alpha_t, sigma_t = alpha_sigma(process, t, x_t)
        x_0 = c * alpha_t / (c * alpha_t**2 + sigma_t**2) * x_t
        return Prediction(x_0, (x_t - alpha_t * x_0) / sigma_t)

    return denoise_fn


def test_the_terms_of_an_image_depend_on_its_own_key_and_timesteps_alone():
    process = process_of("linear", 50)
    denoise_fn = denoiser_of_images(process)
    x_0 = jax.random.normal(jax.random.key(1), (4, 3))
    key = jax.random.split(jax.random.key(0), 4)
    t = jnp.array([[1, 2, 30, 50], [9, 9, 9, 1]])
    bound = jax.jit(functools.partial(likelihood.bound_terms, process, denoise_fn))
    terms, error = bound(key, x_0, t)
    assert terms.shape == error.shape == (2, 4)
    some, _ = bound(key[1:3], x_0[1:3], t[::-1, 1:3])
    np.testing.assert_allclose(some[::-1], terms[:, 1:3], rtol=1e-6)


def test_the_squared_error_is_what_is_left_to_know():
    process = process_of("linear", 50)
    denoise_fn = denoiser_of_images(process, 0.5)
    x_0 = np.sqrt(0.5) * jax.random.normal(jax.random.key(1), (4000, 1))
    key = jax.random.split(jax.random.key(0), 4000)
    _, error = likelihood.bound_terms(process, denoise_fn, key, x_0, jnp.full((1, 4000), 20))
    mean, covariance = oracles.chain_moments("linear", 50)
    left = 1.0 / (2.0 + mean[20] ** 2 / covariance[20, 20])
    standard_error = left * np.sqrt(2.0 / 4000)
    assert abs(float(error.mean()) - left) < 4.0 * standard_error


@pytest.mark.parametrize("option", ["variance", "decoder"])
def test_an_unknown_name_is_refused(option):
    x = jnp.zeros((1, 1))
    with pytest.raises(UserError, match=f"{option}.*'none'"):
        step_term(process_of(), Prediction(x, x), x, x, np.ones(1, np.int32), **{option: "none"})
