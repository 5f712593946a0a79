"""A module imports only from the layers below it, and foreign libraries live where they belong."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the bottom up; a name stands for a module or a whole package. Modules of one row do not see
# each other (modules of one package do).
LAYERS = [
    {"ddpm_jax.errors", "ddpm_jax.types", "ddpm_jax.compiler"},
    {"ddpm_jax.config_checks"},
    {"ddpm_jax.config", "ddpm_jax.schedules", "ddpm_jax.timesteps", "ddpm_jax.time_samplers"},
    {"ddpm_jax.process"},
    {"ddpm_jax.predictions", "ddpm_jax.variance"},
    {"ddpm_jax.denoise", "ddpm_jax.conditioning"},
    {"ddpm_jax.likelihood"},
    {"ddpm_jax.losses", "ddpm_jax.guidance", "ddpm_jax.classifier", "ddpm_jax.samplers"},
    {"ddpm_jax.api", "ddpm_jax.editing", "ddpm_jax.vdm"},
    {"ddpm_jax.bound"},
    {"ddpm_jax.download", "ddpm_jax.ode_likelihood"},
    {"ddpm_jax.models", "ddpm_jax.data", "ddpm_jax.evaluation"},
    {
        "ddpm_jax.guides",
        "ddpm_jax.objectives",
        "ddpm_jax.text",
        "ddpm_jax.inception",
        "ddpm_jax.references",
    },
    {"ddpm_jax.build"},
    {"ddpm_jax.learned"},
    {"ddpm_jax.overrides"},
    {"ddpm_jax.training"},
    {"ddpm_jax.runs"},
    {"ddpm_jax.quality", "ddpm_jax.coding"},
    {"ddpm_jax"},
    {"experiments"},
]
EDGE = {"ddpm_jax.config", "ddpm_jax.config_checks"}
MATHS = {name for row in LAYERS[:10] for name in row} - EDGE
# All that these may see of the library: the network, for one, knows nothing of diffusion
BLIND = {
    "ddpm_jax.models": {"ddpm_jax.errors", "ddpm_jax.types"},
    "ddpm_jax.data": {
        "ddpm_jax.errors",
        "ddpm_jax.types",
        "ddpm_jax.config",
        "ddpm_jax.download",
    },
    "ddpm_jax.evaluation": {
        "ddpm_jax.errors",
        "ddpm_jax.types",
        "ddpm_jax.config",
        "ddpm_jax.compiler",
    },
}
HOMES = {  # the only places that import them
    "flax": {"ddpm_jax.models"},
    "optax": {"ddpm_jax.training"},
    "orbax": {"ddpm_jax.training"},
    "tensorflow_datasets": {"ddpm_jax.data"},
    "diffrax": {"ddpm_jax.ode_likelihood"},
    "absl": {"experiments"},
    "ml_collections": {"experiments"},
    "safetensors": {"ddpm_jax.text"},
    "tokenizers": {"ddpm_jax.text"},
    "tensorflow": set(),
    "transformers": set(),
    "pickle": set(),
    "dill": set(),
    "cloudpickle": set(),
    "torch": set(),
}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path
    for package in ("ddpm_jax", "experiments")
    for path in sorted((ROOT / package).rglob("*.py"))
}
modules = pytest.mark.parametrize("module", MODULES)


def imports_of(module):
    """Absolute names of all that a module imports, wherever in the file: modules where they are."""
    names = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                names.add(submodule if submodule in MODULES else node.module)
    return names


def layer_of(module):
    """The name in LAYERS that a module belongs to: the longest that is a prefix of it."""
    names = [name for row in LAYERS for name in row]
    own = [name for name in names if module == name or module.startswith(name + ".")]
    return max(own, key=len)


def height(layer):
    return next(i for i, row in enumerate(LAYERS) if layer in row)


@modules
def test_imports_go_down(module):
    layer = layer_of(module)
    assert layer != "ddpm_jax" or module == "ddpm_jax", f"{module} has no layer: add it to LAYERS"
    for name in imports_of(module):
        if name.split(".")[0] not in ("ddpm_jax", "experiments"):
            continue
        below = layer_of(name)
        if layer == "ddpm_jax" and below == "ddpm_jax.runs":
            continue  # `load`, imported when first asked for
        assert below == layer or height(below) < height(layer), f"{module} imports {name}"
        if layer in BLIND:
            assert below in BLIND[layer] | {layer}, f"{module} imports {name}"


@modules
def test_the_maths_imports_numpy_and_jax_alone(module):
    if layer_of(module) in MATHS:
        foreign = {name.split(".")[0] for name in imports_of(module)} - sys.stdlib_module_names
        assert foreign <= {"numpy", "jax", "ddpm_jax"}
        assert "logging" not in imports_of(module)
        calls = [
            node.func
            for node in ast.walk(ast.parse(MODULES[module].read_text()))
            if isinstance(node, ast.Call)
        ]
        assert not any(isinstance(f, ast.Name) and f.id == "print" for f in calls)


def test_config_and_errors_import_the_standard_library_alone():
    for module in ("ddpm_jax.config", "ddpm_jax.errors"):
        foreign = {name.split(".")[0] for name in imports_of(module)} - sys.stdlib_module_names
        assert foreign <= {"ddpm_jax"}


@modules
def test_foreign_libraries_are_imported_at_home(module):
    for name in imports_of(module):
        homes = HOMES.get(name.split(".")[0])
        assert homes is None or layer_of(module) in homes, f"{module} imports {name}"


@modules
def test_only_the_loop_scans_over_t(module):
    """One loop for all samplers; training scans over micro-batches and fused steps."""
    uses = "lax.scan" in MODULES[module].read_text()
    if layer_of(module) in MATHS:
        assert uses == (module == "ddpm_jax.samplers.base")


@modules
def test_modules_are_short(module):
    assert len(MODULES[module].read_text().splitlines()) <= 250


def test_the_walk_sees_imports_of_every_form():
    assert {"ddpm_jax.runs", "ddpm_jax.losses", "ddpm_jax.api"} <= imports_of("ddpm_jax")
    assert "jax.numpy" in imports_of("ddpm_jax.process")
    assert len(MODULES) > 30
