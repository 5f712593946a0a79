"""Guidance of denoisers for known data distributions: closed forms, and exact identities."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import ddpm_jax
from ddpm_jax import guidance, samplers
from ddpm_jax.denoise import dynamic_threshold, make_denoise_fn, static_threshold
from ddpm_jax.errors import UserError
from ddpm_jax.process import alpha_sigma
from ddpm_jax.types import Prediction

T, SHAPE = 1000, (2, 3, 1)
PROCESS = ddpm_jax.make_process(oracles.betas("linear", T))
ZERO_SNR = ddpm_jax.make_process(oracles.betas("linear_zero_snr", T))
MEANS, TAU, WEIGHTS = np.array([-0.7, 0.2, 0.9]), 0.4, np.array([0.2, 0.5, 0.3])
LABELS = np.array([0, 1, 2, 1], np.int32)
TIMES = np.array([1, 90, 500, T], np.int32)
X = 2 * np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(np.float32)

calls = []


def network(params, x_t, t, cond, *, train, key):
    """Predicts eps: of N(m_y, τ²) in each pixel for class y, of N(mean, τ²) for the null class."""
    calls.append(x_t.shape)
    means = jnp.append(jnp.asarray(MEANS, jnp.float32), jnp.float32(MEANS @ WEIGHTS))
    label = jnp.full(t.shape, -1) if cond is None else cond["label"]
    mean = means[jnp.where(label < 0, 3, label)][:, None, None, None] * (
        1.0 if params is None else params
    )
    alpha_t, sigma_t = alpha_sigma(PROCESS, t + 1, x_t)
    return sigma_t * (x_t - alpha_t * mean) / (alpha_t**2 * TAU**2 + sigma_t**2)


def denoiser(params=None, cond=None):
    return make_denoise_fn(PROCESS, network, params, cond, clip_x_0=False)


def pair_fn():
    return denoiser(cond=guidance.with_null({"label": LABELS}))


def bayes(mean, t=TIMES):
    """(x_0, eps) for data N(mean, τ²): conditioning of two Gaussians, in float64."""
    a = oracles.chain_moments("linear", T)[0][t][:, None, None, None]
    x_0 = mean + a * TAU**2 / (a**2 * TAU**2 + 1 - a**2) * (X - a * mean)
    return x_0, (X - a * x_0) / np.sqrt(1 - a**2)


def close(prediction, expected, atol=2e-4):
    """x_0 and eps are equal; the tolerance allows for x_0 at t = T, divided by alpha_T = 0.006."""
    for found, wanted in zip(prediction[:2], expected[:2], strict=True):
        np.testing.assert_allclose(found, wanted, atol=atol)


# Classifier-free


def test_w_0_is_the_conditional_model_bit_for_bit_and_w_minus_1_the_unconditional_one():
    conditional = denoiser(cond={"label": LABELS})(X, TIMES)
    off = guidance.classifier_free(PROCESS, pair_fn(), 0.0)(X, TIMES)
    jax.tree.map(np.testing.assert_array_equal, off, conditional)
    null = guidance.classifier_free(PROCESS, pair_fn(), -1.0)(X, TIMES)
    close(null, denoiser()(X, TIMES), atol=1e-4)


@pytest.mark.parametrize("t", [TIMES, jnp.int32(500)])
def test_gaussian_classes_are_guided_to_the_closed_form(t):
    """The tilted mean is m_y + w (m_y - m), if all classes have one variance."""
    w, mean = 1.5, MEANS @ WEIGHTS
    wanted = (MEANS[LABELS] + w * (MEANS[LABELS] - mean))[:, None, None, None]
    guided = guidance.classifier_free(PROCESS, pair_fn(), w)(X, t)
    close(guided, bayes(wanted, np.broadcast_to(t, 4)), atol=1e-3)


def test_the_network_is_called_once_on_each_image_beside_its_null_twin():
    twins = guidance.with_null({"label": LABELS})
    np.testing.assert_array_equal(twins["label"], [0, -1, 1, -1, 2, -1, 1, -1])
    calls.clear()
    guidance.classifier_free(PROCESS, pair_fn(), 1.5)(X, TIMES)
    assert calls == [(8, *SHAPE)]


def test_guidance_is_off_outside_the_interval():
    guide = {
        name: guidance.classifier_free(PROCESS, pair_fn(), w, interval=i, rescale=phi)
        for name, w, i, phi in [
            ("on", 2.0, None, 0.7),
            ("off", 0.0, None, 0.0),
            ("part", 2.0, (90, 500), 0.7),
        ]
    }
    on, off, part = (guide[name](X, TIMES) for name in ("on", "off", "part"))
    for i, inside in enumerate([False, True, True, False]):  # the interval includes both ends
        expected = on if inside else off
        np.testing.assert_array_equal(part.x_0[i], expected.x_0[i])
        np.testing.assert_array_equal(part.eps[i], expected.eps[i])
    assert np.all(np.abs(on.x_0 - off.x_0).max(axis=(1, 2, 3)) > 1e-3)


def test_rescale_brings_the_deviation_back():
    """φ = 1 gives each x_0 the deviation of the conditional x_0; a smaller φ does so in part."""
    shifted = np.linspace(-1, 1, 6, dtype=np.float32).reshape(1, *SHAPE)

    def pair(x_t, t):  # the null twin predicts something of another shape
        x_0 = jnp.repeat(jnp.asarray(X[:, :1] * 0.3), 2, axis=0) + jnp.asarray(shifted)
        x_0 = x_0.at[1::2].multiply(0.25)
        return ddpm_jax.predictions.to_prediction(PROCESS, x_0, x_t, t, "x_0")

    def deviation(phi, w=3.0):
        guided = guidance.classifier_free(PROCESS, pair, w, rescale=phi)(X, TIMES)
        np.testing.assert_allclose(ddpm_jax.q_sample(PROCESS, guided.x_0, TIMES, guided.eps), X,
                                   atol=1e-5)  # fmt: skip
        return np.asarray(guided.x_0, np.float64).std(axis=(1, 2, 3)), guided

    (plain, guided), (half, _), (full, _) = (deviation(phi) for phi in (0.0, 0.5, 1.0))
    conditional, _ = deviation(0.0, w=0.0)
    assert np.all(plain > 1.5 * conditional)
    np.testing.assert_allclose(full, conditional, rtol=1e-5)
    np.testing.assert_allclose(half, (plain + conditional) / 2, rtol=1e-5)


def test_an_image_of_one_pixel_is_not_rescaled():
    pair = make_denoise_fn(
        PROCESS, network, None, guidance.with_null({"label": LABELS}), clip_x_0=False
    )
    x = X[:, :1, :1]
    plain = guidance.classifier_free(PROCESS, pair, 1.0)(x, TIMES)
    rescaled = guidance.classifier_free(PROCESS, pair, 1.0, rescale=0.7)(x, TIMES)
    close(rescaled, plain, atol=1e-5)


# Autoguidance


def test_autoguidance_extrapolates_from_the_worse_model():
    good, bad = denoiser(1.0, {"label": LABELS}), denoiser(0.5, {"label": LABELS})
    m, w = MEANS[LABELS][:, None, None, None], 2.0
    close(guidance.autoguidance(good, bad, w)(X, TIMES), bayes(m + w * (m - 0.5 * m)), atol=1e-3)
    close(guidance.autoguidance(good, bad, -1.0)(X, TIMES), bayes(0.5 * m), atol=1e-3)
    jax.tree.map(
        np.testing.assert_array_equal,
        guidance.autoguidance(good, bad, 0.0)(X, TIMES),
        good(X, TIMES),
    )
    part = guidance.autoguidance(good, bad, w, interval=(2, 500))(X, TIMES)
    jax.tree.map(lambda p, g: np.testing.assert_array_equal(p[::3], g[::3]), part, good(X, TIMES))


# Classifier guidance


def mixture_log_prob(x_t, t, label):
    """Log p(y | x_t) of one pixel per image, data a mixture of N(m_y, τ²) with WEIGHTS: [B]."""
    alpha_t, sigma_t = alpha_sigma(PROCESS, t, x_t)
    variance = alpha_t**2 * TAU**2 + sigma_t**2
    means = jnp.asarray(MEANS, jnp.float32)
    log = jnp.log(jnp.asarray(WEIGHTS, jnp.float32))[None] - (x_t - alpha_t * means[None]) ** 2 / (
        2 * variance
    )
    return jnp.take_along_axis(jax.nn.log_softmax(log), label[:, None], axis=1)[:, 0]


def mixture_x_0(x, a):
    """E[x_0 | x_t] of the mixture, by quadrature over x_0 in float64: x, a: [B]."""
    grid = np.linspace(-4, 4, 16001)
    prior = (WEIGHTS[:, None] * np.exp(-((grid - MEANS[:, None]) ** 2) / (2 * TAU**2))).sum(0)
    log = -((x[:, None] - a[:, None] * grid) ** 2) / (2 * (1 - a[:, None] ** 2))
    weight = prior * np.exp(log - log.max(1, keepdims=True))
    return (weight * grid).sum(1) / weight.sum(1)


def test_the_exact_classifier_makes_the_conditional_denoiser_of_the_unconditional_one():
    """eps_uncond - σ_t ∇ log p(y|x_t) = eps_cond, for a mixture of three Gaussians."""
    t = np.array([20, 90, 300, 700], np.int32)
    a = oracles.chain_moments("linear", T)[0][t]
    x = X[:, 0, 0]  # [B, 1]
    x_0 = mixture_x_0(x[:, 0].astype(np.float64), a)[:, None].astype(np.float32)

    def unconditional(x_t, t):
        return ddpm_jax.predictions.to_prediction(PROCESS, jnp.asarray(x_0), x_t, t, "x_0")

    guided = guidance.classifier(
        PROCESS, unconditional, lambda x_t, t: mixture_log_prob(x_t, t, jnp.asarray(LABELS))
    )(x, t)
    m, v = MEANS[LABELS], a**2 * TAU**2 + 1 - a**2
    wanted = m + a * TAU**2 / v * (x[:, 0] - a * m)
    np.testing.assert_allclose(guided.x_0[:, 0], wanted, atol=1e-4)
    np.testing.assert_allclose(
        guided.eps[:, 0], (x[:, 0] - a * wanted) / np.sqrt(1 - a**2), atol=1e-4
    )


def test_classifier_guidance_is_scaled_and_confined():
    def log_prob(x_t, t):
        return -0.5 * ((x_t - 2.0) ** 2).sum(axis=(1, 2, 3))  # gradient 2 - x

    base = denoiser()
    plain = base(X, TIMES)
    sigma = oracles.chain_moments("linear", T)[1].diagonal()[TIMES] ** 0.5
    for scale in (0.0, 1.0, 3.0):
        guided = guidance.classifier(PROCESS, base, log_prob, scale)(X, TIMES)
        shift = scale * sigma[:, None, None, None] * (2.0 - X)
        np.testing.assert_allclose(guided.eps, plain.eps - shift, atol=1e-4)
        rebuilt = ddpm_jax.q_sample(PROCESS, guided.x_0, TIMES, guided.eps)
        np.testing.assert_allclose(rebuilt, X, atol=1e-4)
    part = guidance.classifier(PROCESS, base, log_prob, 3.0, interval=(1, 90))(X, TIMES)
    np.testing.assert_array_equal(part.x_0[2:], plain.x_0[2:])
    np.testing.assert_array_equal(part.eps[:2], guided.eps[:2])


def test_at_zero_terminal_snr_the_classifier_is_silent_where_nothing_is_known():
    base = make_denoise_fn(ZERO_SNR, network, None, kind="v", clip_x_0=False)
    guided = guidance.classifier(ZERO_SNR, base, lambda x, t: x.sum(axis=(1, 2, 3)))(X, TIMES)
    plain = base(X, TIMES)
    np.testing.assert_array_equal(guided.x_0[3], plain.x_0[3])
    assert np.isfinite(guided.x_0).all() and np.isfinite(guided.eps).all()
    assert np.abs(guided.eps[2] - plain.eps[2]).min() > 0.5


# Composition, thresholds


def test_all_of_them_compose_and_the_threshold_comes_last():
    """Weights of the closed form add up: cfg of two models, autoguidance, a linear reward."""
    labels = {"label": LABELS}
    good, bad = (
        guidance.classifier_free(PROCESS, denoiser(p, guidance.with_null(labels)), 1.0)
        for p in (1.0, 0.5)
    )
    both = guidance.autoguidance(good, bad, 2.0)
    tilted = guidance.classifier(PROCESS, both, lambda x, t: 0.1 * x.sum(axis=(1, 2, 3)))
    clipped = static_threshold(PROCESS, tilted)
    m, mean = MEANS[LABELS], MEANS @ WEIGHTS
    guided_mean = (2 * m - mean) * (1 + 2.0 * 0.5)
    x_0, _ = bayes(guided_mean[:, None, None, None])
    a = oracles.chain_moments("linear", T)[0][TIMES][:, None, None, None]
    x_0 = x_0 + 0.1 * (1 - a**2) / a
    close(tilted(X, TIMES)[:1], [x_0], atol=2e-3)
    close(clipped(X, TIMES)[:1], [np.clip(x_0, -1, 1)], atol=2e-3)
    assert np.abs(x_0).max() > 1.5


def constant(x_0):
    return lambda x_t, t: ddpm_jax.predictions.to_prediction(
        PROCESS, jnp.asarray(x_0, jnp.float32), x_t, t, "x_0"
    )


def test_dynamic_threshold_scales_by_each_images_own_percentile():
    x_0 = np.stack([np.linspace(-0.8, 0.8, 6), np.linspace(-3, 3, 6), [0, 0, 0, 0, 0, 9]])
    x_0 = x_0.reshape(3, *SHAPE)
    x, t = X[:3], TIMES[:3]
    found = {p: dynamic_threshold(PROCESS, constant(x_0), p)(x, t) for p in (0.5, 0.8, 1.0)}
    for p, prediction in found.items():
        for image, wanted in zip(prediction.x_0, x_0, strict=True):
            # the percentile by sorting: linear between the order statistics
            order = np.sort(np.abs(wanted).ravel())
            s = max(1.0, np.interp(p * 5, np.arange(6), order))
            np.testing.assert_allclose(image, np.clip(wanted, -s, s) / s, rtol=1e-5, atol=1e-6)
        rebuilt = ddpm_jax.q_sample(PROCESS, prediction.x_0, t, prediction.eps)
        np.testing.assert_allclose(rebuilt, x, atol=1e-5)
    np.testing.assert_allclose(found[1.0].x_0[1], x_0[1] / 3, rtol=1e-6)
    np.testing.assert_allclose(found[1.0].x_0[0], x_0[0], rtol=1e-6)


# In make_sample


def make(**options):
    options = dict(shape=SHAPE, sampler=samplers.ancestral(PROCESS), clip_x_0=False) | options
    return ddpm_jax.make_sample(
        PROCESS, network, timesteps=ddpm_jax.timesteps.trailing(T, 4), **options
    )


@pytest.mark.slow
def test_make_sample_guides_with_one_call_of_the_network_in_the_whole_chain():
    """With fixed_large and N(m, τ²), the guided chain ends like the chain for the tilted mean."""
    key, cond = jax.random.key(0), {"label": LABELS}
    calls.clear()
    images = make(guidance=1.5)(None, key, 4, cond)
    assert calls == [(16, *SHAPE)]  # one trace; 4 images are padded to the 8 devices

    def tilted(process, denoiser, params, cond):
        mean = jnp.asarray(MEANS, jnp.float32)[cond["label"]]
        mean = mean + 1.5 * (mean - jnp.float32(MEANS @ WEIGHTS))

        def denoise_fn(x_t, t):
            alpha_t, sigma_t = alpha_sigma(PROCESS, t, x_t)
            error = x_t - alpha_t * mean[:, None, None, None]
            x_0 = x_t - sigma_t**2 * error / (alpha_t**2 * TAU**2 + sigma_t**2)
            return Prediction(x_0 / alpha_t, x_t)

        return denoise_fn

    np.testing.assert_allclose(images, make(guidance=tilted)(None, key, 4, cond), atol=1e-4)
    assert np.abs(images - make()(None, key, 4, cond)).mean() > 0.1


def test_make_sample_clips_what_is_guided():
    key, cond = jax.random.key(0), {"label": LABELS}
    strong = make(guidance=4.0, clip_x_0=True)(None, key, 4, cond)
    assert np.abs(strong).max() == 1.0
    dynamic = make(guidance=4.0, clip_x_0=True, percentile=0.9)(None, key, 4, cond)
    assert np.abs(dynamic).max() <= 1.0 and np.abs(dynamic - strong).max() > 0.05


def test_a_guide_may_read_any_params():
    """Autoguidance in make_sample: params are a pair."""

    def guide(process, denoiser, params, cond):
        return guidance.autoguidance(denoiser(params[0], cond), denoiser(params[1], cond), 1.0)

    key, cond = jax.random.key(0), {"label": LABELS}
    guided = make(guidance=guide)((1.0, 0.5), key, 4, cond)
    np.testing.assert_allclose(guided, make()(1.5, key, 4, cond), atol=1e-4)


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make(guidance=1.0)(None, jax.random.key(0), 4), "needs a condition, but cond is"),
        (lambda: guidance.with_null({}), "needs a condition, but cond is empty"),
        (lambda: guidance.with_null({"text": X}), r"cond\['text'\] has no null value"),
        (lambda: make(guidance=-2.0), "w must be at least -1 .0 is off., found -2.0"),
        (lambda: make(guidance=float("nan")), "w must be at least -1"),
        (lambda: make(percentile=0.9), "percentile of dynamic_threshold is 0.9, but clip_x_0 is F"),
        (lambda: make(percentile=99.5, clip_x_0=True), r"must be in \[0, 1\], found 99.5"),
        (lambda: dynamic_threshold(PROCESS, denoiser(), -0.1), r"must be in \(0, 1\], found -0.1"),
        (
            lambda: guidance.classifier_free(PROCESS, pair_fn(), 1.0, rescale=1.1),
            r"rescale must be in \[0, 1\], found 1.1",
        ),
        (
            lambda: guidance.classifier_free(PROCESS, pair_fn(), 1.0, interval=(500, 90)),
            r"1 <= low <= high <= 1000 \(T\), found \(500, 90\)",
        ),
        (
            lambda: guidance.classifier(PROCESS, denoiser(), None, 1.0, interval=(1, 1001)),
            r"1 <= low <= high <= 1000 \(T\), found \(1, 1001\)",
        ),
        (
            lambda: guidance.autoguidance(denoiser(), denoiser(), 1.0, interval=(0, 5)),
            r"1 <= low <= high <= T, found \(0, 5\)",
        ),
        (lambda: guidance.classifier(PROCESS, denoiser(), None, -1.0), "scale of classifier guida"),
    ],
)
def test_what_cannot_be_is_refused_by_name(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_other_conditions_take_a_null_value_of_their_own():
    text = np.ones((2, 3), np.float32)
    twins = guidance.with_null({"text": text}, null={"text": np.zeros(3)})
    np.testing.assert_array_equal(twins["text"], [[1] * 3, [0] * 3] * 2)
