"""Every notebook in colab/ runs from top to bottom, with tiny settings, on two devices."""

import os
import pathlib
import sys

import nbformat
import pytest
from nbclient import NotebookClient

import ddpm_jax

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))

notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@notebooks
def test_notebooks_are_kept_without_outputs(path):
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


@notebooks
def test_notebooks_run(path, tmp_path):
    """Run a notebook in the folder colab/ of a repository, where Jupyter starts it."""
    place, library = tmp_path / "colab", tmp_path / "library"
    place.mkdir()
    library.mkdir()
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    (library / "ddpm_jax").symlink_to(pathlib.Path(ddpm_jax.__file__).parent)
    environment = os.environ | {
        "DDPM_NB_SMOKE": "1",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling is most of the time
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "TFDS_DATA_DIR": str(tmp_path / "data"),
        "PYTHONPATH": str(library),
        "PATH": os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]),
    }
    notebook = nbformat.read(path, 4)
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
    assert "resumed at step 10" in text and "done: 20 steps" in text
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 5  # the data, forward, the losses, samples, reverse
