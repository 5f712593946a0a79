"""The U-Net's inputs other than x_t and t: vectors, sequences, images, and their null forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_unet import ONE_LEVEL, forward, inputs, small, weights

from ddpm_jax.errors import UserError
from ddpm_jax.models import count_parameters

pytestmark = pytest.mark.quick_to_compile

B, L, D = 4, 5, 6
ALL = dict(num_classes=3, embedding_dim=7, context_dim=D, image_channels=2)


@pytest.fixture(scope="module")
def network():
    model = small(**ONE_LEVEL, **ALL)
    return model, weights(model)


@pytest.fixture(scope="module")
def run(network):
    model, params = network
    x, t = inputs()
    return lambda cond: np.asarray(forward(model, params, x, t, cond))


@pytest.fixture
def cond():
    rng = np.random.default_rng(5)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    mask = np.arange(L) < np.array([5, 3, 1, 2])[:, None]
    return {
        "label": jnp.array([0, 1, 2, 0], jnp.int32),
        "embedding": normal(B, 7),
        "context": normal(B, L, D),
        "context_mask": jnp.asarray(mask),
        "image": normal(B, 8, 8, 2),
    }


def test_each_entry_adds_the_parameters_counted_by_hand():
    def count(**settings):
        model = small(**ONE_LEVEL, **settings)
        return count_parameters(jax.eval_shape(model.init, jax.random.key(0)))

    plain, C = count(), 8
    assert count(embedding_dim=7) - plain == 7 + (7 + 1) * 4 * C  # null vector, Dense
    # The null position; in the middle: norm, query and out with C inputs, key and value with D.
    assert count(context_dim=D) - plain == D + 2 * C + 2 * (C + 1) * C + 2 * (D + 1) * C
    assert count(image_channels=2) - plain == 9 * 2 * C


def test_every_entry_changes_the_output_of_its_own_row_alone(run, cond):
    output = run(cond)
    changed = {
        "label": cond["label"].at[0].set(2),
        "embedding": cond["embedding"].at[0, 3].add(1.0),
        "context": cond["context"].at[0, 4].add(1.0),
        "context_mask": cond["context_mask"].at[0, 4].set(False),
        "image": cond["image"].at[0, 2, 2, 1].add(1.0),
    }
    for name, value in changed.items():
        other = run(cond | {name: value})
        assert np.abs(other[0] - output[0]).max() > 1e-3, name
        np.testing.assert_allclose(other[1:], output[1:], atol=1e-5, err_msg=name)


def test_masked_positions_are_not_seen_and_the_order_says_nothing(run, cond):
    output, mask = run(cond), cond["context_mask"]
    for hidden in (100.0, np.nan):
        context = jnp.where(mask[:, :, None], cond["context"], hidden)
        np.testing.assert_allclose(run(cond | {"context": context}), output, atol=1e-6)
    order = np.array([3, 0, 4, 2, 1])
    moved = {name: cond[name][:, order] for name in ("context", "context_mask")}
    np.testing.assert_allclose(run(cond | moved), output, atol=1e-5)
    unmoved = cond | {"context_mask": moved["context_mask"]}
    assert np.abs(run(unmoved) - output).max() > 1e-3


@pytest.mark.parametrize(
    "nulls",
    [
        {"label": -1},
        {"embedding": 0.0},
        {"context_mask": False},
        {"label": -1, "embedding": 0.0, "context_mask": False},
    ],
)
def test_null_rows_are_those_of_a_network_that_receives_nothing(run, cond, nulls):
    given = run(cond)
    rows = np.array([1, 3])
    null = cond | {name: cond[name].at[rows].set(value) for name, value in nulls.items()}
    absent = {n: v for n, v in cond.items() if n not in nulls}
    if "context_mask" in nulls:
        del absent["context"]
    found, wanted = run(null), run(absent)
    np.testing.assert_allclose(found[rows], wanted[rows], atol=1e-5)
    np.testing.assert_allclose(found[[0, 2]], given[[0, 2]], atol=1e-5)
    assert np.abs(found[rows] - given[rows]).max(axis=(1, 2, 3)).min() > 1e-3


@pytest.mark.slow
def test_the_null_forms_are_learned(network, cond):
    model, params = network
    x, t = inputs()
    nothing = {"image": cond["image"]}

    def loss(params, cond):
        return jnp.square(model.apply(params, x, t, cond)).mean()

    gradient = jax.jit(jax.grad(loss))
    for given, learned in ((nothing, True), (cond, False)):
        slopes = gradient(params, given)
        null = [slopes[name]["null"] for name in ("vector", "context")]
        null.append(slopes["label"]["embedding"][3])
        assert [bool(np.any(np.asarray(slope) != 0)) for slope in null] == [learned] * 3


def test_a_new_cross_attention_is_the_identity():
    model = small(**ONE_LEVEL, context_dim=D)
    params = jax.jit(model.init)(jax.random.key(0))
    assert not np.any(params["middle_0_attention_to_context"]["out"]["kernel"])


@pytest.mark.parametrize(
    "settings, change, message",
    [
        ({}, dict(embedding=jnp.zeros((B, 7))), "no input for an embedding .*embedding_dim is 0"),
        ({}, dict(context=jnp.zeros((B, L, D))), "network has no cross-attention"),
        ({}, dict(context_mask=jnp.zeros((B, L), bool)), "network has no cross-attention"),
        ({}, dict(image=jnp.zeros((B, 8, 8, 2))), "has no input for an image"),
        (ALL, dict(labels=jnp.zeros(B, jnp.int32)), "unknown entry of cond 'labels'.*'label'"),
        (ALL, dict(embedding=jnp.zeros((B, 8))), r"shape \[4, 7\].*found \[4, 8\]"),
        (ALL, dict(context=jnp.zeros((B, L, 5))), r"shape \[4, L, 6\].*found \[4, 5, 5\]"),
        (ALL, dict(context=None), "cond has only 'context_mask'"),
        (ALL, dict(context_mask=None), "cond has only 'context'"),
        (ALL, dict(context_mask=jnp.ones((B, 3), bool)), r"shape \[4, 5\].*found \[4, 3\]"),
        (ALL, dict(context_mask=jnp.ones((B, L))), "must be bool, found float32"),
        (ALL, dict(image=jnp.zeros((B, 4, 4, 2))), r"shape \[4, 8, 8, 2\].*found \[4, 4, 4, 2\]"),
        (ALL, dict(image=None), r"none is given; pass cond=\{'image'"),
    ],
)
def test_what_the_network_cannot_take_is_refused(cond, settings, change, message):
    model = small(**ONE_LEVEL, **settings)
    params = jax.eval_shape(model.init, jax.random.key(0))
    given = {name: v for name, v in ((cond if settings else {}) | change).items() if v is not None}
    with pytest.raises(UserError, match=message):
        jax.eval_shape(model.apply, params, *inputs(), given)
