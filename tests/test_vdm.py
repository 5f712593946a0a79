"""The learned schedule and the bound in continuous time, on data with a known exact denoiser.

For independent pixels N(0, τ²), E‖ε - ε̂‖² per pixel is τ²/(τ² + e^γ). So L_∞ is half its integral
over γ, ½ [γ - ln(τ² + e^γ)] from γ_0 to γ_1, for every path of γ between the two.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats

import ddpm_jax
from ddpm_jax.build.chain import make_chain
from ddpm_jax.config import Config, ProcessConfig
from ddpm_jax.errors import UserError
from ddpm_jax.likelihood import continuous as vdm
from ddpm_jax.likelihood import terms as likelihood
from ddpm_jax.models.noise_schedule import make_gamma, table

GAMMA_RANGE, TAU, D = (-13.3, 5.0), 0.5, 16
GAMMA = make_gamma(*GAMMA_RANGE)
PARAMS = GAMMA.init(jax.random.key(0))
DECODER = make_chain(Config(process=ProcessConfig(schedule="learned"))).decoder  # in evaluation


def moved(params, scale, seed=1):
    """Return parameters far from the given ones, including the ends."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noise = [scale * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, [a + n for a, n in zip(leaves, noise, strict=True)])


def levels(t):
    """Return alpha and sigma, [B, 1], at the network's input t."""
    gamma = (GAMMA_RANGE[0] + t / 1000.0 * (GAMMA_RANGE[1] - GAMMA_RANGE[0]))[:, None]
    return vdm.alpha_sigma(gamma)


def gaussian(params, z, t, cond, *, train, key):
    """Predict eps exactly for N(0, τ²) data, times params."""
    alpha, sigma = levels(t)
    return params * sigma * z / (alpha**2 * TAU**2 + sigma**2)


def gaussian_as(kind):
    """Return `gaussian` for another kind. The second half of its channels must not be read."""

    def network(params, z, t, cond, *, train, key):
        alpha, sigma = levels(t)
        eps = gaussian(params, z, t, cond, train=train, key=key)
        x_0 = (z - sigma * eps) / alpha
        output = {"x_0": x_0, "v": alpha * eps - sigma * x_0}[kind]
        return jnp.concatenate([output, jnp.full_like(output, jnp.nan)], axis=-1)

    return network


def two_points(params, z, t, cond, *, train, key):
    """Predict eps exactly for pixels that are 1/2 or -1/2."""
    alpha, sigma = levels(t)
    return (z - alpha * 0.5 * jnp.tanh(0.5 * alpha * z / sigma**2)) / sigma


def draw_gaussian(key, n):
    return TAU * jax.random.normal(key, (n, D))


def draw_two_points(key, n):
    return 0.5 * jax.random.rademacher(key, (n, D), jnp.float32)


@functools.partial(jax.jit, static_argnames=("network", "kind"))
def bound(network, params, schedule, x_0, u, eps, kind="eps"):
    return vdm.bound_terms(
        network,
        params,
        GAMMA.ends(schedule),
        lambda u: GAMMA.progress(schedule, u),
        x_0,
        u,
        eps,
        told=GAMMA_RANGE,
        train=False,
        key=None,
        kind=kind,
    )


@functools.partial(jax.jit, static_argnames=("network", "draw", "n"))
def estimates(network, draw, schedule, key, n):
    """Return the terms of n examples, each at its own random u."""
    u_key, x_key, eps_key = jax.random.split(key, 3)
    u, eps = jax.random.uniform(u_key, (n,)), jax.random.normal(eps_key, (n, D))
    return bound(network, jnp.float32(1.0), schedule, draw(x_key, n), u, eps)


def closed_form(gamma_0, gamma_1):
    """Return L_∞ of N(0, τ²) data in bits/dim."""
    low, high = (g - np.logaddexp(2 * np.log(TAU), g) for g in (gamma_0, gamma_1))
    return 0.5 * (high - low) / np.log(2.0)


def batch(n, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    return (draw_gaussian(keys[0], n), jax.random.uniform(keys[1], (n,)),
            jax.random.normal(keys[2], (n, D)))  # fmt: skip


# The schedule


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
def test_gamma_rises_strictly_and_its_ends_are_exact(scale):
    params = moved(PARAMS, scale)
    gamma = np.asarray(table(GAMMA, params, 200))
    assert np.all(np.diff(gamma) > 0)
    assert [gamma[0], gamma[-1]] == [float(end) for end in GAMMA.ends(params)]
    ends = GAMMA.progress(params, jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(ends, [0.0, 1.0], atol=1e-5)
    if scale == 0.0:
        assert [gamma[0], gamma[-1]] == [np.float32(end) for end in GAMMA_RANGE]
        # nearly a straight line before training
        np.testing.assert_allclose(gamma, np.linspace(*GAMMA_RANGE, 200), atol=1.0)


def test_antithetic_times_are_evenly_spaced_and_uniform_each():
    draw = jax.jit(jax.vmap(lambda key: vdm.sample_antithetic(key, 8, 1000)))
    u = (np.asarray(draw(jax.random.split(jax.random.key(0), 500))) - 1.0) / 999.0
    assert u.min() >= 0.0 and u.max() <= 1.0
    gaps = np.diff(np.sort(u, axis=1), axis=1)
    np.testing.assert_allclose(gaps, 1 / 8, atol=1e-6)
    for i in (0, 3, 7):
        assert scipy.stats.kstest(u[:, i], "uniform").pvalue > 1e-3


# The bound


def straight(u):
    return u


def late(u):
    """Rise slowly at low noise and fast at high noise; `early` does the opposite."""
    return u**2


def early(u):
    return 1.0 - (1.0 - u) ** 2


@pytest.mark.slow
@pytest.mark.parametrize("ends", [GAMMA_RANGE, (-8.0, 3.0)])
def test_the_diffusion_loss_is_the_closed_form_for_every_interior_but_its_variance_is_not(ends):
    variances = {}
    u_key, x_key, eps_key = jax.random.split(jax.random.key(3), 3)
    n = 50_000
    x_0, eps = draw_gaussian(x_key, n), jax.random.normal(eps_key, (n, D))
    u = jax.random.uniform(u_key, (n,))
    for progress in (straight, late, early):
        terms = fixed_bound(progress, tuple(jnp.float32(end) for end in ends), x_0, u, eps)
        found = np.asarray(terms.diffusion, np.float64)
        error = 4 * found.std() / n**0.5
        assert abs(found.mean() - closed_form(*ends)) < error < 0.05 * closed_form(*ends)
        variances[progress.__name__] = found.var()
    print("variances:", variances)
    assert variances["early"] > 2.0 * variances["straight"]


@functools.partial(jax.jit, static_argnames="progress")
def fixed_bound(progress, ends, x_0, u, eps):
    return vdm.bound_terms(
        gaussian,
        jnp.float32(1.0),
        ends,
        progress,
        x_0,
        u,
        eps,
        told=GAMMA_RANGE,
        train=False,
        key=None,
    )


@pytest.mark.slow
def test_every_kind_gives_the_same_terms():
    x_0, u, eps = batch(64)
    wanted = bound(gaussian, jnp.float32(0.9), PARAMS, x_0, u, eps)
    for kind in ("x_0", "v"):
        found = bound(gaussian_as(kind), jnp.float32(0.9), PARAMS, x_0, u, eps, kind=kind)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-3), found, wanted)


@pytest.mark.slow
def test_gradients_are_the_bounds_by_network_and_ends_and_the_variances_by_the_interior():
    """The reference is two backward passes: of Σ ℓ, and of Σ (ℓ - c)² with c the batch's mean."""
    x_0, u, eps = batch(32)
    schedule = moved(PARAMS, 0.3)

    def diffusion(scale, ends, interior):
        p = {"interior": interior, "ends": ends}
        r, slope = jax.jvp(lambda u: GAMMA.progress(p, u), (u,), (jnp.ones_like(u),))
        gamma_0, gamma_1 = ends["gamma_0"], ends["gamma_1"]
        gamma = (gamma_0 + r * (gamma_1 - gamma_0))[:, None]
        z = jnp.sqrt(jax.nn.sigmoid(-gamma)) * x_0 + jnp.sqrt(jax.nn.sigmoid(gamma)) * eps
        t = 1000 * (gamma[:, 0] - GAMMA_RANGE[0]) / (GAMMA_RANGE[1] - GAMMA_RANGE[0])
        error = ((eps - gaussian(scale, z, t, None, train=True, key=None)) ** 2).sum(axis=1)
        return 0.5 * slope * (gamma_1 - gamma_0) * error / (D * np.log(2.0))

    def variance(*args):
        found = diffusion(*args)
        return ((found - jax.lax.stop_gradient(found.mean())) ** 2).sum()

    def library(scale, ends, interior):
        p = {"interior": interior, "ends": ends}
        return bound(gaussian, scale, p, x_0, u, eps).diffusion.sum()

    args = (jnp.float32(0.9), schedule["ends"], schedule["interior"])
    found = jax.jit(jax.grad(library, argnums=(0, 1, 2)))(*args)
    plain = jax.jit(jax.grad(lambda *a: diffusion(*a).sum(), argnums=(0, 1, 2)))(*args)
    by_variance = jax.jit(jax.grad(variance, argnums=2))(*args)

    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())

    jax.tree.map(close, found[:2], plain[:2])
    jax.tree.map(close, found[2], by_variance)
    assert np.abs(plain[2]["l_3"] - by_variance["l_3"]).max() > 0.1 * np.abs(plain[2]["l_3"]).max()


@pytest.mark.slow
@pytest.mark.loose_promotion(reason="optax raises floats to counts")
@pytest.mark.parametrize(
    ("network", "draw", "factor"),
    [(gaussian, draw_gaussian, 1.8), (two_points, draw_two_points, 1.8)],
)
def test_training_the_schedule_lowers_the_variance_and_leaves_the_mean(network, draw, factor):
    """300 steps of Adam at 1e-2, batches of 256; 100,000 estimates before and after."""
    optimizer = optax.adam(1e-2)

    def step(i, carry):
        schedule, opt_state = carry

        def loss(interior):
            p = {"interior": interior, "ends": PARAMS["ends"]}
            return estimates(network, draw, p, jax.random.fold_in(jax.random.key(4), i), 256)

        gradient = jax.grad(lambda interior: loss(interior).diffusion.mean())(schedule)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return optax.apply_updates(schedule, updates), opt_state

    @jax.jit
    def train(interior):
        return jax.lax.fori_loop(0, 300, step, (interior, optimizer.init(interior)))[0]

    after = {"interior": train(PARAMS["interior"]), "ends": PARAMS["ends"]}
    before, after = (
        np.asarray(estimates(network, draw, p, jax.random.key(5), 100_000).diffusion, np.float64)
        for p in (PARAMS, after)
    )
    print(f"variance {before.var():.2f} -> {after.var():.2f}; {before.mean()} {after.mean()}")
    assert before.var() > factor * after.var()
    error = np.sqrt((before.var() + after.var()) / len(before))
    assert abs(before.mean() - after.mean()) < 4 * error


# The chain


@pytest.mark.slow
def test_the_chains_terms_are_the_continuous_ones():
    """L_T and L_0 are equal; L_{t-1} is ½ expm1(γ_t - γ_s) ‖ε - ε̂‖² with s = t-1 (eqs. 14, 15)."""
    T = 20
    gamma = np.asarray(table(GAMMA, moved(PARAMS, 0.5), T), np.float64)
    process = vdm.process_from_gamma(gamma, GAMMA_RANGE)
    np.testing.assert_allclose(process.alphas_cumprod[1:], scipy.special.expit(-gamma), rtol=1e-6)
    np.testing.assert_allclose(process.log_snr[1:], -gamma, rtol=1e-5, atol=1e-6)
    x_0, _, eps = batch(6)
    x_0 = jnp.clip(jnp.round(x_0 * 127.5) / 127.5, -1.0, 1.0)
    for t in (1, 2, 11, T):
        at = jnp.full(6, t, jnp.int32)
        x_t = ddpm_jax.q_sample(process, x_0, at, eps)
        denoise_fn = ddpm_jax.make_denoise_fn(process, gaussian, jnp.float32(1.0), clip_x_0=False)
        prediction = denoise_fn(x_t, at)
        wanted = TAU**2 * np.exp(-0.5 * gamma[t - 1]) / (TAU**2 * np.exp(-gamma[t - 1]) + 1)
        np.testing.assert_allclose(  # the network received this chain's noise level
            prediction.x_0, wanted * x_t / scipy.special.expit(gamma[t - 1]) ** 0.5, rtol=1e-3,
            atol=1e-5,
        )  # fmt: skip
        term = likelihood.step_term(
            process, prediction, x_0, x_t, at, variance="fixed_small", decoder=DECODER
        )
        error = np.square(eps - prediction.eps).mean(axis=1) / np.log(2.0)
        if t > 1:
            step = 0.5 * np.expm1(gamma[t - 1] - gamma[t - 2])
            np.testing.assert_allclose(term, step * error, rtol=2e-3)
        else:
            ends = tuple(jnp.float32(g) for g in (gamma[0], gamma[-1]))
            terms = fixed_bound(straight, ends, x_0, jnp.zeros(6), eps)
            np.testing.assert_allclose(terms.reconstruction, term, rtol=1e-3, atol=1e-6)
            prior = likelihood.prior_term(process, x_0)
            np.testing.assert_allclose(terms.prior, prior, rtol=1e-3, atol=1e-6)


def test_samplers_walk_the_learned_chain():
    """Samples are N(0, τ²), from a network that receives only the noise level in place of t."""
    process = vdm.process_from_gamma(np.asarray(table(GAMMA, moved(PARAMS, 0.5), 60)), GAMMA_RANGE)
    assert process.timesteps.dtype == jnp.float32
    sample = ddpm_jax.make_sample(
        process, gaussian, shape=(D,), sampler=ddpm_jax.samplers.ddim(process), clip_x_0=False
    )
    images = np.asarray(sample(jnp.float32(1.0), jax.random.key(0), 512))
    assert abs(images.std() - TAU) < 4 * TAU / (2 * images.size) ** 0.5 + 0.01
    half = ddpm_jax.respace(process, np.arange(2, 61, 2))
    np.testing.assert_array_equal(half.timesteps[1:], process.timesteps[2::2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_gamma(5.0, -13.3), r"gamma_0 .*must be below gamma_1 .*, found 5 and -13.3"),
        (lambda: make_gamma(float("nan"), 5.0), "gamma_0 .*must be below .*, found nan and 5"),
        (lambda: table(GAMMA, PARAMS, 1), "num_timesteps must be at least 2 .* found 1"),
        (
            lambda: vdm.process_from_gamma(np.array([-3.0, 1.0, 1.0]), GAMMA_RANGE),
            "gamma must rise strictly, found 1 and 1 at t = 2 and 3",
        ),
        (lambda: vdm.process_from_gamma(np.array([np.nan]), GAMMA_RANGE), "finite numbers"),
        (
            lambda: bound(gaussian, jnp.float32(1.0), PARAMS, *batch(2), kind="noise"),
            "unknown kind 'noise'",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(call, message):
    with pytest.raises(UserError, match=message):
        call()
