"""A module sees only the rows above its own, and foreign libraries are imported where they belong.

Each test loops over all modules and lists all offenders at once.
"""

import ast
import subprocess
import sys
from pathlib import Path

import ddpm_jax

ROOT = Path(__file__).parents[1]
FOLDERS = (Path(ddpm_jax.__file__).parent, ROOT / "experiments")  # the first may be a wheel's

# The rows, from the top. A name is a module or a whole folder. Within a folder, and within the
# mathematics, modules may import each other, but not in a circle.
MATHEMATICS = {
    "ddpm_jax.autoencoding",
    "ddpm_jax.codec",
    "ddpm_jax.conditioning",
    "ddpm_jax.denoise",
    "ddpm_jax.distillation",
    "ddpm_jax.editing",
    "ddpm_jax.guidance",
    "ddpm_jax.likelihood",
    "ddpm_jax.losses",
    "ddpm_jax.noisy_classifier",
    "ddpm_jax.novel_views",
    "ddpm_jax.pixels",
    "ddpm_jax.predictions",
    "ddpm_jax.process",
    "ddpm_jax.randomness",
    "ddpm_jax.samplers",
    "ddpm_jax.sampling",
    "ddpm_jax.scenes",
    "ddpm_jax.schedules",
    "ddpm_jax.time_samplers",
    "ddpm_jax.timesteps",
    "ddpm_jax.variance",
}
ROWS = [
    {"ddpm_jax.errors", "ddpm_jax.types", "ddpm_jax.config", "ddpm_jax.config_checks"},
    {"ddpm_jax.runtime"},
    MATHEMATICS,
    {"ddpm_jax.models", "ddpm_jax.pretrained", "ddpm_jax.figures"},
    {"ddpm_jax.data"},
    {"ddpm_jax.build"},
    {"ddpm_jax.runs"},
    {"ddpm_jax.evaluation"},
    {"ddpm_jax.training"},
    {"ddpm_jax.interop"},
    {"ddpm_jax"},
    {"experiments"},
]
RUNTIME_OF_MATHEMATICS = {"ddpm_jax.runtime.compiler", "ddpm_jax.runtime.rows"}
HOMES = {  # the only places that import these
    "flax": {"ddpm_jax.models", "ddpm_jax.pretrained"},
    "optax": {"ddpm_jax.training"},
    "orbax": {"ddpm_jax.runs"},
    "tensorflow_datasets": {"ddpm_jax.data"},
    "diffrax": {"ddpm_jax.likelihood.ode"},
    "absl": {"experiments"},
    "ml_collections": {"experiments"},
    "safetensors": {"ddpm_jax.pretrained"},
    "huggingface_hub": {"ddpm_jax.interop.hub"},
    "tokenizers": {"ddpm_jax.pretrained.text_encoder"},
    "tensorflow": set(),
    "transformers": set(),
    "pickle": set(),
    "dill": set(),
    "cloudpickle": set(),
    "torch": set(),
}


def module_name(path, folder):
    parts = path.relative_to(folder.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path, folder): path.read_text()
    for folder in FOLDERS
    for path in sorted(folder.rglob("*.py"))
}


def imports_in(text):
    """Absolute names of all that a text imports, wherever in it: modules where they are."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                names.add(submodule if submodule in MODULES else node.module)
    return names


IMPORTS = {module: imports_in(text) for module, text in MODULES.items()}


def is_in(module, places):
    return any(module == place or module.startswith(place + ".") for place in places)


def row_of(module):
    """Return the index of the row that a module belongs to."""
    if module == "ddpm_jax":
        return ROWS.index({"ddpm_jax"})
    found = [i for i, row in enumerate(ROWS) if is_in(module, row - {"ddpm_jax"})]
    assert len(found) == 1, f"{module} belongs to no row: add it to ROWS"
    return found[0]


def ours(module):
    return {name for name in IMPORTS[module] if name.split(".")[0] in ("ddpm_jax", "experiments")}


def place_of(module):
    """Return what may import its own parts freely: the mathematics, a folder or the mains."""
    if is_in(module, MATHEMATICS):
        return "the mathematics"
    parts = module.split(".")
    return parts[0] if parts[0] == "experiments" else ".".join(parts[:2])


def test_a_module_sees_only_the_rows_above_its_own():
    offenders = []
    for module in MODULES:
        for name in ours(module):
            if row_of(module) == row_of(name) == 0 or place_of(module) == place_of(name):
                continue
            if row_of(name) >= row_of(module):
                offenders.append(f"{module} imports {name}")
    assert offenders == []


def test_no_imports_in_a_circle():
    graph = {m: {n for n in ours(m) if n in MODULES and n != m} for m in MODULES}
    # A folder's door imports the rooms behind it; a room that asks the door for a neighbour's name
    # would be a circle, and Python would fail.
    done, circles = set(), []

    def visit(module, path):
        if module in path:
            circles.append(" -> ".join([*path[path.index(module) :], module]))
        elif module not in done:
            for name in graph[module]:
                visit(name, [*path, module])
            done.add(module)

    for module in graph:
        visit(module, [])
    assert circles == []


def test_the_mathematics_imports_numpy_and_jax_only():
    offenders = []
    for module, text in MODULES.items():
        if not is_in(module, MATHEMATICS):
            continue
        foreign = {name.split(".")[0] for name in IMPORTS[module]} - sys.stdlib_module_names
        allowed = {"numpy", "jax", "ddpm_jax"}
        allowed |= {"diffrax"} if module == "ddpm_jax.likelihood.ode" else set()
        offenders += [f"{module} imports {name}" for name in foreign - allowed]
        runtime = {name for name in ours(module) if is_in(name, {"ddpm_jax.runtime"})}
        offenders += [f"{module} imports {name}" for name in runtime - RUNTIME_OF_MATHEMATICS]
        calls = [node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        if any(isinstance(f, ast.Name) and f.id == "print" for f in calls):
            offenders.append(f"{module} prints")
        if "logging" in IMPORTS[module]:
            offenders.append(f"{module} logs")
        if "lax.scan" in text and module != "ddpm_jax.samplers.base":
            offenders.append(f"{module} scans: all samplers share the loop of samplers.base")
    assert offenders == []


def test_config_and_errors_import_the_standard_library_only():
    for module in ("ddpm_jax.config", "ddpm_jax.errors"):
        foreign = {name.split(".")[0] for name in IMPORTS[module]} - sys.stdlib_module_names
        assert foreign <= {"ddpm_jax"}


def test_foreign_libraries_are_imported_at_home():
    offenders = [
        f"{module} imports {name}"
        for module, names in IMPORTS.items()
        for name in names
        if (homes := HOMES.get(name.split(".")[0])) is not None and not is_in(module, homes)
    ]
    assert offenders == []


def loaded_by(statement):
    """Names of the libraries that a fresh Python has loaded after a statement."""
    code = f"import sys\n{statement}\nprint(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_what_an_import_loads():
    maths = loaded_by("import ddpm_jax")
    assert not maths & {"flax", "optax", "orbax", "tensorflow_datasets", "scipy", "matplotlib"}
    step = loaded_by("import ddpm_jax.training.step")
    assert "optax" in step and "tensorflow_datasets" not in step
    load = loaded_by("import ddpm_jax; ddpm_jax.load")
    assert "orbax" in load and not load & {"optax", "tensorflow_datasets"}


def test_the_walk_sees_imports_of_every_form():
    assert {"ddpm_jax.runs", "ddpm_jax.losses", "ddpm_jax.sampling"} <= IMPORTS["ddpm_jax"]
    assert "jax.numpy" in IMPORTS["ddpm_jax.process"]
    assert len(MODULES) > 30
