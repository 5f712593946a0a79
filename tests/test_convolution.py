"""The convolution of the networks against JAX's own: the values and every derivative."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import jaxprs_in_params

from ddpm_jax.models.convolution import convolution, convolve
from ddpm_jax.runtime.platform import compiled_for

LAYOUT = ("NHWC", "HWIO", "NHWC")


def normal(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def both(strides, padding="SAME"):
    """Return JAX's convolution and ours."""
    how = dict(window_strides=strides, padding=padding, dimension_numbers=LAYOUT)
    theirs = functools.partial(lax.conv_general_dilated, **how)
    return theirs, lambda x, kernel: convolve(x, kernel, strides, padding)


def assert_close(found, expected, tolerance):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        a, b = np.float32(a), np.float32(b)
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max(), rtol=0)


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize(
    "strides, size, padding",
    [
        ((1, 1), (8, 6), "SAME"),
        ((2, 2), (8, 6), "SAME"),
        ((2, 2), (7, 5), "SAME"),
        ((1, 1), (1, 1), "SAME"),
        ((2, 2), (2, 2), "SAME"),
        ((2, 2), (8, 6), ((1, 1), (1, 1))),
        ((2, 2), (2, 2), ((1, 1), (1, 1))),
    ],
)
def test_gradients_are_those_of_jax(strides, size, padding, dtype, tolerance):
    theirs, ours = both(strides, padding)
    args = normal(0, 4, *size, 3, dtype=dtype), normal(1, 3, 3, 3, 5, dtype=dtype)
    expected, their_vjp = jax.vjp(theirs, *args)
    found, our_vjp = jax.vjp(ours, *args)
    np.testing.assert_array_equal(found, expected)
    g = normal(2, *expected.shape, dtype=dtype)
    assert_close(our_vjp(g), their_vjp(g), tolerance)
    dots = normal(3, *args[0].shape, dtype=dtype), normal(4, *args[1].shape, dtype=dtype)
    assert_close(jax.jvp(ours, args, dots), jax.jvp(theirs, args, dots), 2 * tolerance)


@pytest.mark.slow
def test_second_derivatives_and_vmap_are_those_of_jax():
    args = normal(0, 2, 6, 6, 3), normal(1, 3, 3, 3, 4)

    def hessian_along(convolve, dots):
        gradient = jax.grad(lambda x, kernel: jnp.sin(convolve(x, kernel)).sum(), (0, 1))
        return jax.jvp(gradient, args, dots)

    dots = jax.tree.map(lambda a: jnp.stack([a, 1 - a]), args)
    found, expected = (
        jax.jit(jax.vmap(functools.partial(hessian_along, f)))(dots) for f in both((2, 2))
    )
    assert_close(found, expected, 1e-5)


def layouts(function, *args):
    """The layouts of all convolutions that a function makes, wherever it makes them."""
    found = []

    def look(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive is lax.conv_general_dilated_p:
                found.append(equation.params["dimension_numbers"])
            for inner in jaxprs_in_params(equation.params):
                look(inner)

    look(jax.make_jaxpr(function)(*args).jaxpr)
    return found


def test_the_gradients_are_convolutions_in_the_layout_that_the_cpu_is_fast_at_in_a_loop():
    args = normal(0, 2, 8, 8, 3), normal(1, 3, 3, 3, 4)
    theirs, ours = both((2, 2))
    fast = lax.conv_dimension_numbers(args[0].shape, args[1].shape, LAYOUT)

    def gradients(convolve):
        return jax.grad(lambda x, kernel: convolve(x, kernel).sum() ** 2, (0, 1))

    assert layouts(gradients(ours), *args) == [fast] * 3  # forward, by x, by the kernel
    assert layouts(gradients(theirs), *args) != [fast] * 3


def test_only_training_on_the_cpu_takes_it():
    with compiled_for("cpu"):
        assert convolution(True)() is convolve
        assert convolution(False) is None
    with compiled_for("gpu"):
        assert convolution(True) is None
