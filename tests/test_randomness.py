"""Keys of images and noise from them, whatever the implementation of the key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.randomness import cond_keys, draw_noise, draw_x_T, fold_in, image_keys, threefry

IMPLEMENTATIONS = ["threefry2x32", "rbg", "unsafe_rbg"]


def words(key):
    return np.asarray(jax.random.key_data(key))


def test_image_i_has_the_key_fold_in_of_i():
    key = jax.random.key(3)
    expected = np.stack([words(jax.random.fold_in(key, i)) for i in (5, 2, 9)])
    np.testing.assert_array_equal(words(image_keys(key, np.array([5, 2, 9]))), expected)


def test_raw_and_typed_keys_of_the_default_implementation_are_the_same_key():
    index = np.arange(4)
    for raw in (jax.random.PRNGKey(7), np.asarray(jax.random.PRNGKey(7))):
        found = image_keys(raw, index)
        np.testing.assert_array_equal(words(found), words(image_keys(jax.random.key(7), index)))
    raw = jax.random.split(jax.random.PRNGKey(0), 3)
    typed = jax.random.split(jax.random.key(0), 3)
    np.testing.assert_array_equal(draw_noise(raw, (2,)), draw_noise(typed, (2,)))


def test_steps_fold_in_one_number_or_one_for_each_image():
    keys = jax.random.split(jax.random.key(0), 3)
    same = np.stack([words(jax.random.fold_in(k, 4)) for k in keys])
    np.testing.assert_array_equal(words(fold_in(keys, 4)), same)
    own = np.stack([words(jax.random.fold_in(k, t)) for k, t in zip(keys, (1, 0, 8), strict=True)])
    np.testing.assert_array_equal(words(fold_in(keys, jnp.array([1, 0, 8]))), own)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_noise_of_an_image_depends_on_its_own_key_only(name):
    keys = image_keys(jax.random.key(1, impl=name), np.arange(6))
    whole = np.asarray(draw_x_T(keys, (3, 2)))
    np.testing.assert_array_equal(draw_x_T(keys[4:], (3, 2)), whole[4:])
    own = jax.random.split(jax.random.key(1, impl=name), 6)
    np.testing.assert_array_equal(draw_noise(own[4:], (5,)), np.asarray(draw_noise(own, (5,)))[4:])
    assert np.unique(whole).size == whole.size


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_other_keys_and_all_their_words_give_other_noise(name):
    size = words(jax.random.key(0, impl=name)).size
    data = np.array([[i + 1 if j == i else 0 for j in range(size)] for i in range(size)])
    keys = jax.random.wrap_key_data(jnp.asarray(data, jnp.uint32), impl=name)
    assert len(np.unique(words(threefry(keys)), axis=0)) == size
    np.testing.assert_array_equal(words(threefry(keys[1])), words(threefry(keys)[1]))
    drawn = {words(threefry(jax.random.key(seed, impl=name))).tobytes() for seed in range(50)}
    assert len(drawn) == 50


def test_keys_are_converted_inside_jit_too():
    key = jax.random.key(2, impl="rbg")
    found = jax.jit(lambda key: draw_noise(image_keys(key, np.arange(3)), (4,)))(key)
    np.testing.assert_array_equal(found, draw_noise(image_keys(key, np.arange(3)), (4,)))


def test_choices_of_the_conditioning_have_keys_of_their_own():
    keys = image_keys(jax.random.key(0), jnp.arange(3))

    def words(found):
        return {tuple(row) for row in np.asarray(jax.random.key_data(found)).reshape(-1, 2)}

    times = range(1, 1001, 37)
    steps = set().union(words(keys), *(words(fold_in(keys, t)) for t in (0, *times)))
    of_cond = set().union(*(words(cond_keys(keys, t)) for t in times))
    assert len(of_cond) == 3 * len(times) and not of_cond & steps
