"""The platform that programs are compiled for: that of this process, or of a machine elsewhere.

Some choices depend on it, such as the gradient of a convolution and the options of the compiler.
They ask `platform()`, and not JAX's default backend. So a plan compiles the program that would run
on the other machine (`training.plan`).
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_elsewhere: contextvars.ContextVar[str] = contextvars.ContextVar("platform", default="")


def platform() -> str:
    """Return "cpu", "gpu" or "tpu"."""
    return _elsewhere.get() or jax.default_backend()


@contextlib.contextmanager
def compiled_for(name: str) -> Iterator[None]:
    """Let `platform()` return `name` inside `with`.

    Args:
      name: "cpu", "gpu" or "tpu".
    """
    token = _elsewhere.set(name)
    try:
        yield
    finally:
        _elsewhere.reset(token)
