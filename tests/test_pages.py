"""The Python on the README and on the pages of docs/ runs as it stands; what they say is so."""

import pathlib
import re
import shutil

import bare
import jax
import numpy as np
import pytest
from mains import run as run_main
from PIL import Image
from test_guided_runs import config_of, make_run

import ddpm_jax
from ddpm_jax import samplers, timesteps  # noqa: F401  (the recipes of make_sample name them)
from ddpm_jax.pixels import to_uint8
from ddpm_jax.runs.workdir import DatasetFacts

ROOT = pathlib.Path(__file__).parents[1]
README, NETWORK = ROOT / "README.md", ROOT / "docs" / "your_own_network.md"
INTEROP = ROOT / "docs" / "interop.md"

pytestmark = pytest.mark.loose_promotion(reason="the pages are for JAX's default settings")


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def execute(*sources):
    """Run pieces of Python, one after the other, as one program; return its variables."""
    variables = {}
    for source in sources:
        exec(compile(source, "page", "exec"), variables)
    return variables


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """The current directory: empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def are_images(images, n):
    assert images.shape == (n, 8, 8, 1) and images.dtype == np.float32
    assert np.abs(images).max() <= 1.0 and images.std() > 0.1


def test_all_pages_with_python_are_run_here():
    pages = [README, *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md"), ROOT / "CONTRIBUTING.md"]
    assert {page for page in pages if blocks(page)} == {README, INTEROP, NETWORK}
    assert NETWORK.relative_to(ROOT).as_posix() in README.read_text()


@pytest.mark.slow
def test_the_readme_loads_a_run_and_samples_it(directory):
    shutil.unpack_archive(ROOT / "tests" / "fixtures" / "digits_run_0_1_0.zip", directory / "runs")
    are_images(execute(blocks(README)[0])["images"], 16)


def test_the_readme_samples_a_network_from_its_parts():
    _, from_parts, _ = blocks(README)
    are_images(execute(from_parts)["images"], 16)


def exported_by(page, directory):
    """Run the command on a page that exports a sampler, in a directory."""
    text = page.read_text().replace("\\\n", " ")  # a command may have several lines
    command = re.search(r"^python -m experiments\.export (.*)$", text, re.MULTILINE)[1]
    paths = [f"--{name}={directory / value}" for name, value in flags_of(command, "workdir", "out")]
    done = run_main("export", *paths, "--num_steps=3", "--platforms=cpu")
    assert done.returncode == 0, done.stderr


def flags_of(command, *names):
    return [(name, re.search(rf"--{name}=(\S+)", command)[1]) for name in names]


PRINT = "print(images.shape, images.dtype, *numpy.asarray(images).ravel())"


@pytest.mark.slow
def test_the_readme_samples_without_this_library(directory):
    shutil.unpack_archive(ROOT / "tests" / "fixtures" / "digits_run_0_1_0.zip", directory / "runs")
    exported_by(README, directory)
    said = bare.run(blocks(README)[2] + PRINT, directory)
    assert said.startswith("(16, 8, 8, 1) uint8 ")
    sample, params = ddpm_jax.load(directory / "runs" / "digits", sample={"num_steps": 3})
    expected = to_uint8(sample(params, jax.random.key(0), 16))
    found = np.array(said.split()[5:], np.int32).reshape(expected.shape)
    assert np.abs(found - expected).max() <= 1 and found.std() > 20


@pytest.mark.slow
def test_the_page_of_interop_samples_classes_without_this_library(directory):
    facts = DatasetFacts((8, 8, 1), 10, tuple("0123456789"))
    make_run(directory / "runs" / "digits_cond", config_of(sample={"clip_x_0": True}), facts=facts)
    exported_by(INTEROP, directory)
    [call] = blocks(INTEROP)
    said = bare.run(call + PRINT, directory)
    assert said.startswith("(20, 8, 8, 1) uint8 ") and len(set(said.split()[5:])) > 2


@pytest.mark.slow
def test_ones_own_network_learns_is_sampled_saved_and_loaded(directory, capsys):
    variables = execute(*blocks(NETWORK))
    said = re.findall(r"mean loss of the last 100 steps: (\S+)", capsys.readouterr().out)
    assert len(said) == 2 and all(float(loss) < 0.3 for loss in said)
    are_images(variables["samples"], 16)
    are_images(variables["equinox_samples"], 16)
    assert variables["pictures"].dtype == np.uint8
    equal = jax.tree.map(np.array_equal, variables["restored"], variables["params"])
    assert all(jax.tree.leaves(equal)) and len(jax.tree.leaves(equal)) == 6


def test_make_sample_names_samplers_and_grids_for_so_many_evaluations():
    recipes = re.findall(
        r"K = (.*): sampler `(.*)`,\n +timesteps `(.*)`", ddpm_jax.make_sample.__doc__
    )
    process = ddpm_jax.make_process(ddpm_jax.schedules.linear(1000))
    budgets = []
    for budget, sampler, grid in recipes:
        for K in (1000 if K == "T" else int(K) for K in budget.split(", ")):
            names = {"process": process, "K": K}
            grid_K = eval(grid, globals(), names)
            sampler_K = eval(sampler, globals(), names)
            options = dict(shape=(1,), sampler=sampler_K, timesteps=grid_K)
            ddpm_jax.make_sample(process, lambda *args, **kwargs: args[1], **options)
            assert (1000 if grid_K is None else len(grid_K) - 1) == K
            budgets.append(K)
    assert budgets == [10, 20, 50, 1000]


def test_the_network_receives_t_from_0_to_T_less_1_as_make_sample_says():
    assert "t is [B] int32 in 0..T-1" in ddpm_jax.make_sample.__doc__
    process, received = ddpm_jax.make_process(ddpm_jax.schedules.cosine(10)), set()

    def network(params, x_t, t, cond, *, train, key):
        assert t.dtype == np.int32
        jax.debug.callback(lambda t: received.add(int(t)), t[0])
        return x_t

    sampler = ddpm_jax.samplers.ddim(process)
    sample = ddpm_jax.make_sample(process, network, shape=(1,), sampler=sampler)
    jax.block_until_ready(sample(None, jax.random.key(0), 8))
    jax.effects_barrier()
    assert received == set(range(10))


def test_dir_lists_what_is_imported_only_when_it_is_asked_for():
    assert {"load", "train"} <= set(dir(ddpm_jax))


def test_the_first_picture_of_the_readme_is_large_enough_to_see():
    name = re.search(r"!\[.*?\]\((.*?)\)", README.read_text())[1]
    with Image.open(ROOT / name) as picture:
        assert min(picture.size) >= 500


def test_the_readme_quotes_the_distance_that_evaluate_prints():
    table = (ROOT / "benchmarks" / "README.md").read_text()
    value, error = re.search(r"`fd1k_train`.*?\| (\S+) \| (\S+) \|", table).groups()
    row = re.search(r"^\| `digits` \|.*$", README.read_text(), re.MULTILINE)[0]
    assert f"{value} ± {error} (`fd1k_train`" in row
