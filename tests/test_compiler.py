"""Options for XLA's CPU backend: taken where it knows them, left out where it does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.runtime import compiler


@pytest.mark.parametrize("name", [compiler.NETWORK, compiler.WIDE, compiler.ONCE])
def test_options_change_speed_and_nothing_else(name):
    options = compiler.options(name)
    assert options  # this XLA knows it
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 4, 4))

    def f(x):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions)

    plain, tuned = jax.jit(f)(x), jax.jit(f, compiler_options=options)(x)
    np.testing.assert_allclose(tuned, plain, rtol=1e-5, atol=1e-5)


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setitem(compiler._OPTIONS, "new", {"xla_cpu_no_such_option": True})
    assert compiler.options("new") == {}
    assert jax.jit(jnp.sin, compiler_options={})(0.0) == 0.0
