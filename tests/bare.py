"""A Python without this library and without Flax: only jax, safetensors and flatbuffers."""

import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile

PACKAGES = (  # the second line: what jax imports
    *("jax", "safetensors", "flatbuffers"),
    *("jaxlib", "numpy", "scipy", "ml_dtypes", "opt_einsum"),
)


def run(code, cwd):
    """Run Python code in a process that can import PACKAGES only; return what it printed."""
    with tempfile.TemporaryDirectory() as directory:
        return _run(code, cwd, pathlib.Path(directory))


def _run(code, cwd, directory):
    for name in PACKAGES:
        package = pathlib.Path(importlib.util.find_spec(name).origin).parent
        for part in (package, package.with_name(f"{name}.libs")):  # the second: a wheel's libraries
            if part.exists():
                (directory / part.name).symlink_to(part)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],  # -S: without site-packages
        cwd=cwd,
        env=environment | {"PYTHONPATH": str(directory), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
