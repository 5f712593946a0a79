"""A run of novel views from data to turntable: training, resume, sampling, `experiments.views`."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
from mains import run as run_main
from PIL import Image
from test_data_solids import write_object
from tiny import make_config

import ddpm_jax
from ddpm_jax import novel_views
from ddpm_jax.data import open_dataset
from ddpm_jax.data.cond import cond_of, rows_of
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.novel_views import questions, views_of
from ddpm_jax.interop import stablehlo
from ddpm_jax.runs import open_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.quick_to_compile,
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    data = {
        "name": "solids",
        "flip": False,
        "image_size": 16,
        "objects_per_class": 2,
        "views_per_object": 4,
        "data_dir": str(tmp_path_factory.mktemp("data")),
    }
    return make_config(
        data=data,
        model__name="xunet",
        model__patch_size=2,
        model__attention_resolutions=(8,),
        train__num_steps=4,
        train__checkpoint_every=2,
        sample__sampler="ddim",
        sample__num_steps=2,
    )


@pytest.fixture(scope="module")
def root(config, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs") / "views"
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        result = ddpm_jax.train(config, root)  # the mark does not cover this fixture
    assert result.signal is None and (root / "samples" / "step_0000004_ema.png").exists()
    return root


def test_a_resumed_run_ends_bit_for_bit_like_the_whole_one(config, root, tmp_path):
    half = dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=2))
    ddpm_jax.train(half, tmp_path)
    ddpm_jax.train(config, tmp_path)
    whole, resumed = (open_run(path).params for path in (root, tmp_path))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), whole, resumed))
    first = open_run(root, 2).params
    assert not jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), whole, first))


def test_a_run_samples_with_and_without_views(config, root):
    run = open_run(root)
    dataset = open_dataset(config.data)
    cond = cond_of(config, dataset.test, rows_of(config, dataset)[1], np.arange(3))
    sample, params = ddpm_jax.load(root)
    images = sample(params, jax.random.key(0), 3, cond)
    assert images.shape == (3, 16, 16, 3) and np.isfinite(images).all()
    assert np.isfinite(sample(params, jax.random.key(0), 3)).all()  # the null condition
    several = {
        "views": cond["view"][:, None],
        "count": np.ones(3, np.int32),
        "poses": cond["pose"],
        "focals": cond["focal"],
        "centres": cond["centre"],
    }
    again = run.sample_fn(cond_at=novel_views.random_view)(params, jax.random.key(0), 3, several)
    np.testing.assert_allclose(again, images, atol=1e-5)


def files_in(done):
    assert done.returncode == 0, done.stderr
    return dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)


def test_a_turntable_begins_with_the_given_image(config, root):
    files = files_in(run_main("views", f"--workdir={root}", "--frames=3", "--object=1"))
    images = np.load(files["images"])["images"]
    dataset = open_dataset(config.data)
    own = views_of(dataset.test_views, np.unique(dataset.test_views.object)[1])
    heights = dataset.test_views.pose[own, 2, 3]
    assert len(own) == 4 and (np.diff(heights) >= 0).all()
    assert images.shape == (3, 16, 16, 3)
    np.testing.assert_array_equal(images[0], dataset.test.read(own[:1])[0][0])
    assert np.asarray(Image.open(files["grid"])).shape[1] > 3 * 64
    with Image.open(files["turntable"]) as gif:
        assert gif.n_frames == 3 and gif.size == (64, 64)


def test_an_image_file_with_its_pose_is_enough(root, tmp_path):
    write_object(tmp_path / "a", 2, side=8)
    file = tmp_path / "a" / "rgb" / "000001.png"
    flags = (f"--workdir={root}", "--frames=2", f"--image={file}")
    images = np.load(files_in(run_main("views", *flags))["images"])["images"]
    assert (images[0] == 10).all()
    (tmp_path / "a" / "pose" / "000001.txt").unlink()
    done = run_main("views", *flags)
    assert done.returncode == 2 and "pose/000001.txt cannot be read" in done.stderr


def test_an_evaluation_has_every_method_and_its_errors(config, root):
    flags = (f"--workdir={root}", "--evaluate", "--objects=3", "--targets=2")
    files = files_in(run_main("views", *flags, f"--regression={root}"))
    report = json.loads(pathlib.Path(files["figures"]).read_text())
    methods = {name: value for name, value in report.items() if isinstance(value, dict)}
    del methods["settings"]
    assert list(methods) == [
        "given view copied",
        "mean training image",
        "regression",
        "without stochastic conditioning",
        "with stochastic conditioning",
    ]
    for found in methods.values():
        assert found["psnr"]["value"] > 0 and found["psnr"]["error"] > 0
        assert -1 < found["ssim"]["value"] < 1
    images = np.load(files["images"])["images"]
    assert images.shape == (5, 3, 2, 16, 16, 3)
    # the first drawn view has only one view to be drawn from; later ones have two
    np.testing.assert_array_equal(images[3, :, 0], images[4, :, 0])
    asked = questions(open_dataset(config.data), 3, 2)
    np.testing.assert_array_equal(images[0, :, 1], asked.given)
    error = np.square(asked.given[:, None] / 255.0 - asked.asked / 255.0).mean(axis=(2, 3, 4))
    expected = (-10 * np.log10(error)).mean(axis=1)
    assert methods["given view copied"]["psnr"]["value"] == pytest.approx(expected.mean())
    with pytest.raises(UserError, match="has 4 views, but one given and 4 asked are needed"):
        questions(open_dataset(config.data), 3, 4)


def test_an_evaluation_fits_fields_to_the_views_of_each_method(root):
    flags = f"--workdir={root}", "--evaluate", "--consistency", "--objects=2"
    done = run_main("views", *flags, "--targets=2")
    assert done.returncode == 2 and "at least 4 views with 3 channels" in done.stderr
    files = files_in(run_main("views", *flags, "--targets=3"))
    found = json.loads(pathlib.Path(files["figures"]).read_text())["consistency"]
    methods = ["without stochastic conditioning", "with stochastic conditioning"]
    assert list(found) == ["true views", *methods]
    true, *drawn = (each["value"] for each in found.values())  # the run's views are still noise
    assert true > max(drawn) + 5 and all(each["error"] > 0 for each in found.values())


def test_other_mains_say_what_they_cannot_do_with_views(root, tmp_path):
    done = run_main("sample", f"--workdir={root}", "--n=1", "--guidance=2")
    assert done.returncode == 2 and "use experiments.views" in done.stderr
    pytest.importorskip("flatbuffers")
    with pytest.raises(UserError, match="novel views .* cannot be exported yet"):
        stablehlo.to_stablehlo(open_run(root), tmp_path / "exported")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--object=99"], "--object must be in 0..31, found 99"),
        (["--view=4"], "--view must be in 0..3, found 4"),
        (["--evaluate", "--frames=3"], "--frames=3 is given, but --evaluate does not use it"),
        (["--targets=3"], "a turntable (without --evaluate) does not use it"),
    ],
)
def test_flags_that_cannot_be_are_refused(root, flags, words):
    done = run_main("views", f"--workdir={root}", *flags)
    assert done.returncode == 2 and words in done.stderr
