"""References kept on disk, and the evaluation of runs: in process, and by its command."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mains import run as run_main
from tiny import make_config

from ddpm_jax import build, data
from ddpm_jax.build.overrides import for_evaluation
from ddpm_jax.data.cond import drawn_cond
from ddpm_jax.data.sources import ArraySource
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import references
from ddpm_jax.evaluation import samples as quality
from ddpm_jax.evaluation.features import FeatureNetwork, make_features
from ddpm_jax.runs import open_run
from ddpm_jax.runs.checkpoint import Checkpoints
from ddpm_jax.runs.state import TrainState
from ddpm_jax.runs.workdir import DatasetFacts, open_for_training, write_facts

pytestmark = [
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
    pytest.mark.quick_to_compile,
]

# A network of features that takes no time: means of 16 blocks of 2 x 2 pixels, and their squares
BLOCKS = FeatureNetwork("blocks", "1", lambda params, images: blocks(images))


def blocks(images):
    means = images.reshape(-1, 4, 2, 4, 2).astype(jnp.float32).mean((2, 4)).reshape(-1, 16) / 255.0
    return jnp.concatenate([means, means**2], axis=1)


@pytest.fixture(scope="module")
def run_and_data(tmp_path_factory):
    """A run of the digits with weights drawn at random, conditional on the class."""
    root = tmp_path_factory.mktemp("quality")
    config = make_config(data__data_dir=str(root / "data"), model__class_conditional=True)
    dataset = data.open_dataset(config.data)
    workdir = open_for_training(root / "run", config)
    shape, num_classes = dataset.image_shape, dataset.num_classes
    write_facts(workdir, DatasetFacts(shape, num_classes, dataset.class_names))
    model = build.model(config.model, shape, num_classes)
    leaves, tree = jax.tree.flatten(jax.eval_shape(model.init, jax.random.key(0)))
    rng = np.random.default_rng(0)
    params = tree.unflatten([0.2 * rng.normal(size=x.shape).astype(np.float32) for x in leaves])
    checkpoints = Checkpoints(workdir.checkpoints, 1, 0)
    checkpoints.save(TrainState(np.int32(3), params, params, ()), wait=True)
    checkpoints.close()
    return open_run(workdir.root), dataset, workdir.root


def kept(dataset_config):
    directory = references._directory(dataset_config)
    return {p.name: p.stat().st_mtime_ns for p in directory.glob("*.npz")}


def test_a_reference_is_of_all_images_and_computed_once(run_and_data, monkeypatch):
    run, dataset, _ = run_and_data
    config = run.config.data
    found = references.reference(config, dataset, "train", BLOCKS)
    images, _ = dataset.train.read(np.arange(len(dataset.train)))
    features = make_features(BLOCKS)(images).astype(np.float64)
    assert found.moments.n == 1634
    np.testing.assert_allclose(found.moments.mean, features.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.moments.covariance, np.cov(features.T), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(found.features, features, rtol=1e-6)  # all: they are few
    before = kept(config)
    again = references.reference(config, dataset, "train", BLOCKS)
    assert kept(config) == before
    np.testing.assert_array_equal(again.moments.m2, found.moments.m2)
    assert again.moments.n == 1634

    # Of a part, drawn at random, in order, where there are many
    monkeypatch.setattr(references, "MAX_FEATURES", 100)
    other = BLOCKS._replace(digest="2")
    few = references.reference(config, dataset, "train", other)
    np.testing.assert_array_equal(few.moments.m2, found.moments.m2)
    assert few.features.shape == (100, 32)
    rows = [np.flatnonzero((found.features == row[None]).all(axis=1)) for row in few.features]
    assert all(len(row) for row in rows)
    assert len(np.unique(few.features, axis=0)) == 100


def test_other_splits_pixels_sizes_and_networks_are_other_references(run_and_data):
    run, dataset, _ = run_and_data
    config = run.config.data
    references.reference(config, dataset, "train", BLOCKS)
    images, labels = dataset.train.read(np.arange(len(dataset.train)))
    darker = dataclasses.replace(dataset, train=ArraySource(images // 2, labels))
    fewer = dataclasses.replace(dataset, train=ArraySource(images[:900], labels[:900]))
    resized = dataclasses.replace(config, image_size=8)
    for config_, dataset_, split, network in (
        (config, dataset, "test", BLOCKS),
        (config, darker, "train", BLOCKS),
        (config, fewer, "train", BLOCKS),
        (resized, dataset, "train", BLOCKS),
        (config, dataset, "train", BLOCKS._replace(digest="3")),
        (config, dataset, "train", BLOCKS._replace(name="other")),
    ):
        before = kept(config)
        references.reference(config_, dataset_, split, network)
        assert len(kept(config)) == len(before) + 1


def test_a_classifier_without_labels_or_held_out_images(run_and_data):
    run, dataset, _ = run_and_data
    config = dataclasses.replace(run.config.data, name="folder")
    images, labels = dataset.train.read(np.arange(300))
    undivided = dataclasses.replace(dataset, train=ArraySource(images, labels), test=None)
    _, accuracy = references.classifier(config, undivided)  # of the 30 that it did not see
    assert 0.6 < accuracy <= 1.0 and accuracy * 30 == pytest.approx(round(accuracy * 30))
    unlabelled = dataclasses.replace(undivided, num_classes=0)
    with pytest.raises(UserError, match="folder has none; pass --features=inception"):
        references.classifier(config, unlabelled)
    with pytest.raises(UserError, match="no held-out images"):
        references.reference(config, undivided, "test", BLOCKS)
    with pytest.raises(UserError, match="did you mean 'train'"):
        references.reference(config, undivided, "trian", BLOCKS)


def values(report):
    return {row.name: row.value for row in report.rows}


@pytest.mark.slow
def test_an_evaluation_does_not_depend_on_how_the_images_are_cut_up(run_and_data):
    run, dataset, _ = run_and_data
    found = quality.evaluate(run, dataset, BLOCKS, n=40, num_seeds=2)
    cut = dataclasses.replace(
        run.config, sample=dataclasses.replace(run.config.sample, chunk_size=16)
    )
    again = quality.evaluate(run._replace(config=cut), dataset, BLOCKS, n=40, num_seeds=2)
    assert found.neighbours.ndim == 3 and found.neighbours.dtype == np.uint8
    for row, other in zip(found.rows, again.rows, strict=True):
        assert (row.name, row.n, row.note) == (other.name, 40, other.note)
        if row.value is not None:
            assert row.value == pytest.approx(other.value, rel=1e-3)
    assert values(found)["fd40_train"] > values(found)["fd40_train_min"] > 0
    assert values(found)["precision40_train"] is None  # too few
    assert values(found)["nearest_ratio40"] > 0
    notes = {row.name: row.note for row in found.rows}
    assert notes["precision40_train"] == (
        "needs at least 100 images in each set; fraction of samples near the images; 1 is best"
    )
    assert notes["fd40_train_min"].startswith("the least of 2 seeds; Fréchet distance")
    assert all("best" in note or "worst" in note for note in notes.values()), notes
    with pytest.raises(UserError, match="no held-out images"):
        quality.evaluate(run, dataclasses.replace(dataset, test=None), BLOCKS, n=40, split="test")


def test_a_model_is_told_classes_as_often_as_the_data_have_them(run_and_data):
    run, dataset, _ = run_and_data
    cond = drawn_cond(run.config, dataset.train, {}, 1634, 0)
    _, labels = dataset.train.read(np.arange(1634))
    np.testing.assert_array_equal(np.bincount(cond["label"]), np.bincount(labels))
    few = [drawn_cond(run.config, dataset.train, {}, 20, seed)["label"] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(few[0], few[1])
    assert (few[0] != few[2]).any() and few[0].shape == (20,)


def test_evaluation_takes_its_own_sampler_and_no_options_of_the_runs():
    config = make_config(
        sample__sampler="ddim", sample__eta=0.5, sample__timesteps="karras", sample__rho=3.0
    )
    sample = for_evaluation(config).sample
    assert (sample.sampler, sample.num_steps, sample.timesteps) == (
        "dpm_solver_pp_2m",
        8,
        "trailing",
    )
    assert sample.eta == 0.0 and sample.rho == 7.0
    build.sampler(sample, build.process(config.process))


def test_what_is_no_run_cannot_be_evaluated():
    refused = run_main("evaluate", f"--workdir={Path(__file__).parent}")
    assert refused.returncode == 2 and refused.stdout == ""
    assert "is not the work directory of a run" in refused.stderr
