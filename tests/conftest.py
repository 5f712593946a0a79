"""How the tests run: 8 CPU devices, strict types and ranks; pyproject.toml makes warnings errors.

Our own maths must be strict. A test module with third-party code that mixes types or ranks needs
this mark, with a reason:
`pytestmark = pytest.mark.loose_promotion(reason="Linen's ... adds int32 to float32")`.

Most of the time goes into compiling. Later tests, and the processes that they start, load what one
test has compiled. If the programs of a module take less time to run than to optimise, the module
has this mark: `pytestmark = pytest.mark.quick_to_compile`.

`pytest` runs the quick tests; `pytest -m ""` also runs those marked `slow`. The mark is at the top
of a module that trains or starts processes, or on the few tests of another module that do.
"""

import os
import pathlib
import shutil
import tempfile

# Read when the first JAX backend starts, so it must be set before anything asks for a device.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # cuda,cpu: see CONTRIBUTING.md

# One for each worker of pytest-xdist: a program that another process is just writing is not read.
COMPILED = tempfile.mkdtemp(prefix="ddpm_jax_compiled_")
os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_ignore_collect(collection_path: pathlib.Path, config: pytest.Config) -> bool | None:
    """Leave the peers' modules out of a quick run: to import PyTorch takes longer than most."""
    quick = config.option.markexpr == "not slow"
    return True if quick and collection_path.name.startswith("test_peers") else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deal the slow modules first: the short ones then keep all workers busy to the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, item.path.name != "test_end_to_end.py"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "loose_promotion(reason): JAX's default promotion of types and ranks"
    )
    config.addinivalue_line("markers", "quick_to_compile: without LLVM's optimisation")


def pytest_unconfigure() -> None:
    shutil.rmtree(COMPILED, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    """Compile a module's programs as it says, those of its fixtures too."""
    quick = item.get_closest_marker("quick_to_compile") is not None
    jax.config.update("jax_disable_most_optimizations", quick)
    return (yield)


@pytest.fixture(autouse=True)
def _promotion(request: pytest.FixtureRequest):
    if request.node.get_closest_marker("loose_promotion") is None:
        yield
        return
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
