"""Rows over the local devices: padding, cutting, one program for each size, and tracing through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.runtime import rows

pytestmark = pytest.mark.quick_to_compile

traces = []


def run(shared, each, *static):
    traces.append(each["x"].shape)
    x = shared * each["x"] + sum(static)
    return x, {"frames": jnp.stack([x, 2 * x, 3 * x]), "count": jnp.float32(7)}


CALL = rows.over_local_devices(run, out_axes=(0, 1))


@pytest.mark.parametrize("n", [1, 8, 11])
def test_rows_are_padded_shared_and_cut(n):
    x = np.arange(2.0 * n, dtype=np.float32).reshape(n, 2)
    found, kept = CALL(jnp.float32(3), {"x": x})
    np.testing.assert_array_equal(found, 3 * x)
    np.testing.assert_array_equal(kept["frames"], np.stack([3 * x, 6 * x, 9 * x]))
    assert kept["count"] == 7  # it has no axis of rows, and stays


def test_all_devices_get_their_rows():
    found, _ = CALL(jnp.float32(3), {"x": np.ones((16, 2), np.float32)})
    assert [shard.data.shape for shard in found.addressable_shards] == [(2, 2)] * 8
    two = rows.over_local_devices(run, out_axes=(0, 1), devices=jax.local_devices()[:2])
    found, _ = two(jnp.float32(3), {"x": np.ones((16, 2), np.float32)})
    assert [shard.data.shape for shard in found.addressable_shards] == [(8, 2)] * 2


def test_it_compiles_once_for_each_padded_size_and_static_value():
    call = rows.over_local_devices(lambda *arguments: run(*arguments), out_axes=(0, 1))
    traces.clear()
    for n in (9, 16, 12):
        call(jnp.float32(3), {"x": np.ones((n, 2), np.float32)})
    assert traces == [(16, 2)]
    for extra in (1.0, 1.0, 2.0):
        found, _ = call(jnp.float32(3), {"x": np.ones((9, 2), np.float32)}, extra)
        np.testing.assert_array_equal(found, np.full((9, 2), 3 + extra))
    assert traces == [(16, 2)] * 3


def test_inside_a_transform_the_rows_are_left_as_they_are():
    call = rows.over_local_devices(lambda *arguments: run(*arguments), out_axes=(0, 1))
    x = np.ones((3, 2), np.float32)
    traces.clear()
    jax.jit(lambda: call(jnp.float32(3), {"x": x}))()
    gradient = jax.grad(lambda shared: call(shared, {"x": x})[0].sum())(jnp.float32(3))
    found = jax.vmap(lambda shared: call(shared, {"x": x})[0])(jnp.arange(2, dtype=jnp.float32))
    assert set(traces) == {(3, 2)}
    assert gradient == 6
    np.testing.assert_array_equal(found, np.stack([0 * x, x]))


def test_padding_repeats_the_last_row_of_arrays_and_of_keys():
    keys = jax.random.split(jax.random.key(0), 2)
    padded = rows.pad({"a": np.array([[1], [2]]), "keys": keys, "none": None}, 4)
    assert padded["a"].tolist() == [[1], [2], [2], [2]] and padded["none"] is None
    words = jax.random.key_data(padded["keys"])
    np.testing.assert_array_equal(words, jax.random.key_data(keys)[np.array([0, 1, 1, 1])])
