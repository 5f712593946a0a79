"""The notebooks in colab/ run from top to bottom, with tiny settings, on two devices."""

import importlib.metadata
import os
import pathlib
import sys
import textwrap

import jax
import nbformat
import pytest
from nbclient import NotebookClient

import ddpm_jax

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = {path.stem: path for path in (ROOT / "colab").glob("*.ipynb")}


@pytest.mark.parametrize("name", sorted(NOTEBOOKS))
def test_notebooks_are_kept_without_outputs(name):
    for cell in nbformat.read(NOTEBOOKS[name], 4).cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


def execute(notebook, place, tmp_path):
    """Run all cells in the folder colab/ of a repository, where Jupyter starts a notebook.

    Returns:
      The text and the stderr of all cells, and the number of pictures.
    """
    environment = os.environ | {
        "DDPM_NB_SMOKE": "1",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling is most of the time
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "TFDS_DATA_DIR": str(tmp_path / "data"),
        "PYTHONPATH": str(tmp_path / "library"),
        "PATH": os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]),
    }
    client = NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        resources={"metadata": {"path": str(place)}},
    )
    client.execute(env=environment)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    assert code[1].outputs[0].text.startswith("2 device(s): cpu:0 cpu:1")
    stderr = "".join(output.text for output in outputs if output.get("name") == "stderr")
    # Orbax says of a manager that only reads that it only reads.
    rest = [line for line in stderr.splitlines() if "directory is read only" not in line]
    assert rest == []
    text = "".join(output.get("data", {}).get("text/plain", "") for output in outputs)
    text += "".join(output.text for output in outputs if output.get("name") == "stdout")
    return text, len([output for output in outputs if "image/png" in output.get("data", {})])


@pytest.fixture
def place(tmp_path):
    """The folder colab/ of a repository."""
    place, library = tmp_path / "colab", tmp_path / "library"
    place.mkdir()
    library.mkdir()
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    (library / "ddpm_jax").symlink_to(pathlib.Path(ddpm_jax.__file__).parent)
    return place


def test_the_notebook_of_the_digits_runs(place, tmp_path):
    text, pictures = execute(nbformat.read(NOTEBOOKS["ddpm_digits"], 4), place, tmp_path)
    assert "resumed at step 10" in text and "done: 20 steps" in text
    assert pictures == 5  # the data, forward, the losses, samples, reverse


def test_the_notebook_of_cifar10_runs_and_goes_on_when_it_is_run_again(place, tmp_path):
    notebook = nbformat.read(NOTEBOOKS["cifar10_tpu"], 4)
    text, pictures = execute(notebook, place, tmp_path)
    assert "NO TPU AND NO GPU" in text and "here: 2 x CPU device" in text and "  fits  " in text
    assert "done: 20 steps" in text
    assert pictures == 3  # the progress, and two grids of samples
    for cell in notebook.cells:
        cell.source = cell.source.replace("num_steps=20", "num_steps=30")
    text, _ = execute(notebook, place, tmp_path)
    assert "resumed at step 20" in text and "done: 30 steps" in text


def test_the_notebook_of_cifar10_keeps_the_installed_jax():
    """pip gets the versions that are there as constraints, and no TensorFlow."""
    cells = nbformat.read(NOTEBOOKS["cifar10_tpu"], 4).cells
    install = next(cell.source for cell in cells if "%pip" in cell.source)
    lines = install.splitlines()
    first, last = (next(i for i, x in enumerate(lines) if w in x) for w in ("kept = [", "    ]"))
    scope: dict = {"importlib": importlib}
    exec(textwrap.dedent("\n".join(lines[first : last + 1])), scope)
    assert f"jax=={jax.__version__}" in scope["kept"]
    assert not [line for line in scope["kept"] if "tensorflow" in line]
    assert "-c kept.txt" in install
