"""Weights of other libraries, and ours in their layout; samplers that run without this library."""

from typing import Any

__all__ = ["to_stablehlo"]


def __getattr__(name: str) -> Any:
    """Import a function when it is first asked for: `runs` imports a part of this package."""
    if name == "to_stablehlo":
        from ddpm_jax.interop.stablehlo import to_stablehlo

        return to_stablehlo
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
