"""A run and its files are data: reading a stranger's runs no code and leaves no directory."""

import ast
import pathlib
import pickle
import shutil
import sys

import jax
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax import config as config_lib
from ddpm_jax.config import DataConfig
from ddpm_jax.data import open_dataset
from ddpm_jax.errors import UserError
from ddpm_jax.runs import metrics, workdir
from ddpm_jax.runs.checkpoint import Checkpoints, restore_ema
from ddpm_jax.runs.state import TrainState

ROOT = pathlib.Path(__file__).parents[1]
unpickled = []  # what any unpickler of this process looked up


@pytest.fixture(scope="module", autouse=True)
def audit():
    sys.addaudithook(lambda name, args: name == "pickle.find_class" and unpickled.append(args))
    pickle.loads(pickle.dumps(pathlib.Path))
    assert unpickled, "the hook sees nothing"


class Touch:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def tree(value):
    return {"kernel": np.full((8, 8), value, np.float32), "bias": np.zeros(3, np.float32)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The work directory of a run with checkpoints of steps 1 and 2."""
    paths = workdir.open_for_training(tmp_path_factory.mktemp("run"), config_lib.from_dict({}))
    workdir.write_facts(paths, workdir.DatasetFacts((8, 8, 1), 0, ()))
    checkpoints = Checkpoints(paths.checkpoints, 2, 0)
    for n in (1, 2):
        value = jax.tree.map(jax.numpy.asarray, tree(n))
        checkpoints.save(TrainState(jax.numpy.int32(n), value, value, value), wait=True)
    checkpoints.close()
    paths.metrics.write_text('{"step": 1}\n')
    return paths.root


# TensorStore's threads report, late, to an event loop that Orbax has closed after an error.
@pytest.mark.filterwarnings("ignore:Exception ignored in. None")
def test_no_file_of_a_run_is_unpickled_or_run(trained, tmp_path):
    """Each file in turn becomes a pickle that would leave a mark; whatever reads it, none does."""
    mark = tmp_path / "mark"
    payload = pickle.dumps(Touch(mark), 0)
    pickle.loads(payload)
    assert mark.exists(), "the payload works"
    mark.unlink()
    unpickled.clear()
    files = [path.relative_to(trained) for path in trained.rglob("*") if path.is_file()]
    files = [path for path in files if "1" not in path.parts and path.name != "lock"]
    assert len(files) > 15
    abstract = jax.eval_shape(lambda: tree(0.0))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract
    )
    found = {}
    for n, file in enumerate(files):
        paths = workdir.WorkDir(tmp_path / str(n))
        shutil.copytree(trained, paths.root)
        (paths.root / file).write_bytes(payload)
        try:
            workdir.read_config(paths)
            workdir.read_facts(paths)
            metrics.read(paths.metrics)
            step, params = restore_ema(paths.checkpoints, abstract)
            np.testing.assert_array_equal(params["kernel"], tree(step)["kernel"])
            found[str(file)] = step
        except UserError as error:
            found[str(file)] = str(error)
        assert not mark.exists() and not unpickled, file
    refused = {name for name, result in found.items() if isinstance(result, str)}
    assert refused == {"config.json", "dataset.json"}, found
    assert sorted(set(found.values()) - {found[name] for name in refused}) == [1, 2], found


def test_nothing_in_the_library_runs_what_it_reads():
    """No call that runs or unpickles a text or file, or writes where an archive says."""
    functions = {"eval", "exec", "compile", "__import__"}
    methods = {"extractall", "extract", "import_module", "system", "popen", "unsafe_load"}
    library = pathlib.Path(ddpm_jax.__file__).parent
    for path in [*library.rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", None)
                method = getattr(node.func, "attr", None)
                keywords = {keyword.arg for keyword in node.keywords}
                where = f"{path}:{node.lineno}"
                assert name not in functions and method not in methods, where
                assert not keywords & {"allow_pickle", "shell"}, where


@pytest.mark.parametrize("name", ["../outside", "/outside", "mnist/../../outside", "..", "a b"])
def test_the_name_of_a_set_is_no_path(tmp_path, name):
    (tmp_path / "outside").mkdir()
    config = DataConfig(name=name.replace("/outside", f"{tmp_path}/outside", name[0] == "/"))
    with pytest.raises(UserError, match="data.name") as error:
        open_dataset(config)
    assert "\n" not in str(error.value)
