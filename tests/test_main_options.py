"""The options of the mains: what cannot be is refused in one line, before the work."""

import dataclasses
import os

import numpy as np
import pytest
from mains import ROOT
from mains import run as run_main
from test_guided_runs import FACTS, config_of, make_run
from test_quality import run_and_data  # noqa: F401

from ddpm_jax.data import open_dataset
from ddpm_jax.figures import plots
from ddpm_jax.runs import workdir
from ddpm_jax.runtime import rows

pytestmark = [
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
    pytest.mark.quick_to_compile,
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A run of three classes whose weights are random, and images to edit."""
    root = tmp_path_factory.mktemp("options") / "run"
    make_run(root, config_of())
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1), np.uint8)
    np.savez(root.parent / "images.npz", images=images)
    return root


def refusal(name, *flags):
    """Return the one line with which a main refuses its flags."""
    done = run_main(name, *flags)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("INFO: ")]
    assert done.returncode == 2 and len(lines) == 1, done
    assert done.stdout == ""
    return lines[0]


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63])
@pytest.mark.parametrize("name", ["sample", "edit", "figures"])
def test_a_seed_that_would_alias_is_refused(root, name, seed):
    flags = {"edit": ["--edit=sdedit"], "figures": ["--config=experiments/digits.py"]}
    line = refusal(name, f"--workdir={root}", f"--seed={seed}", *flags.get(name, []))
    assert "seed" in line and "[0, 4294967295]" in line


@pytest.fixture
def no_work(monkeypatch):
    """All images that are sampled, edited or measured pass through `rows.pad`: refuse to start."""

    def fail(*args, **kwargs):
        raise AssertionError("the work has begun")

    monkeypatch.setattr(rows, "pad", fail)
    monkeypatch.setattr(plots, "plot_schedules", fail)


@pytest.mark.parametrize(
    ("name", "flags", "words"),
    [
        ("sample", ["--num_steps=0"], "num_steps=0: 0 is not a positive integer"),
        ("edit", ["--edit=sdedit", "--num_steps=0"], "num_steps=0: 0 is not a positive integer"),
        ("edit", ["--edit=inpaint", "--mask=right"], "--mask=right is not one of left, center"),
        ("edit", ["--edit=sdedit", "--mask=center"], "--edit=sdedit does not use it; leave it out"),
        ("edit", ["--edit=inpaint", "--depth=2"], "--edit=inpaint does not use it; leave it out"),
        ("edit", ["--edit=inpaint", "--num_resamples=0"], "must be at least 1, found 0"),
        ("evaluate", ["--sampler=dpm"], "unknown sample.sampler 'dpm'; allowed: ancestral, ddim"),
        ("evaluate", ["--timesteps=trail"], "unknown sample.timesteps 'trail'; did you mean"),
        ("evaluate", ["--num_steps=9"], "num_steps"),
        ("evaluate", ["--guidance=-2"], "guidance"),
        ("evaluate", ["--variance=large"], "unknown variance 'large'; did you mean"),
        ("evaluate", ["--variance=learned_range"], "model.learn_variance is False"),
        ("evaluate", ["--features=none", "--sampler=ddim"], "--features=none, which draws no"),
        ("evaluate", ["--bound_images=0", "--bound_terms=3"], "--bound_images=0 does not use it"),
        ("evaluate", ["--features=inception", "--inception_weights=none.pth"], "none.pth"),
    ],
)
def test_an_option_that_cannot_be_is_refused_before_the_work(
    root,
    run_and_data,  # noqa: F811
    no_work,
    name,
    flags,
    words,
):
    images = [f"--images={root.parent / 'images.npz'}"] if name == "edit" else []
    root = run_and_data[2] if name == "evaluate" else root
    line = refusal(name, f"--workdir={root}", *images, *flags)
    assert words in line, line


@pytest.mark.parametrize("name", ["sample", "edit", "figures"])
def test_an_out_that_cannot_be_written_is_refused_before_the_work(root, no_work, tmp_path, name):
    (tmp_path / "file").touch()
    more = {"edit": ["--edit=sdedit", "--n=1", f"--images={root.parent / 'images.npz'}"]}
    more["figures"] = ["--config=experiments/digits.py"]
    out = f"--out={tmp_path / 'file' / 'x'}"
    line = refusal(name, f"--workdir={root}", out, *more.get(name, []))
    assert line.startswith(f"error: {out} cannot be written (")
    assert "ot a directory); choose another path" in line


def test_an_evaluation_that_cannot_be_written_is_refused_before_the_work(run_and_data, no_work):  # noqa: F811
    root = run_and_data[2]
    (root / "evaluate.json").mkdir()
    try:
        assert "evaluate.json is a directory" in refusal("evaluate", f"--workdir={root}")
    finally:
        (root / "evaluate.json").rmdir()


@pytest.mark.slow
def test_two_evaluations_of_other_settings_are_both_kept_and_a_second_overwrites_its_own(
    run_and_data,  # noqa: F811
):
    root = run_and_data[2]
    flags = (f"--workdir={root}", "--features=none", "--bound_images=2")
    for terms in (1, 2, 2):
        done = run_main("evaluate", *flags, f"--bound_terms={terms}")
        assert done.returncode == 0, done.stderr
        assert str(root / "evaluate.json") in done.stdout
    names = {path.name for path in (root / "evaluations").iterdir()}
    start = "step3_features-none_bound_images-2_bound_terms"
    pictures = ("_progressive.png", "_rate_distortion.png")
    assert names == {f"{start}-{n}{end}" for n in (1, 2) for end in (".json", *pictures)}
    newest = (root / "evaluate.json").read_bytes()
    assert newest == (root / "evaluations" / f"{start}-2.json").read_bytes()


def test_paths_are_printed_whole(root, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    workdir = os.path.relpath(root, ROOT)  # the mains run there
    done = run_main("sample", f"--workdir={workdir}", "--n=1", "--num_steps=2")
    assert done.returncode == 0, done.stderr
    paths = [line.partition(": ")[2] for line in done.stdout.splitlines() if ": " in line]
    assert len(paths) == 2 and all(os.path.isabs(p) and os.path.exists(p) for p in paths), paths


def run_on_arrays(root, digest, **model):
    """A run on an array of images, with this digest of them; None is that of the images now."""
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1), np.uint8)
    np.savez(root.parent / "set.npz", images=images, labels=np.arange(40) % 3)
    config = config_of(data=dict(name="array", path=str(root.parent / "set.npz")), model=model)
    make_run(root, config)
    if digest is None:
        digest = open_dataset(config.data).digest
    workdir.write_facts(workdir.WorkDir(root), dataclasses.replace(FACTS, digest=digest))


@pytest.mark.parametrize(
    ("digest", "warns"),
    [("7 images, sha256 0f", True), (None, False), ("", False)],  # "": a run of an old version
)
def test_a_set_that_has_changed_since_the_training_is_one_line(tmp_path, digest, warns):
    run_on_arrays(tmp_path / "run", digest)
    flags = ("--features=none", "--bound_images=0")
    done = run_main("evaluate", f"--workdir={tmp_path / 'run'}", *flags)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    assert len(lines) == warns
    if warns:
        words = f"changed since {tmp_path / 'run'} was trained: {digest} then, 40 images"
        assert words in lines[0]


@pytest.mark.parametrize(
    ("name", "flags"), [("edit", ("--edit=sdedit", "--depth=1")), ("sample", ("--num_steps=1",))]
)
def test_a_main_that_reads_images_of_a_changed_set_says_so(tmp_path, name, flags):
    run_on_arrays(tmp_path / "run", "7 images", super_resolution=2 * (name == "sample"))
    done = run_main(name, f"--workdir={tmp_path / 'run'}", "--n=1", *flags)
    assert done.returncode == 0 and done.stderr.count("the data have changed since") == 1, done
