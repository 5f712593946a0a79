"""Null conditioning in training and in guidance, and the conditioning that a config asks for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_training import make_batch
from tiny import make_config

from ddpm_jax import build, conditioning
from ddpm_jax.build import guidance as guides
from ddpm_jax.data.cond import coarse, cond_names, make_cond_fn
from ddpm_jax.errors import UserError
from ddpm_jax.runs.state import TrainState
from ddpm_jax.time_samplers import uniform
from ddpm_jax.training.objectives import clean_pixels, make_eval_step, of_noisy_images
from ddpm_jax.training.optimizer import make_optimizer
from ddpm_jax.training.parts import build_parts
from ddpm_jax.training.step import make_train_step

pytestmark = pytest.mark.loose_promotion(reason="optax's schedules multiply floats with int32")


def rows(n):
    rng = np.random.default_rng(0)
    return {
        "label": rng.integers(0, 5, n, np.int32),
        "embedding": rng.normal(size=(n, 3)).astype(np.float32),
        "context": rng.normal(size=(n, 2, 4)).astype(np.float32),
        "context_mask": np.ones((n, 2), bool),
        "image": rng.normal(size=(n, 1, 1, 1)).astype(np.float32),
    }


def is_null(cond):
    """Return which rows of each entry are null: {entry: bool [B]}."""
    return {
        "label": np.asarray(cond["label"]) < 0,
        "embedding": ~np.asarray(cond["embedding"]).any(1),
        "context_mask": ~np.asarray(cond["context_mask"]).any(1),
    }


def test_hidden_rows_are_null_in_all_but_the_image_and_the_others_stay():
    cond, hidden = rows(4), np.array([True, False, False, True])
    dropped = conditioning.drop(cond, jnp.asarray(hidden))
    for name, null in is_null(dropped).items():
        np.testing.assert_array_equal(null, hidden, err_msg=name)
    for name, value in cond.items():
        assert dropped[name].dtype == value.dtype
        np.testing.assert_array_equal(dropped[name][1:3], value[1:3])
    np.testing.assert_array_equal(dropped["image"], cond["image"])


def test_every_row_has_its_twin_and_the_image_stays_in_both():
    cond = rows(3)
    twins = conditioning.with_null(cond)
    for null in is_null(twins).values():
        np.testing.assert_array_equal(null, [False, True] * 3)
    for name, value in cond.items():
        np.testing.assert_array_equal(twins[name][::2], value)
    np.testing.assert_array_equal(twins["image"][1::2], cond["image"])
    with pytest.raises(UserError, match=r"can be null, but cond has only \['image'\]"):
        conditioning.with_null({"image": cond["image"]})


@pytest.fixture(scope="module")
def received():
    """Return the cond that the network receives in two train steps and one eval step.

    Each step has the same 4,000 examples.
    """
    config, n, seen = make_config(loss__p_uncond=0.2), 4000, []
    optimizer = make_optimizer(config.optim, 10)
    params = {"w": jnp.ones(())}

    def loss_fn(params, x_0, t, eps, cond, train, key):
        seen.append(cond)
        return params["w"] * jnp.ones(len(t))

    def cond_fn(batch):
        return {name: jnp.asarray(value) for name, value in batch["cond"].items()}

    objective = of_noisy_images(
        loss_fn,
        uniform(8),
        num_timesteps=8,
        p_uncond=config.loss.p_uncond,
        clean_fn=clean_pixels,
        cond_fn=cond_fn,
    )
    step = make_train_step(
        objective, optimizer, optim_config=config.optim, accumulate=1, key=jax.random.key(0)
    )
    batch = {"image": np.zeros((n, 1, 1, 1), np.uint8), "cond": rows(n)}
    state = TrainState(jnp.int32(0), params, params, optimizer.init(params))
    with jax.numpy_dtype_promotion("standard"):  # the mark does not cover this fixture
        for i in range(2):  # without jit, so that `seen` gets numbers
            step(dataclasses.replace(state, step=jnp.int32(i)), batch)
    evaluate = make_eval_step(
        loss_fn, uniform(8), clean_fn=clean_pixels, cond_fn=cond_fn, key=jax.random.key(1)
    )
    evaluate(params, batch, 0)
    return seen


@pytest.mark.slow
def test_training_hides_all_of_the_conditioning_at_once_from_p_uncond_of_the_examples(received):
    first, second, _ = (is_null(cond)["label"] for cond in received)
    for cond in received[:2]:
        for null in is_null(cond).values():
            np.testing.assert_array_equal(null, is_null(cond)["label"])
        np.testing.assert_array_equal(cond["image"], rows(4000)["image"])
    assert abs(first.mean() - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 4000)
    assert (first != second).mean() > 0.2  # each step draws again


def test_the_held_out_loss_hides_nothing(received):
    assert not any(null.any() for null in is_null(received[2]).values())


def test_the_network_takes_what_the_config_says():
    everything = make_config(
        data__text=True,
        model__class_conditional=True,
        model__embedding_dim=384,
        model__context_dim=384,
        model__super_resolution=2,
    )
    names = ("label", "embedding", "context", "context_mask", "image")
    assert cond_names(everything) == names
    batch = make_batch(size=2) | {
        "embedding": np.ones((2, 384), np.float32),
        "context": np.ones((2, 3, 384), np.float32),
        "context_mask": np.ones((2, 3), bool),
        "other": np.ones(2),
    }
    cond = make_cond_fn(everything)(batch)
    assert tuple(cond) == names and cond["image"].shape == (2, 8, 8, 1)
    parts = build_parts(everything, (8, 8, 1), 10)
    params = jax.eval_shape(parts.init).params
    assert jax.eval_shape(parts.eval_step, params, batch, 0)["held_out_loss"].shape == (2,)
    assert make_cond_fn(make_config())(batch) is None


def test_the_coarse_image_has_the_means_of_the_blocks():
    x_0 = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 8, 3)), jnp.float32)
    found = np.asarray(coarse(x_0, 2))
    for row, column in ((0, 0), (3, 7), (2, 5)):
        i, j = row // 2 * 2, column // 2 * 2
        wanted = np.asarray(x_0)[:, i : i + 2, j : j + 2].mean((1, 2))
        np.testing.assert_allclose(found[:, row, column], wanted, atol=1e-6)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(model__embedding_dim=384), "model.embedding_dim is 384, but data.text is False"),
        (dict(data__text=True), "data.text is True, but .*set model.embedding_dim=384"),
        (dict(data__text=True, model__context_dim=100), "model.context_dim is 100, .* 384 wide"),
        (dict(model__super_resolution=3), "divides both sides of the 8x8 images, found 3"),
        (dict(model__super_resolution=1), "at least 2 .* found 1"),
    ],
)
def test_a_config_whose_conditioning_cannot_be_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        build_parts(make_config(**changes), (8, 8, 1), 10)


@pytest.mark.parametrize(
    "changes, guided",
    [
        (dict(model__embedding_dim=384), True),
        (dict(model__context_dim=384), True),
        (dict(model__super_resolution=2), False),
        ({}, False),
    ],
)
def test_guidance_needs_something_that_has_a_null(changes, guided):
    config = make_config(**changes, sample__guidance=1.0)
    process = build.process(config.process)
    if guided:
        assert callable(guides.from_config(config, process))
        return
    with pytest.raises(UserError, match="no classes or texts to guide to"):
        guides.from_config(config, process)
