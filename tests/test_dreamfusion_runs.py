"""experiments.dreamfusion from its command to its results: what it keeps and resumes."""

import json
import pathlib

import numpy as np
import pytest
from mains import run as run_main
from PIL import Image

from ddpm_jax.errors import UserError
from ddpm_jax.pretrained import text_encoder
from ddpm_jax.training.scene import ARMS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
    pytest.mark.quick_to_compile,
]

CLASSES, STEPS, SIDE = ("chair", "mug"), 5, 8
FIELDS = (
    *(f"{arm}_{name}_seed0" for arm in ("views", "no_views") for name in CLASSES),
    "not_grown",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("dreamfusion")


def start(place, *more, root="run"):
    return run_main(
        "dreamfusion",
        "--config=experiments/dreamfusion_solids.py:smoke",
        f"--workdir={place / root}",
        f"--config.data.data_dir={place / 'data'}",
        f"--classes={','.join(CLASSES)}",
        *more,
    )


@pytest.fixture(scope="module")
def first(place):
    done = start(place)
    assert done.returncode == 0, done.stderr
    return done


def times(place):
    """Return the time of each file that a stage keeps."""
    found = [
        path
        for pattern in ("prior/checkpoints/*", "judge/*", "fields/*")
        for path in (place / "run").glob(pattern)
    ]
    return {str(path.relative_to(place / "run")): path.stat().st_mtime_ns for path in found}


def results(place, end="chair_mug"):
    return json.loads((place / "run" / f"results_{end}.json").read_text())


def test_the_results_are_complete(place, first):
    found = results(place)
    assert found["arms"].keys() == {*ARMS, "pictures of the set"}
    assert found["minutes"].keys() == {"prior", "judge", "fields"}
    for arm in found["arms"].values():
        assert tuple(arm["fields"]) == CLASSES
        for measure in ("accuracy", "agreement", "side"):
            values = [row[measure] for rows in arm["fields"].values() for row in rows]
            assert all(0 <= value <= 1 for value in values)
            assert arm[measure]["value"] == pytest.approx(np.mean(values))
            error = np.std(values, ddof=1) / np.sqrt(len(values))
            assert arm[measure]["error"] == pytest.approx(error)
    pictures = place / "run" / "pictures"
    assert {path.stem for path in pictures.iterdir()} == {
        *FIELDS,
        "all_views_chair_mug",
        "all_no_views_chair_mug",
    }
    for arm in ("views", "no_views"):
        with Image.open(pictures / f"all_{arm}_chair_mug.png") as rows:
            assert rows.height == len(CLASSES) * (2 * SIDE + 2) + 2
    for name in FIELDS:
        path = pictures / name
        with Image.open(path.with_suffix(".gif")) as turntable:
            assert turntable.n_frames == 36 and turntable.size == (4 * SIDE, 4 * SIDE)
        with Image.open(path.with_suffix(".png")) as strip:
            assert strip.size == (12 * (2 * SIDE + 2) + 2, 2 * SIDE + 4)
        with np.load(path.with_suffix(".npz")) as file:
            assert {k: v.shape for k, v in file.items()} == {
                "grid_0": (3, 3, 3, 4),
                "grid_1": (6, 6, 6, 4),
            }
    assert "chance: accuracy 12.5" in first.stdout and "no_views" in first.stdout
    assert "growing mug (no_views, seed 0): 5/5" in first.stderr


def test_the_arms_and_the_classes_differ(place, first):
    grids = {}
    for path in (place / "run" / "pictures").glob("*.npz"):
        with np.load(path) as file:
            grids[path.stem] = file["grid_1"]
    assert grids.keys() == set(FIELDS)
    assert not [(a, b) for a in grids for b in grids if a < b and (grids[a] == grids[b]).all()]


def test_the_judge_sees_no_colours(place, first):
    (path,) = (place / "run" / "judge").iterdir()
    with np.load(path) as file:
        kernels = [value.shape for value in file.values() if value.ndim == 4]
    assert [shape[2] for shape in kernels].count(1) == 1 and (3 not in {s[2] for s in kernels})


def test_a_second_start_does_nothing_twice(place, first):
    before, found = times(place), results(place)
    assert len(before) == 1 + 1 + 2 * len(CLASSES) * 3  # after 2, 4 and 5 steps
    done = start(place)
    assert done.returncode == 0, done.stderr
    assert "growing" not in done.stderr and "compiled" not in done.stdout
    assert times(place) == before and results(place) == found


def test_a_field_that_was_stopped_goes_on_bit_for_bit(place, first):
    before, found = times(place), results(place)
    directory = place / "run" / "fields"
    gone = {}
    for steps in (4, STEPS):
        (path,) = directory.glob(f"views_mug_seed0_{steps}-*")
        with np.load(path) as file:
            gone[path] = dict(file)
        path.unlink()
    done = start(place)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("growing mug (views, seed 0): 5/5") == 1
    after = times(place)
    assert after.keys() == before.keys()
    assert {k for k in after if after[k] != before[k]} == {f"fields/{p.name}" for p in gone}
    for path, arrays in gone.items():
        with np.load(path) as file:
            for name, array in arrays.items():
                np.testing.assert_array_equal(file[name], array)
    assert results(place)["arms"] == found["arms"]


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--classes=chair,mag", "unknown class in --classes 'mag'; did you mean 'mug'? allowed: "),
        ("--config.data.name=digits", "data.name is 'digits'; set it to 'solids' here"),
        ("--config.data.view_labels=False", "data.view_labels is False; set it to True here"),
        ("--config.data.flip=True", "data.flip is True; set it to False here"),
        ("--config.prior.model.name=classifier", "prior.model.name is 'classifier'; set it to"),
        ("--config.prior.model.class_conditional=False", "class_conditional is False; set it to"),
        ("--config.data.text=True", "prior.model.class_conditional is True; set it to False here"),
        ("--config.prior.model.super_resolution=2", "super_resolution is 2; set it to 0 here"),
        ("--text=a mug", "'a mug' is given, but the prior takes no text (data.text is False); use"),
        ("--config.prior.loss.p_uncond=0.0", "training never uses the null class"),
        ("--config.prior.process.schedule=lineer", "unknown process.schedule 'lineer'"),
        ("--config.prior.train.num_steps=6", "belongs to a run of another config (train.num_st"),
        ("--config.field.num_steps=0", "config.field.num_steps must be at least 1, found 0"),
        ("--config.judge.channels=0", "config.judge.channels must be at least 1, found 0"),
    ],
)
def test_what_cannot_be_is_one_line(place, first, flag, words):
    done = start(place, flag)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(lines) == 1 and words in lines[0], done.stderr


def test_a_config_of_another_main_is_one_line(place):
    done = run_main("dreamfusion", "--config=experiments/digits.py", f"--workdir={place / 'x'}")
    assert done.returncode == 2 and "has no section 'prior', which" in done.stderr
    done = run_main("train", "--config=experiments/dreamfusion_solids.py")
    assert done.returncode == 2 and "unknown config section 'field'" in done.stderr


# A prior of texts


OF_TEXTS = (
    "--config.data.text=True",
    "--config.prior.model.class_conditional=False",
    "--config.prior.model.embedding_dim=384",
    "--config.prior.model.context_dim=384",
)


def start_texts(place, *more):
    try:
        text_encoder.encoder_directory()
    except UserError as error:
        pytest.skip(str(error))
    return run_main(
        "dreamfusion",
        "--config=experiments/dreamfusion_solids.py:smoke",
        f"--workdir={place / 'texts'}",
        f"--config.data.data_dir={place / 'data'}",
        *OF_TEXTS,
        *more,
    )


def test_a_prior_of_texts_grows_what_a_text_says(place):
    grids = {}
    for text in ("a red chair", "a blue chair"):
        done = start_texts(place, f"--text={text}")
        assert done.returncode == 0, done.stderr
        assert f"growing {text} (no_views, seed 0): 5/5" in done.stderr
        (line,) = (line for line in done.stdout.splitlines() if line.startswith("results: "))
        found = json.loads(pathlib.Path(line.removeprefix("results: ")).read_text())
        assert all(list(arm["fields"]) == [text] for arm in found["arms"].values())
        end = line.partition("results_")[2].removesuffix(".json")
        pictures = place / "texts" / "pictures"
        assert (pictures / f"all_views_{end}.png").is_file()
        for arm in ("views", "no_views"):
            with np.load(pictures / f"{arm}_{end}_seed0.npz") as file:
                grids[text, arm] = file["grid_1"]
    assert not [(a, b) for a in grids for b in grids if a < b and (grids[a] == grids[b]).all()]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--text=a blue ball"], "--text='a blue ball' is for one class, found none; name the"),
        (["--text=a cone on a cube"], "is for one class, found cube, cone; name the class that"),
        (["--text=a ball", "--classes=ball"], "unknown class in --classes 'ball'"),
    ],
)
def test_a_text_without_one_class_is_one_line(place, flags, words):
    done = start_texts(place, *flags)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(lines) == 1 and words in lines[0], done.stderr
