"""A folder of diffusers becomes a run that every main reads and that trains further."""

import json

import jax
import numpy as np
import pytest
from mains import run as run_main
from test_interop import make_run

import ddpm_jax
from ddpm_jax.config import from_dict
from ddpm_jax.interop import from_diffusers, hub, imported, to_diffusers
from ddpm_jax.runs import open_run
from ddpm_jax.runs.workdir import DatasetFacts

pytest.importorskip("safetensors")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
    pytest.mark.quick_to_compile,
]

COSINE = {"schedule": "cosine", "num_timesteps": 8}


def done(name, *flags):
    finished = run_main(name, *flags)
    assert finished.returncode == 0, finished
    return finished.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, images to train it on, and the run that `convert` makes of the model."""
    place = tmp_path_factory.mktemp("convert")
    source = make_run(process=COSINE, model={"dropout": 0.0})
    to_diffusers(source, place / "model")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (200, 8, 8, 3), np.uint8)
    np.savez(place / "images.npz", images=images, labels=np.arange(200) % 3)
    small = ["train.num_steps=2", "train.batch_size=8", "train.num_samples=2", "eval.every=2"]
    small += ["eval.num_samples=8", "eval.num_seeds=1", "eval.num_steps=2", "eval.bound_images=8"]
    out = done(
        "convert",
        f"--from={place / 'model'}",
        f"--workdir={place / 'run'}",
        "--config=experiments/folder.py",
        "--config.data.name=array",
        f"--config.data.path={place / 'images.npz'}",
        "--config.data.image_size=8",
        *(f"--config.{option}" for option in small),
    )
    assert "images of 8x8x3, no classes" in out
    return place, source


def test_it_is_loaded_and_sampled(place):
    root, source = place[0] / "run", place[1]
    sample, params = ddpm_jax.load(root)
    jax.tree.map(np.testing.assert_array_equal, params, source.params)
    key = jax.random.key(0)
    found = sample(params, key, 2)
    np.testing.assert_allclose(found, source.sample_fn()(source.params, key, 2), atol=1e-5)
    imported = json.loads((root / "imported.json").read_text())
    assert imported == {"from": str(place[0] / "model"), "revision": ""}
    out = place[0] / "grid.png"
    done("sample", f"--workdir={root}", "--n=2", f"--out={out}")
    assert out.exists()


def test_it_is_edited(place):
    root, out = place[0] / "run", place[0] / "edited.png"
    done("edit", f"--workdir={root}", "--edit=sdedit", "--n=1", f"--out={out}")
    assert out.exists()


def test_it_is_evaluated_and_written_again(place):
    root = place[0] / "run"
    done("evaluate", f"--workdir={root}")
    done("convert", f"--from={root}", f"--to={place[0] / 'evaluated'}")
    assert "## Evaluation" in (place[0] / "evaluated" / "README.md").read_text()


def test_it_trains_further_and_is_written_again(place):
    root, source = place[0] / "run", place[1]
    out = done("train", f"--config={root / 'config.json'}")
    assert "resumed at step 0" in out
    run = open_run(root)
    assert run.step == 2 and run.facts.known and run.facts.num_classes == 3
    moved = [
        np.abs(a - b).max()
        for a, b in zip(jax.tree.leaves(run.params), jax.tree.leaves(source.params), strict=True)
    ]
    assert 0 < max(moved) < 1e-2  # the averaged weights began at the model's
    done("convert", f"--from={root}", f"--to={place[0] / 'back'}", "--licence=mit")
    back = from_diffusers(place[0] / "back")
    jax.tree.map(np.testing.assert_array_equal, back.params, run.params)
    card = (place[0] / "back" / "README.md").read_text()
    assert 'license: "mit"' in card and "to step 2" in card
    assert "## Evaluation" not in card  # the evaluation is of other weights


def test_classes_train_further(tmp_path):
    facts = DatasetFacts((8, 8, 3), 3, ())
    source = make_run(facts, process=COSINE, model={"class_conditional": True, "null_class": False})
    to_diffusers(source, tmp_path / "model")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 8, 8, 3), np.uint8)
    data = {"name": "array", "image_size": 8, "channels": 3, "holdout": 0.0}
    train = {"num_steps": 1, "batch_size": 8, "num_samples": 2}
    config = from_dict({"data": data, "train": train, "eval": {"every": 0}})
    run = from_diffusers(tmp_path / "model", config)
    imported.write_run(run, tmp_path / "run", hub.locate(tmp_path / "model"))
    result = ddpm_jax.train(
        run.config, tmp_path / "run", images=images, labels=np.arange(24, dtype=np.int32) % 3
    )
    assert int(result.state.step) == 1
    sample, params = ddpm_jax.load(tmp_path / "run")
    label = np.array([0, 2], np.int32)
    assert np.isfinite(sample(params, jax.random.key(0), 2, {"label": label})).all()
    with pytest.raises(ddpm_jax.UserError, match=r"needs cond\['label'\]"):
        sample(params, jax.random.key(0), 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "pass --workdir=DIRECTORY to make a run, or --to=PATH to write a model"),
        (["--workdir={0}/run"], "already holds a run; choose another directory"),
        (["--workdir={0}/new", "--licence=mit"], "--licence=mit is given, but"),
        (["--to={0}/new", "--revision=main"], "--revision=main is given, but"),
        (["--to={0}/new"], "is not the work directory of a run"),
        (["--workdir={0}/new", "--config=experiments/folder.py"], "data.image_size is 64, but the"),
    ],
)
def test_flags_that_do_not_fit_are_refused_in_one_line(place, flags, message):
    flags = [flag.format(place[0]) for flag in flags]
    finished = run_main("convert", f"--from={place[0] / 'model'}", *flags)
    assert finished.returncode == 2 and message in finished.stderr
    assert len(finished.stderr.strip().splitlines()) == 1 and not (place[0] / "new").exists()
