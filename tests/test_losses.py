import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import ddpm_jax
from ddpm_jax import losses
from ddpm_jax.errors import UserError
from ddpm_jax.likelihood.terms import step_term
from ddpm_jax.predictions import KINDS, to_prediction, training_target

chains = pytest.mark.parametrize(("schedule", "T"), oracles.CHAINS)
WEIGHTINGS = (losses.simple, losses.vlb, losses.min_snr, losses.p2)


def process_of(schedule, T):
    return ddpm_jax.make_process(oracles.betas(schedule, T))


def constant_network(params, x_t, t, cond, *, train, key):
    """Return the parameters: they are the network's output."""
    return params


@functools.partial(jax.jit, static_argnames=("kind", "weighting"))
def loss(process, output, x_0, t, eps, kind="eps", weighting=losses.simple):
    return losses.denoising_loss(
        process,
        constant_network,
        output,
        x_0,
        t,
        eps,
        kind=kind,
        weighting=weighting,
        train=False,
        key=None,
    )


@functools.partial(jax.jit, static_argnames=("kind",))
def target(process, x_0, eps, t, kind):
    return training_target(process, x_0, eps, t, kind)


OPTIONS = {
    "vlb": losses.vlb,
    "fixed_small": functools.partial(losses.vlb, variance="fixed_small"),
    "fixed_large": functools.partial(losses.vlb, variance="fixed_large"),
    "min_snr": losses.min_snr,
    "min_snr 5": functools.partial(losses.min_snr, gamma=5.0),
    "min_snr 1": functools.partial(losses.min_snr, gamma=1.0),
    "p2": losses.p2,
    "p2 1 1": functools.partial(losses.p2, k=1.0, gamma=1.0),
    "p2 0.3 2": functools.partial(losses.p2, k=0.3, gamma=2.0),
}


@jax.jit
def all_weights(process, t):
    return {
        kind: {name: weight(process, t, kind) for name, weight in OPTIONS.items()} for kind in KINDS
    }


@jax.jit
def all_losses(process, x_0, x_hat, eps, eps_hat, t):
    """Return the losses of the wrong prediction (x_hat, eps_hat), expressed in each kind."""
    return {
        kind: {
            name: loss(
                process,
                training_target(process, x_hat, eps_hat, t, kind),
                x_0,
                t,
                eps,
                kind=kind,
                weighting=OPTIONS[name],
            )
            for name in ("fixed_small", "fixed_large", "min_snr", "p2")
        }
        for kind in KINDS
    }


@functools.cache
def weights_of(schedule, T):
    weights = all_weights(process_of(schedule, T), np.arange(1, T + 1))
    return {kind: jax.tree.map(np.asarray, weights[kind]) for kind in oracles.kinds(schedule)}


@functools.cache
def losses_of(schedule, T):
    process, (x_0, x_hat, eps, t) = process_of(schedule, T), data(T)
    mean, covariance = oracles.chain_moments(schedule, T)
    ratio = (mean[1:] / np.sqrt(np.diag(covariance)[1:]))[:, None, None]
    # eps_hat follows from x_hat at the same x_t: eps_hat = eps + (x_0 - x_hat) alpha / sigma
    eps_hat = (eps + ratio * (x_0.astype(np.float64) - x_hat)).astype(np.float32)
    values = all_losses(process, x_0, x_hat, eps, eps_hat, t)
    return {kind: jax.tree.map(np.asarray, values[kind]) for kind in oracles.kinds(schedule)}


def data(T, n=3):
    """Return x_0, a wrong prediction of x_0, eps, and t: a batch with every t of the chain."""
    rng = np.random.default_rng(T)
    x_0 = rng.uniform(-1, 1, (T, 2, n)).astype(np.float32)
    x_hat = rng.uniform(-1, 1, (T, 2, n)).astype(np.float32)
    return x_0, x_hat, rng.normal(size=(T, 2, n)).astype(np.float32), np.arange(1, T + 1)


def snr_of(schedule, T):
    mean, covariance = oracles.chain_moments(schedule, T)
    return mean[1:] ** 2 / np.diag(covariance)[1:]


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 5, 1), (4, 5, 3, 4)])
def test_l_simple_is_the_mean_squared_error_of_each_example(shape):
    rng = np.random.default_rng(0)
    x_0, eps, output = rng.normal(size=(3, *shape)).astype(np.float32)
    process, t = process_of("linear", 1000), np.array([1, 10, 500, 1000])
    ours = loss(process, output, x_0, t, eps)
    assert ours.shape == (4,) and ours.dtype == jnp.float32
    for i in range(4):
        assert ours[i] == pytest.approx(np.mean((eps[i] - output[i]) ** 2), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_simple_is_the_error_of_whatever_the_network_predicts(kind):
    process, (x_0, _, eps, t) = process_of("cosine", 10), data(10)
    right = target(process, x_0, eps, t, kind)
    np.testing.assert_allclose(loss(process, right, x_0, t, eps, kind=kind), 0.0, atol=1e-12)
    np.testing.assert_allclose(loss(process, right + 2, x_0, t, eps, kind=kind), 4.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "T"), [chain for chain in oracles.CHAINS if "eps" in oracles.kinds(chain[0])]
)
def test_the_vlb_weight_of_eps_is_hos_closed_form(schedule, T):
    betas = oracles.betas(schedule, T)
    a_bar = np.array([np.prod(1 - betas[:n]) for n in range(T + 1)])
    tilde = betas * (1 - a_bar[:-1]) / (1 - a_bar[1:])
    tilde[0] = tilde[1] if T > 1 else betas[0]
    for variance, sigma_2 in (
        ("fixed_small", tilde),
        ("fixed_large", np.append(tilde[0], betas[1:])),
    ):
        expected = betas**2 / (2 * sigma_2 * (1 - betas) * (1 - a_bar[1:]))
        np.testing.assert_allclose(weights_of(schedule, T)["eps"][variance], expected, rtol=5e-6)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@chains
def test_the_vlb_loss_is_the_kl_of_the_two_gaussians(schedule, T, variance):
    """The loss is D_KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) per dimension, up to a constant.

    The constant is the divergence of a prediction without error.
    """
    x_0, x_hat, _, _ = data(T)
    snr = snr_of(schedule, T)
    for i in {1, 2, 6, T // 3, T // 2, T - 2, T - 1}:  # row i has t = i + 1 >= 2
        if not 1 <= i < T:
            continue
        c_1, c_2, q_variance = oracles.posterior(schedule, T, i + 1, i)
        p_variance = q_variance
        if variance == "fixed_large":
            p_variance = oracles.betas(schedule, T)[i]
        q_mean, p_mean = c_1 * x_0[i].astype(np.float64), c_1 * x_hat[i].astype(np.float64)
        kl = oracles.gaussian_kl(q_mean, q_variance, p_mean, p_variance).mean()
        floor = oracles.gaussian_kl(0.0, q_variance, 0.0, p_variance)
        assert variance == "fixed_large" or floor == 0
        for kind, ours in losses_of(schedule, T).items():
            # at low SNR the error of eps is small, so rounding weighs more
            rounding = 1e-6 / np.sqrt(snr[i]) if kind == "eps" else 0.0
            expected = pytest.approx(kl - floor, rel=2e-4 + rounding, abs=1e-10)
            assert ours[variance][i] == expected, (kind, i + 1)


@chains
def test_a_weighted_loss_does_not_depend_on_how_the_network_says_it(schedule, T):
    rounding = 2e-6 / np.sqrt(np.maximum(snr_of(schedule, T), 1e-30))  # of the error of eps
    ours = losses_of(schedule, T)
    for weighting in ("fixed_small", "fixed_large", "min_snr", "p2"):
        assert np.all(np.isfinite(ours["x_0"][weighting]))
        for kind in ours:
            limit = 3e-4 + (rounding if kind == "eps" else 0.0)
            difference = np.abs(ours[kind][weighting] - ours["x_0"][weighting])
            assert np.all(difference <= limit * ours["x_0"][weighting]), (weighting, kind)


@chains
def test_min_snr_is_hang_et_als_weight_of_each_kind(schedule, T):
    snr = snr_of(schedule, T)
    for kind, ours in weights_of(schedule, T).items():
        for name, gamma in (("min_snr 5", 5.0), ("min_snr 1", 1.0)):
            paper = np.minimum(snr, gamma)
            if kind != "x_0":
                paper = paper / snr if kind == "eps" else paper / (snr + 1)
            np.testing.assert_allclose(ours[name], paper, rtol=1e-5)


@chains
def test_p2_is_choi_et_als_weight_of_eps(schedule, T):
    snr = snr_of(schedule, T)
    for kind, ours in weights_of(schedule, T).items():
        for name, k, gamma in (("p2 1 1", 1.0, 1.0), ("p2 0.3 2", 0.3, 2.0)):
            on_eps = 1 / (k + snr) ** gamma
            in_kind = dict(eps=1.0, x_0=snr, v=snr / (snr + 1))[kind]
            np.testing.assert_allclose(ours[name], on_eps * in_kind, rtol=1e-5)


def test_defaults_are_the_papers():
    for ours in weights_of("linear", 1000).values():
        np.testing.assert_array_equal(ours["min_snr"], ours["min_snr 5"])
        np.testing.assert_array_equal(ours["p2"], ours["p2 1 1"])
        np.testing.assert_array_equal(ours["vlb"], ours["fixed_large"])


def test_the_loss_is_zero_with_zero_gradient_at_the_target_and_there_alone():
    process, (x_0, _, eps, t) = process_of("linear", 10), data(10)
    cases = [(kind, weighting) for kind in KINDS for weighting in WEIGHTINGS]

    @jax.jit
    def off_by(error):
        def total(error, kind, weighting):
            output = training_target(process, x_0, eps, t, kind) + error
            value = loss(process, output, x_0, t, eps, kind=kind, weighting=weighting)
            return value.sum(), value

        return [jax.grad(total, has_aux=True)(error, *case) for case in cases]

    for gradient, value in off_by(np.zeros_like(x_0)):
        np.testing.assert_allclose(value, 0.0, atol=1e-10)
        np.testing.assert_allclose(gradient, 0.0, atol=1e-5)
    for gradient, value in off_by(np.full_like(x_0, 0.1)):
        assert np.all(value > 1e-6) and np.all(gradient > 1e-6)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_an_example_does_not_depend_on_its_neighbours(weighting):
    process, (x_0, x_hat, eps, t) = process_of("linear", 10), data(10)
    together = loss(process, x_hat, x_0, t, eps, weighting=weighting)
    for i in (0, 4, 9):
        row = slice(i, i + 1)
        alone = loss(process, x_hat[row], x_0[row], t[row], eps[row], weighting=weighting)
        np.testing.assert_allclose(alone[0], together[i], rtol=1e-6)


def test_a_bfloat16_network_has_a_float32_loss():
    process, (x_0, x_hat, eps, t) = process_of("linear", 10), data(10)
    ours = loss(process, x_hat.astype(jnp.bfloat16), x_0, t, eps)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, loss(process, x_hat, x_0, t, eps), rtol=0.05)


def test_the_network_sees_x_t_and_t_minus_1_and_the_training_key():
    process, (x_0, _, eps, t) = process_of("linear", 10), data(10)
    seen = {}

    def network(params, x_t, t, cond, *, train, key):
        seen.update(params=params, x_t=x_t, t=t, cond=cond, train=train, key=key)
        return jnp.zeros_like(x_t)

    cond, key = {"label": jnp.arange(10)}, jax.random.key(3)
    losses.denoising_loss(process, network, "params", x_0, t, eps, cond, train=True, key=key)
    np.testing.assert_array_equal(seen["x_t"], ddpm_jax.q_sample(process, x_0, t, eps))
    np.testing.assert_array_equal(seen["t"], t - 1)
    assert seen["params"] == "params" and seen["cond"] is cond
    assert seen["train"] is True and seen["key"] is key


def test_unknown_names_are_errors_with_the_nearest_one():
    process, (x_0, x_hat, eps, t) = process_of("linear", 10), data(10)
    with pytest.raises(UserError, match="unknown kind 'V'; .*allowed: eps, v, x_0"):
        loss(process, x_hat, x_0, t, eps, kind="V")
    with pytest.raises(UserError, match="unknown kind 'V'"):
        losses.min_snr(process, t, "V")
    with pytest.raises(UserError, match="unknown variance 'fixed_lage'; did you mean"):
        losses.vlb(process, t, "eps", variance="fixed_lage")


# The variational bound as a loss


@functools.partial(jax.jit, static_argnames=("kind", "objective", "variance", "vlb_lambda"))
def objective_loss(process, output, x_0, t, eps, objective, kind="eps", **options):
    return losses.denoising_loss(
        process,
        constant_network,
        output,
        x_0,
        t,
        eps,
        kind=kind,
        objective=objective,
        train=False,
        key=None,
        **options,
    )


def learned_case(kind="eps", T=100):
    """Return a process, an output that includes the variance, and x_0, t, eps of a batch of 3."""
    rng = np.random.default_rng(0)
    x_0, eps, output, v = rng.normal(size=(4, 3, 2, 2, 1)).astype(np.float32)
    output = np.concatenate([output, np.tanh(v)], axis=-1)
    return process_of("linear", T), output, np.clip(x_0, -1, 1), np.array([1, 30, T]), eps


@pytest.mark.parametrize("kind", KINDS)
def test_the_hybrid_loss_is_simple_plus_lambda_times_the_bound(kind):
    process, output, x_0, t, eps = learned_case()
    simple = loss(process, output[..., :1], x_0, t, eps, kind=kind)
    bound = objective_loss(process, output, x_0, t, eps, "vlb", kind)
    hybrid = objective_loss(process, output, x_0, t, eps, "hybrid", kind, vlb_lambda=0.01)
    np.testing.assert_allclose(hybrid, simple + 0.01 * bound, rtol=1e-5)


@pytest.mark.slow
def test_the_bound_is_T_times_its_term_in_bits_per_dim():
    process, output, x_0, t, eps = learned_case()
    x_t = ddpm_jax.q_sample(process, x_0, t, eps)
    prediction = to_prediction(process, jnp.asarray(output), x_t, t, "eps")
    for variance in ("learned_range", "fixed_large"):
        wanted = 100 * step_term(process, prediction, x_0, x_t, t, variance=variance)
        found = objective_loss(process, output, x_0, t, eps, "vlb", variance=variance)
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_the_hybrid_bound_trains_the_variance_and_not_the_mean():
    process, output, x_0, t, eps = learned_case()

    def gradient(objective, **options):
        def total(output):
            return objective_loss(process, output, x_0, t, eps, objective, **options).sum()

        return jnp.split(jax.grad(total)(jnp.asarray(output)), 2, axis=-1)

    mean, variance = gradient("hybrid", vlb_lambda=0.01)
    simple, nothing = gradient("simple")
    vlb_mean, vlb_variance = gradient("vlb")
    np.testing.assert_allclose(mean, simple, rtol=1e-5)
    np.testing.assert_allclose(variance, 0.01 * vlb_variance, rtol=1e-4, atol=1e-7)
    assert not np.any(nothing) and np.any(vlb_mean != 0) and np.any(vlb_variance != 0)


def test_the_bound_needs_a_variance_that_is_there_and_an_objective_that_is_known():
    process, output, x_0, t, eps = learned_case()
    with pytest.raises(UserError, match="learned_range.*twice the channels"):
        objective_loss(process, output[..., :1], x_0, t, eps, "hybrid")
    with pytest.raises(UserError, match="unknown objective 'elbo'"):
        objective_loss(process, output, x_0, t, eps, "elbo")
