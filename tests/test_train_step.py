"""What a train step must not get wrong, on a linear network: seconds, where a U-Net takes minutes.

Each test fails on one plausible mistake that Adam, a warm-up from 0 or zero initial weights hide.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax import build, data
from ddpm_jax.config import OptimConfig, from_dict
from ddpm_jax.data.sources import ArraySource
from ddpm_jax.models import Model
from ddpm_jax.runtime import devices
from ddpm_jax.time_samplers import TimeSampler, uniform
from ddpm_jax.training.feed import feed
from ddpm_jax.training.held_out import make_held_out
from ddpm_jax.training.objectives import (
    clean_pixels,
    make_accuracy_step,
    make_eval_step,
    of_noisy_images,
)
from ddpm_jax.training.optimizer import make_optimizer, norm
from ddpm_jax.training.parts import Parts, build_parts
from ddpm_jax.training.step import init_state, make_train_step

pytestmark = [
    pytest.mark.quick_to_compile,
    pytest.mark.loose_promotion(reason="optax's schedules multiply floats with int32 counts"),
]

B, SHAPE, T = 8, (2, 2, 1), 1000
OPTIM = OptimConfig(warmup_steps=0, learning_rate=0.1, clip_norm=0.0, ema_decay=0.9)
START = {"a": jnp.float32(2.0), "b": jnp.float32([1.0, -3.0])}
LINEAR = Model(lambda key: START, lambda params, x, t, cond, *, train, key: params["a"] * x)


def error(params, x_0, t, eps, cond, train, key):
    """The squared error of a x_0 + b: [B]; b is the same for all pixels."""
    return jnp.square(params["a"] * x_0 + params["b"].sum() - eps).mean((1, 2, 3))


def noise_seen(params, x_0, t, eps, cond, train, key):
    """What an example drew: its ε, and its dropout if there is any."""
    drawn = 0.0 if key is None else jax.random.normal(key, t.shape)
    return eps.mean((1, 2, 3)) + 10.0 * drawn + 0.0 * params["a"]


def watched(weight=None):
    """Uniform times; the state holds what the sampler last received: (t, loss), in batch order."""
    weight = jnp.ones(B) if weight is None else weight
    return TimeSampler(
        init=lambda: (jnp.zeros(B, jnp.int32), jnp.zeros(B)),
        draw=lambda state, key, size: (uniform(T).draw((), key, size)[0], weight),
        update=lambda state, t, loss: (t, loss),
    )


def a_step(loss_fn=error, *, times=None, optim=OPTIM, accumulate=1):
    """Return the first state and the jitted step."""
    times, optimizer = times or watched(), make_optimizer(optim, 100)
    objective = of_noisy_images(
        loss_fn,
        times,
        num_timesteps=T,
        p_uncond=0.0,
        clean_fn=clean_pixels,
        cond_fn=lambda batch: None,
    )
    step = make_train_step(
        objective, optimizer, optim_config=optim, accumulate=accumulate, key=jax.random.key(0)
    )
    state = init_state(LINEAR.init, optimizer, jax.random.key(0), objective.init())
    return state, jax.jit(step)


def a_batch(seed=0):
    rng = np.random.default_rng(seed)
    return {"image": rng.integers(0, 256, (B, *SHAPE), np.uint8), "label": np.zeros(B, np.int32)}


def test_the_gradient_of_micro_batches_is_their_mean():
    """Adam does not see the scale of a gradient; its norm does."""
    rows = []
    for accumulate in (1, 4):
        state, step = a_step(accumulate=accumulate)
        rows.append(step(state, a_batch())[1])
    np.testing.assert_allclose(rows[1]["grad_norm"], rows[0]["grad_norm"], rtol=1e-5)
    np.testing.assert_allclose(rows[1]["loss"], rows[0]["loss"], rtol=1e-5)


def test_micro_batches_and_steps_draw_dropout_of_their_own():
    state, step = a_step(noise_seen, accumulate=4)
    first, _ = step(state, a_batch())
    second, _ = step(first, a_batch())
    for loss in (first.time_state[1], second.time_state[1]):
        # ε is at most 2.5 of the 10: a shared key would leave the rest equal in all micro-batches
        drawn = np.asarray(loss).reshape(-1, 4).T  # micro-batch i has examples i, i + 4, ...
        for i in range(4):
            for j in range(i):
                assert np.abs(drawn[i] - drawn[j]).max() > 3.0
    assert np.abs(first.time_state[1] - second.time_state[1]).max() > 3.0


def test_every_step_draws_its_own_t_and_eps():
    def eps_seen(params, x_0, t, eps, cond, train, key):
        return eps.mean((1, 2, 3)) + 0.0 * params["a"]

    state, step = a_step(eps_seen)
    first, _ = step(state, a_batch())
    second, _ = step(first, a_batch())
    again, _ = step(state, a_batch())
    for i in (0, 1):  # t, then ε
        assert np.mean(first.time_state[i] == second.time_state[i]) < 0.3
        np.testing.assert_array_equal(first.time_state[i], again.time_state[i])


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_time_sampler_learns_the_loss_without_its_weight(accumulate):
    weight = jnp.arange(1.0, B + 1.0)

    def loss_fn(params, x_0, t, eps, cond, train, key):
        return t / T + 0.0 * params["a"]

    state, step = a_step(loss_fn, times=watched(weight), accumulate=accumulate)
    state, row = step(state, a_batch())
    t, loss = state.time_state
    np.testing.assert_allclose(loss, t / T, rtol=1e-6)
    np.testing.assert_allclose(row["loss"], np.mean(np.asarray(weight) * t / T), rtol=1e-5)


@pytest.mark.parametrize("ema_warmup", [True, False])
def test_the_average_starts_at_the_weights_and_follows_them(ema_warmup):
    state, step = a_step(optim=dataclasses.replace(OPTIM, ema_warmup=ema_warmup))
    average = {name: np.float64(leaf) for name, leaf in START.items()}
    for n in range(4):
        state, _ = step(state, a_batch(n))
        d = min(0.9, (1 + n) / (10 + n)) if ema_warmup else 0.9
        for name, leaf in state.params.items():
            average[name] = d * average[name] + (1 - d) * np.float64(leaf)
            np.testing.assert_allclose(state.ema_params[name], average[name], rtol=1e-5)
    assert np.all(np.abs(state.params["b"] - START["b"]) > 0.1)


def by_hand(optim, gradients, x):
    """Adam (Kingma & Ba 2015, alg. 1) and AdamW (Loshchilov & Hutter 2019, alg. 2)."""
    m, v = np.zeros_like(x), np.zeros_like(x)
    for n, g in enumerate(gradients, start=1):
        norm = np.sqrt(np.sum(g**2))
        if optim.clip_norm and norm > optim.clip_norm:
            g = g * optim.clip_norm / norm
        m = optim.b1 * m + (1 - optim.b1) * g
        v = optim.b2 * v + (1 - optim.b2) * g**2
        m_hat, v_hat = m / (1 - optim.b1**n), v / (1 - optim.b2**n)
        x = x - optim.learning_rate * (
            m_hat / (np.sqrt(v_hat) + optim.eps) + optim.weight_decay * x
        )
    return x


@pytest.mark.parametrize(
    "changes",
    [
        dict(b1=0.5),
        dict(b2=0.6),
        dict(eps=0.3),
        dict(clip_norm=1.0),
        dict(name="adamw", weight_decay=0.5),
        dict(name="adamw", weight_decay=0.5, clip_norm=2.0, b1=0.8, b2=0.7),
    ],
)
def test_the_optimizer_is_the_papers_with_every_option_of_the_config(changes):
    optim = dataclasses.replace(OPTIM, **changes)
    x = np.array([1.0, -2.0, 0.5])
    # Gradients above and below the norm that is clipped, so that the order of the two shows
    gradients = [np.array(g) for g in ([3.0, -1.0, 0.2], [0.1, 0.3, -0.2], [-2.0, 4.0, 1.0])]
    optimizer = make_optimizer(optim, 100)
    found = jnp.float32(x)
    state = optimizer.init(found)
    for g in gradients:
        update, state = optimizer.update(jnp.float32(g), state, found)
        found = found + update
    np.testing.assert_allclose(found, by_hand(optim, gradients, x), rtol=1e-5)
    plain = by_hand(OPTIM, gradients, x)
    assert np.abs(found - plain).max() > 1e-3  # the option matters here


@pytest.mark.parametrize("size", [0.0, 1e-42, 1e-30, 1e-20, 1.0, 1e18])
@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(eps=1e-18),
        dict(eps=1e-18, b1=0.999, b2=0.0),
        dict(b1=0.0, b2=1 - 2**-24),
        dict(clip_norm=1.0),
        dict(name="adamw", weight_decay=1.0),
    ],
    ids=str,
)
def test_a_finite_gradient_gives_a_finite_update(changes, size):
    """So one check of the gradient is enough, with every value that a config may have."""
    optimizer = make_optimizer(dataclasses.replace(OPTIM, **changes), 100)
    params = {"a": jnp.float32([1.0, -2.0]), "b": jnp.float32(0.5)}
    state = optimizer.init(params)
    for factor in (1.0, 0.0, -1.0, 1e-3):
        gradient = {"a": jnp.float32([size, -size]), "b": jnp.float32(0.0)}
        gradient = jax.tree.map(lambda g, factor=factor: np.float32(factor) * g, gradient)
        moves, state = optimizer.update(gradient, state, params)
        assert bool(state.last_finite)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((moves, state)))


def test_the_norm_is_that_of_all_entries():
    rng = np.random.default_rng(0)
    shapes = [(), (3,), (2, 3), (3, 3, 2, 4), (5,)]
    tree = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    expected = np.sqrt(sum(np.square(np.float64(leaf)).sum() for leaf in tree))
    np.testing.assert_allclose(norm(tree), expected, rtol=1e-6)
    np.testing.assert_allclose(norm(tree[2:4]), np.linalg.norm(np.concatenate(
        [np.ravel(leaf) for leaf in tree[2:4]])), rtol=1e-6)  # fmt: skip


def test_a_gradient_whose_norm_overflows_is_skipped():
    """Clipped by an infinite norm it would be 0, and only wear the moments down."""

    def steep(params, *args):
        return 1e25 * params["a"] * jnp.ones(B)

    start, step = a_step(steep, optim=dataclasses.replace(OPTIM, clip_norm=1.0))
    state, row = step(start, a_batch())
    assert int(row["skipped"]) == 1 and float(state.params["a"]) == 2.0


def test_the_counts_of_skipped_updates_are_stored_as_in_old_checkpoints():
    optimizer = make_optimizer(OPTIM, 100)
    old = optax.apply_if_finite(optax.adam(lambda step: 0.1), 5).init(START)
    found = optimizer.update(START, optimizer.init(START), START)[1]
    assert jax.tree.structure(found) == jax.tree.structure(old)
    for new, leaf in zip(jax.tree.leaves(found), jax.tree.leaves(old), strict=True):
        assert (new.shape, new.dtype) == (leaf.shape, leaf.dtype)


def test_a_loss_that_is_not_finite_teaches_the_time_sampler_nothing():
    def loss_fn(params, x_0, t, eps, cond, train, key):
        return jnp.inf + 0.0 * params["a"] * jnp.ones(B)

    start, step = a_step(loss_fn)
    state, _ = step(start, a_batch())
    jax.tree.map(np.testing.assert_array_equal, state.time_state, start.time_state)


def test_every_held_out_batch_draws_its_own_t_and_eps_and_all_of_them_count_once():
    config = from_dict(
        {"train": {"batch_size": B}, "eval": {"num_examples": 12}, "mesh": {"data": 1}}
    )
    source = ArraySource(np.zeros((20, *SHAPE), np.uint8), np.zeros(20, np.int32))
    dataset = data.Dataset(source, source, SHAPE, 0, ())
    step = make_eval_step(
        noise_seen,
        uniform(T),
        clean_fn=clean_pixels,
        cond_fn=lambda batch: None,
        key=jax.random.key(1),
    )
    state, _ = a_step()
    parts = Parts(
        name="linear",
        rate=lambda step: 0.1,
        init=lambda: state,
        train_step=lambda state, batch: (state, {}),
        eval_step=lambda *args: {"noise": step(*args)},
        figures=("noise",),
    )
    held_out = make_held_out(config, dataset, {}, parts, devices.make_mesh(config))
    drawn = [np.asarray(step(START, a_batch(), i)) for i in (0, 1)]
    assert np.abs(drawn[0] - drawn[1]).max() > 0.1
    wanted = np.concatenate([drawn[0], drawn[1][:4]]).mean()  # 12 images, in batches of 8
    assert held_out(START) == {"noise": pytest.approx(wanted, abs=1e-5)}
    assert held_out(START) == held_out(START)
    nothing = dataclasses.replace(dataset, test=None)
    assert make_held_out(config, nothing, {}, parts, devices.make_mesh(config)) is None


def test_accuracy_is_measured_in_each_quarter_of_the_timesteps():
    """The figure is here t, and then the mean ε, instead of whether the class is right."""

    def figures(right_fn, index):
        step = make_accuracy_step(right_fn, T, clean_fn=clean_pixels, key=jax.random.key(0))
        batch = {"image": np.zeros((1000, *SHAPE), np.uint8), "label": np.zeros(1000, np.int32)}
        found = jax.jit(step)(START, batch, index)
        assert list(found) == [f"accuracy_t_quartile_{i}" for i in (1, 2, 3, 4)]
        return [np.asarray(figure) for figure in found.values()]

    for quarter, t in enumerate(figures(lambda params, x_0, t, eps, label: t, 0)):
        low, high = 250 * quarter + 1, 250 * (quarter + 1)
        assert low <= t.min() < low + 5 and high - 5 < t.max() <= high
    eps = figures(lambda params, x_0, t, eps, label: eps.mean((1, 2, 3)), 0)
    others = figures(lambda params, x_0, t, eps, label: eps.mean((1, 2, 3)), 1)
    assert np.abs(eps[0] - eps[1]).max() > 0.1 and np.abs(eps[0] - others[0]).max() > 0.1


def test_fused_steps_take_the_batches_in_their_order():
    config = from_dict({"data": {"name": "digits"}, "train": {"batch_size": B}})
    images = np.arange(40, dtype=np.uint8).reshape(-1, 1, 1, 1)
    batches = data.Batches(ArraySource(images, np.arange(40, dtype=np.int32)), B, seed=0)
    single, fused = (
        [*feed(config.data, batches, devices.make_mesh(config), calls)]
        for calls in ([(0, None), (1, None), (2, None)], [(0, 3)])
    )
    for name in ("image", "label"):
        for i in range(3):
            np.testing.assert_array_equal(fused[0][name][i], single[i][name])
            np.testing.assert_array_equal(single[i][name], batches.batch(i)[name])


def test_a_learned_schedule_is_trained_on_its_prior_too(monkeypatch):
    """A network that knows ε leaves only the prior for the gradient of γ_1.

    KL(q(z_1|x) ‖ N(0, I)) = ½ (α_1² x² + σ_1² - 1 - ln σ_1²) in each dimension. Its derivative by
    γ_1 is ½ (σ_1² α_1² (1 - x²) - α_1²), because dσ_1²/dγ_1 = σ_1² α_1² = -dα_1²/dγ_1.
    """
    low, high, pixel = -10.0, -1.0, 64
    x = pixel / 127.5 - 1

    def knows_eps(params, z, t, cond, *, train, key):
        gamma = (low + (high - low) / 1000 * t)[:, None, None, None]
        return (z - jnp.sqrt(jax.nn.sigmoid(-gamma)) * x) / jnp.sqrt(jax.nn.sigmoid(gamma))

    monkeypatch.setattr(build, "model", lambda *_: Model(lambda key: {}, knows_eps))
    config = from_dict(
        {
            "process": {
                "schedule": "learned",
                "num_timesteps": 10,
                "gamma_min": low,
                "gamma_max": high,
            }
        }
    )
    parts = build_parts(config, SHAPE, 0)
    batch = {"image": np.full((B, *SHAPE), pixel, np.uint8), "label": np.zeros(B, np.int32)}

    def mean_loss(params):
        return parts.eval_step(params, batch, 0)["held_out_loss"].mean()

    found = jax.jit(jax.grad(mean_loss))(parts.init().params)["schedule"]["ends"]["gamma_1"]
    variance = 1 / (1 + np.exp(-high))
    wanted = 0.5 * (1 - variance) * (variance * (1 - x**2) - 1) / np.log(2.0)
    assert float(found) == pytest.approx(wanted, rel=1e-3)
