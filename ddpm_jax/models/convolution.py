"""The 3x3 convolution of the networks, with gradients that are fast on XLA's CPU backend in loops.

The CPU backend calls a library for a convolution only if its operands have the layouts
[B, H, W, C] and [h, w, C, C']. The gradients that JAX derives have other layouts. Outside of loops
XLA transposes their operands first. Inside a loop XLA runs plain loops over them, which are slow.
So here we write the gradients as convolutions of operands that we transpose ourselves:

    dL/dx = conv(g, k reversed, C and C' swapped)      dL/dk = conv(x, g), with C as B and B as C

Outside of loops nothing changes: a train step of the digits takes 1.02 [0.98, 1.04] times as long
as with JAX's gradients. In a loop the gradients of k and x take 28 and 28 ms of CPU time; JAX's
take 1,904 and 149 ms (8 images of 16x16, 256 channels; 2026-11-25, jax 0.10.2).
tests/test_convolution.py checks the ratio.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from ddpm_jax.runtime.platform import platform
from ddpm_jax.types import Array

Sides = tuple[int, int]
Pads = tuple[Sides, Sides]

_conv = functools.partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def convolution(train: bool) -> Callable[[], Callable[..., Array]] | None:
    """Return the value of `conv_general_dilated_cls` for `nn.Conv`.

    In training on the CPU it is a function that returns `convolve`. Otherwise it is None, which
    selects JAX's own convolution. In forward mode on the CPU, JAX's own is the faster one in a loop
    (the likelihood by the ODE). cuDNN and TPUs are built for JAX's own convolution.
    """
    return _returns_convolve if train and platform() == "cpu" else None


def _returns_convolve() -> Callable[..., Array]:
    return convolve


def convolve(
    x: Array, kernel: Array, strides: Sides, padding: str | Sequence[Sides], **others: Any
) -> Array:
    """Convolve as `nn.Conv` does.

    Args:
      x: [B, H, W, C].
      kernel: [h, w, C, C'].
      strides: strides along H and W.
      padding: "SAME", or the rows and columns of zeros before and after, for H and for W.
      **others: the other arguments that `nn.Conv` passes, which must be its defaults; ignored.

    Returns:
      [B, H', W', C']; with "SAME", H' = ceil(H / strides[0]) and W' = ceil(W / strides[1]).
    """
    del others
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    (top, bottom), (left, right) = padding
    return _convolve(strides, ((top, bottom), (left, right)), x, kernel)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _convolve(strides: Sides, pads: Pads, x: Array, kernel: Array) -> Array:
    return _conv(x, kernel, strides, pads)


@functools.partial(_convolve.defjvp, symbolic_zeros=True)
def _convolve_jvp(
    strides: Sides, pads: Pads, primals: tuple, tangents: tuple
) -> tuple[Array, Array]:
    """Return the output and its tangent, the transpose of the gradient function.

    In reverse mode JAX transposes this rule once more, which gives back the gradient function.
    """
    (x, kernel), (x_dot, kernel_dot) = primals, tangents
    out = _conv(x, kernel, strides, pads)
    dot = jnp.zeros_like(out)
    if not isinstance(x_dot, SymbolicZero):
        gradient = functools.partial(_gradient_of_x, strides, pads, x.shape, kernel)
        dot += jax.linear_transpose(gradient, out)(x_dot)[0]
    if not isinstance(kernel_dot, SymbolicZero):
        gradient = functools.partial(_gradient_of_kernel, strides, pads, kernel.shape, x)
        dot += jax.linear_transpose(gradient, out)(kernel_dot)[0]
    return out, dot


def _gradient_of_x(
    strides: Sides, pads: Pads, shape: tuple[int, ...], kernel: Array, g: Array
) -> Array:
    """Return the gradient [B, H, W, C] of sum(g * conv(x, kernel)), for x of `shape`."""
    sizes = kernel.shape[:2]
    padding = []
    for axis, (low, _) in enumerate(pads):
        before = sizes[axis] - 1 - low
        spread = (g.shape[1 + axis] - 1) * strides[axis] + 1  # length of g, dilated by the stride
        padding.append((before, shape[1 + axis] + sizes[axis] - 1 - spread - before))
    swapped = kernel[::-1, ::-1].swapaxes(2, 3)
    return _conv(g, swapped, (1, 1), padding, lhs_dilation=strides)


def _gradient_of_kernel(
    strides: Sides, pads: Pads, shape: tuple[int, ...], x: Array, g: Array
) -> Array:
    """Return the gradient [h, w, C, C'] of sum(g * conv(x, kernel)), for a kernel of `shape`."""
    padding = []
    for axis, (low, _) in enumerate(pads):
        spread = (g.shape[1 + axis] - 1) * strides[axis] + 1
        padding.append((low, shape[axis] + spread - 1 - x.shape[1 + axis] - low))
    x, g = x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3)  #  [C, H, W, B], [H', W', B, C']
    return _conv(x, g, (1, 1), padding, rhs_dilation=strides).transpose(1, 2, 0, 3)
