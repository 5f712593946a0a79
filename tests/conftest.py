"""How the tests run: 8 CPU devices, strict types and ranks; pyproject.toml makes warnings errors.

Strictness is for our own maths. A test module whose third-party code mixes types or ranks says so
and why: `pytestmark = pytest.mark.loose_promotion(reason="Linen's ... adds int32 to float32")`.
"""

import os

# Read when the first JAX backend starts, so it must be set before anything asks for a device.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "loose_promotion(reason): JAX's default promotion of types and ranks"
    )


@pytest.fixture(autouse=True)
def _promotion(request: pytest.FixtureRequest):
    if request.node.get_closest_marker("loose_promotion") is None:
        yield
        return
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
