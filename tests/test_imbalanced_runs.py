"""experiments.imbalanced from its command to its results: what it keeps, resumes and reads when."""

import dataclasses
import json

import numpy as np
import pytest
from mains import run as run_main
from PIL import Image

from ddpm_jax import data
from ddpm_jax.config import DataConfig
from ddpm_jax.training.arms import ARMS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
    pytest.mark.quick_to_compile,
]

SEEDS, CLASSES = 2, 10


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("imbalanced")


def start(place, *more, root="run"):
    return run_main(
        "imbalanced",
        "--config=experiments/fashion_imbalanced.py:smoke",
        f"--workdir={place / root}",
        f"--config.data.data_dir={place / 'data'}",
        *more,
    )


class Watched:
    """A source that notes at each read how many classifiers there are."""

    def __init__(self, source, directory, reads):
        self.source, self.directory, self.reads = source, directory, reads

    def __len__(self):
        return len(self.source)

    def read(self, indices, mirrored=None):
        self.reads.append((len(indices), {p.name for p in self.directory.glob("*_seed*")}))
        return self.source.read(indices, mirrored)


@pytest.fixture(scope="module")
def first(place):
    """The first start, and the reads of the test split in it."""
    reads, opened, real = [], [], data.open_dataset

    def open_dataset(config, given=None):
        dataset = real(config, given)
        opened.append(config.name)
        if dataset.test is None:
            return dataset
        watched = Watched(dataset.test, place / "run" / "classifiers", reads)
        return dataclasses.replace(dataset, test=watched)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "open_dataset", open_dataset)
        done = start(place)
    assert done.returncode == 0, done.stderr
    return done, reads, opened


def times(place, root="run"):
    """Return the time of each file that a stage keeps."""
    patterns = ("fit.npz", "*/checkpoints/*", "synthetic/*", "classifiers/*")
    found = [path for pattern in patterns for path in (place / root).glob(pattern)]
    return {str(path.relative_to(place / root)): path.stat().st_mtime_ns for path in found}


def results(place, root="run"):
    return json.loads((place / root / "results.json").read_text())


def test_the_test_split_is_read_once_after_all_classifiers_are_trained(place, first):
    _, reads, opened = first
    assert len(reads) == 1 and opened == ["digits", "array", "array"]
    number, classifiers = reads[0]
    assert number == 163
    for name in ARMS:
        for seed in range(SEEDS):
            assert any(file.startswith(f"{name}_seed{seed}-") for file in classifiers)
    assert {path.name for path in (place / "run" / "classifiers").iterdir()} == classifiers


def test_the_runs_see_a_part_of_the_long_tailed_set_only(place, first):
    config = DataConfig(name="digits", data_dir=str(place / "data"))
    dataset = data.open_dataset(dataclasses.replace(config, imbalance=4.0, max_per_class=40))
    images, labels = dataset.train.read(np.arange(len(dataset.train)))
    counts = np.bincount(labels)
    assert counts[[0, 9]].tolist() == [40, 10]
    with np.load(place / "run" / "fit.npz") as file:
        fit, fit_labels = file["images"], file["labels"]
    np.testing.assert_array_equal(np.bincount(fit_labels), counts - counts // 5)
    theirs = {image.tobytes() for image in images}
    assert all(image.tobytes() in theirs for image in fit)
    for name in ("autoencoder", "diffusion"):
        run = json.loads((place / "run" / name / "config.json").read_text())
        assert run["data"]["path"] == str(place / "run" / "fit.npz")
        facts = json.loads((place / "run" / name / "dataset.json").read_text())
        assert facts["digest"].startswith(f"{len(fit)} images, sha256")


def test_the_results_are_complete(place, first):
    found = results(place)
    assert found["arms"].keys() == ARMS.keys() and found["classes"] == list("0123456789")
    assert sum(found["counts"]["validation"]) == 40
    for arm in found["arms"].values():
        recalls = np.array(arm["recalls"])
        assert recalls.shape == (SEEDS, CLASSES) and ((recalls >= 0) & (recalls <= 1)).all()
        assert arm["balanced_accuracy"]["value"] == pytest.approx(recalls.mean())
        assert arm["thirds"].keys() == {"most frequent", "middle", "rarest"}
        assert "nothing" in arm["differences"]
    assert found["arms"]["nothing"]["differences"]["nothing"] == {"value": 0.0, "error": 0.0}
    for name, key in (("guidance", "w"), ("filter", "reject")):
        rows = found["choices"][name]
        best = max(rows, key=lambda row: row["accuracy"])
        near = [row for row in rows if row["accuracy"] >= best["accuracy"] - best["error"]]
        assert len(rows) == 2 and [row for row in rows if row["chosen"]] == near[:1]
        assert key in best and all(0 < row["error"] < 0.5 and 0 <= row["test"] <= 1 for row in rows)
    assert found["nearest"].keys() == {"most frequent", "middle", "rarest"}
    assert all(each["nearest_ratio"] > 0 for each in found["nearest"].values())
    stages = {"autoencoder", "diffusion", "synthetic images", "choosing w and the filter"}
    assert found["minutes"].keys() == stages | {"training the arms"}
    assert all(value > 0 for value in found["minutes"].values())
    said = first[0].stdout
    assert found["verdict"] in said and "synthetic_weighted" in said and "minutes: auto" in said
    n = SEEDS * len(ARMS)
    assert f"training the arms: {n}/{n}" in first[0].stderr
    with Image.open(place / "run" / "recall_by_class_rank.png") as picture:
        assert min(picture.size) > 400


def test_the_synthetic_images_fill_up_the_classes_and_depend_on_w(place, first):
    drawn = {}
    for path in (place / "run" / "synthetic").iterdir():
        with np.load(path) as file:
            drawn[path.name.split("-")[0]] = file["images"]
            counts = np.bincount(file["labels"], minlength=CLASSES)
    np.testing.assert_array_equal(np.add(counts, results(place)["counts"]["fit"]), 32)
    assert drawn.keys() == {"w0", "w1"} and drawn["w0"].shape == (counts.sum(), 8, 8, 1)
    assert (drawn["w0"] != drawn["w1"]).any()
    for row in results(place)["choices"]["filter"]:
        assert (row["passed"] <= counts).all()


def test_a_second_start_does_nothing_twice(place, first):
    before, found = times(place), results(place)
    assert len(before) == 1 + 2 + 2 + SEEDS * len(ARMS) + 2  # and those of the choice
    done = start(place)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("resumed at step 4") == 2 and "compiled" not in done.stdout
    assert "drawing images" not in done.stderr
    assert times(place) == before and results(place) == found


def test_what_is_missing_is_made_again_and_only_that(place, first):
    gone = next((place / "run" / "classifiers").glob("augmentation_seed1-*"))
    gone.unlink()
    before, found = times(place), results(place)
    done = start(place)
    assert done.returncode == 0, done.stderr
    after = times(place)
    new = f"classifiers/{gone.name}"
    assert after.keys() - before.keys() == {new} and after.items() >= before.items()
    assert results(place)["arms"] == found["arms"]  # bit for bit


def test_more_seeds_add_to_those_that_are_there(place, first):
    before, found = times(place), results(place)["arms"]
    done = start(place, "--config.arms.num_seeds=3")
    assert done.returncode == 0, done.stderr
    assert times(place).items() >= before.items()
    for name, arm in results(place)["arms"].items():
        assert arm["recalls"][:SEEDS] == found[name]["recalls"] and len(arm["recalls"]) == 3


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("data.imbalance=2.0", "fit.npz has other images than this config chooses"),
        ("data.imbalance=1.0", "data.imbalance is 1, so no class is scarce"),
        ("data.imbalance=50.0", "leaves no image of class '9': 40 * 50^-1 = 0.8; set data.imb"),
        ("data.imbalance=40.0", "class '8' has too few images (1): all would be for validation"),
        ("data.test_split=''", "has no held-out images to compare the arms on"),
        ("autoencoder.train.num_steps=6", "belongs to a run of another config (train.num_steps"),
        ("autoencoder.model.name=unet", "autoencoder.model.name is 'unet'; set it to 'auto"),
        ("diffusion.model.name=classifier", "diffusion.model.name is 'classifier'; set it to"),
        ("diffusion.model.class_conditional=False", "images of each class must be drawn"),
        ("diffusion.sample.guidance=1.0", "but arms.guidance has the weights w here; set it to 0"),
        ("diffusion.loss.p_uncond=0.0", "p_uncond"),
        ("diffusion.loss.kind=x", "unknown loss.kind 'x'"),
        ("diffusion.train.batch_size=1000", "diffusion.train.batch_size is 1000, but there are"),
        ("diffusion.sample.sampler=x", "unknown sample.sampler 'x'"),
        ("diffusion.model.attention_resolutions=(3,)", "but images of height 4 only pass through"),
        ("diffusion.process.schedule=learned", "the bound, which is of pixels"),
        ("arms.guidance=()", "config.arms.guidance is empty; name at least one number"),
        ("arms.beta=1.0", "config.arms.beta must be in [0, 1), found 1.0"),
    ],
)
def test_what_cannot_be_is_one_line(place, first, flag, words):
    flag = flag.replace("''", "")
    done = start(place, f"--config.{flag}")
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(lines) == 1 and words in lines[0], done.stderr


def test_a_config_of_another_main_is_one_line(place):
    done = run_main("imbalanced", "--config=experiments/digits.py", f"--workdir={place / 'x'}")
    assert done.returncode == 2 and "has no section 'diffusion', which" in done.stderr
    done = run_main("train", "--config=experiments/fashion_imbalanced.py")
    assert done.returncode == 2 and "unknown config section 'arms'" in done.stderr
