"""The files that `sample` and `edit` write: names that tell settings apart, and paths of --out."""

import dataclasses
import json

import numpy as np
import pytest
from mains import run as run_main
from PIL import Image
from test_guided_runs import FACTS, config_of, make_run

from ddpm_jax import load
from ddpm_jax.config import SampleConfig
from ddpm_jax.errors import UserError
from ddpm_jax.runs.checkpoint import Checkpoints
from ddpm_jax.runs.state import TrainState
from ddpm_jax.runs.workdir import check_same_run
from experiments import outputs

pytestmark = [
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
    pytest.mark.quick_to_compile,
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("outputs") / "run"
    params = make_run(root, config_of())
    checkpoints = Checkpoints(root / "checkpoints", 2, 0)
    checkpoints.save(TrainState(np.int32(2), params, params, ()), wait=True)
    checkpoints.close()
    for name, value in (("a", 0), ("b", 255)):
        np.savez(root.parent / f"{name}.npz", images=np.full((2, 4, 4, 1), value, np.uint8))
        Image.fromarray(np.full((4, 4), value, np.uint8)).save(root.parent / f"{name}.png")
    return root


def run(name, *flags):
    done = run_main(name, *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_samples_of_other_settings_have_other_names_and_say_their_settings(root):
    settings = [(), ("--step=1",), ("--sampler=ddim", "--num_steps=2"), ("--label=1",)]
    for flags in settings:
        run("sample", f"--workdir={root}", "--n=2", *flags)
    names = {path.stem for path in (root / "samples").glob("samples*.npz")}
    assert names == {
        "samples_step2_n2_seed0",
        "samples_step1_n2_seed0",
        "samples_step2_n2_seed0_ddim_2steps",
        "samples_step2_n2_seed0_label1",
    }
    with np.load(root / "samples" / "samples_step2_n2_seed0_ddim_2steps.npz") as arrays:
        written = json.loads(str(arrays["settings"]))
    assert written["sample"]["sampler"] == "ddim" and written["sample"]["clip_x_0"] is False
    assert (written["step"], written["n"], written["seed"]) == (2, 2, 0)
    assert written["workdir"] == str(root)


@pytest.mark.slow
def test_edits_of_other_settings_have_other_names_and_say_their_settings(root):
    a, b = (root.parent / name for name in "ab")
    common = (f"--workdir={root}", "--n=1", f"--images={a}.npz")
    inpaint = ("--edit=inpaint", "--num_resamples=1", "--draws=1")
    settings = [
        (*inpaint, f"--mask={a}.png"),
        (*inpaint, f"--mask={b}.png"),
        ("--edit=sdedit", "--depth=1"),
    ]
    for flags in settings:
        run("edit", *common, *flags)
    found = [path for path in (root / "samples").glob("*.npz") if path.stem[:7] != "samples"]
    assert len(found) == len(settings), found
    for path in found:
        with np.load(path) as arrays:
            written = json.loads(str(arrays["settings"]))
        assert path.stem.startswith(f"{written['edit']}_step2_n1_seed0_a-")
        assert ("mask" in written) == (written["edit"] == "inpaint")
        assert written["images"] == f"{a}.npz"


def test_every_field_that_differs_is_a_word_and_a_text_is_told_apart_by_its_digest():
    own = SampleConfig(num_steps=50, guidance=1.0)
    assert outputs.sampling_words(own, own) == []
    other = dataclasses.replace(own, sampler="ddim", num_steps=20, timesteps="karras", guidance=0.5)
    assert outputs.sampling_words(own, other) == ["ddim", "20steps", "karras", "w0.5"]
    assert outputs.word("A red/heart!") != outputs.word("a red heart")
    assert outputs.word("A red/heart!").startswith("a-red-heart-")
    assert outputs.word("\u2665") == outputs.digest("\u2665")  # no letters
    assert outputs.join("a", None, "b") == "a_b"
    long = outputs.join("x" * 300, "a"), outputs.join("x" * 300, "b")
    assert long[0] != long[1] and len(long[0]) <= 150


def test_out_is_a_path_with_or_without_suffix_or_a_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    there = tmp_path / "there"
    there.mkdir()
    for out, wanted in (
        (None, tmp_path / "samples" / "name_w1.5"),
        (f"{tmp_path}/plain_w1.5", tmp_path / "plain_w1.5"),
        (f"{tmp_path}/picture.png", tmp_path / "picture"),
        ("arrays.npz", tmp_path / "arrays"),
        (f"{tmp_path}/new/", tmp_path / "new" / "name_w1.5"),
        (str(there), there / "name_w1.5"),
        ("~/home", tmp_path / "home"),
    ):
        assert outputs.stem(out, tmp_path / "samples", "name_w1.5") == wanted
        assert wanted.parent.is_dir() and not list(wanted.parent.glob("*.p*"))
    (tmp_path / "taken.npz").mkdir()
    with pytest.raises(UserError, match="taken.npz is a directory"):
        outputs.stem(f"{tmp_path}/taken", tmp_path, "name")


@pytest.mark.parametrize("main", ["sample", "edit"])
def test_a_main_writes_into_the_directory_of_out_and_says_where(root, tmp_path, main):
    edit = ("--edit=sdedit", "--depth=1", f"--images={root.parent / 'a.npz'}")
    said = run(
        main, f"--workdir={root}", "--n=1", f"--out={tmp_path}/", *edit[: 3 * (main == "edit")]
    )
    files = sorted(tmp_path.iterdir())
    assert [path.suffix for path in files] == [".npz", ".png"]
    assert all(str(path) in said for path in files)


def test_a_work_directory_may_begin_with_a_tilde(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root.parent))
    said = run("sample", "--workdir=~/run", "--n=1", "--seed=9")
    assert str(root / "samples" / "samples_step2_n1_seed9.png") in said
    load("~/run")
    with pytest.raises(UserError, match="train.seed: 0 there, 5 now"):
        check_same_run("~/run", config_of(train={"num_steps": 1, "seed": 5}), FACTS)


def test_a_write_that_fails_leaves_the_old_file(root, tmp_path, monkeypatch):
    run("sample", f"--workdir={root}", "--n=1", f"--out={tmp_path / 'x'}")
    before = (tmp_path / "x.npz").read_bytes()

    def fail(file, **arrays):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    refused = run_main("sample", f"--workdir={root}", "--n=1", f"--out={tmp_path / 'x'}")
    assert refused.returncode == 2
    assert "cannot be written (No space left on device)" in refused.stderr
    assert (tmp_path / "x.npz").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npz", "x.png"]


def test_a_grid_of_classes_in_turn_has_a_column_for_each(root, tmp_path):
    run("sample", f"--workdir={root}", "--n=4", f"--out={tmp_path / 'turns'}")
    run("sample", f"--workdir={root}", "--n=4", "--label=1", f"--out={tmp_path / 'one'}")
    sizes = []
    for name in ("turns", "one"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            sizes.append(picture.size)
    assert sizes[0][0] == 3 * 34 + 2 and sizes[0][1] > 2 * 34 + 2  # three classes, and names above
    assert sizes[1] == (2 * 34 + 2, 2 * 34 + 2)
