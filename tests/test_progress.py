"""What the long mains say while they work: a live line, or plain lines in a log."""

import io
import logging

import numpy as np
import pytest
from mains import run as run_main
from rich.console import Console
from test_guided_runs import config_of, make_run
from test_quality import BLOCKS, run_and_data  # noqa: F401

from ddpm_jax.evaluation import likelihoods
from ddpm_jax.evaluation import samples as quality
from experiments import progress

pytestmark = [
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
    pytest.mark.quick_to_compile,
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("progress") / "run"
    make_run(root, config_of())
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 1), np.uint8)
    np.savez(root.parent / "images.npz", images=images)
    return root


def lines_of(name, *flags):
    done = run_main(name, *flags)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines and all(line.startswith("INFO: ") for line in lines), lines
    return [line.removeprefix("INFO: ") for line in lines]


def test_sample_says_how_far_it_is(root):
    lines = lines_of("sample", f"--workdir={root}", "--n=40", "--num_steps=2")
    assert lines[0] == "drawing images by ancestral, 2 steps: 0/40"
    assert lines[-1] == "drawing images by ancestral, 2 steps: 40/40"


@pytest.mark.slow
def test_edit_says_how_far_it_is_and_its_chunks_change_nothing(root, tmp_path):
    flags = (f"--workdir={root}", "--edit=inpaint", f"--images={root.parent / 'images.npz'}")
    flags += ("--num_resamples=1", "--num_steps=2")
    lines = lines_of("edit", *flags, "--draws=20", f"--out={tmp_path / 'chunks'}")
    assert (lines[0], lines[-1]) == ("inpainting: 0/40", "inpainting: 40/40")  # of 32 and of 8
    lines_of("edit", *flags, "--draws=2", f"--out={tmp_path / 'whole'}")
    many, few = (np.load(tmp_path / f"{name}.npz")["images"] for name in ("chunks", "whole"))
    assert many.shape[1] == 20
    assert np.abs(many[:, :2].astype(int) - few).max() <= 1
    assert np.any(many[:, 19] != many[:, 0])


@pytest.mark.slow
def test_figures_say_how_far_they_are(root, tmp_path):
    flags = ("--config=experiments/digits.py", "--config.process.num_timesteps=40")
    lines = lines_of("figures", *flags, f"--out={tmp_path}")
    assert (lines[0], lines[-1]) == ("drawing figures: 0/3", "drawing figures: 3/3")


@pytest.mark.slow
def test_an_evaluation_reports_each_part_from_its_start_to_its_end(run_and_data):  # noqa: F811
    run, dataset, _ = run_and_data
    reports = []

    def report(what, done, total):
        reports.append((what, done, total))

    quality.evaluate(run, dataset, BLOCKS, n=10, num_seeds=2, progress=report)
    likelihoods.evaluate(
        run, dataset, "train", variance="fixed_large", num_images=5, num_terms=2, progress=report
    )
    parts = {}
    for what, done, total in reports:
        parts.setdefault(what, []).append(done)
        assert done <= total
    assert parts["drawing samples by ancestral"] == [0, 10, 20]
    assert parts["variational bound, train images"] == [0, 5]
    assert all(done[0] == 0 and len(done) > 1 for done in parts.values()), parts
    whats = [what for what, _, _ in reports]
    assert sorted(set(whats), key=whats.index) == list(parts)  # one part after the other


def test_the_time_left_is_measured_without_the_compilation(caplog, monkeypatch):
    clock = iter([0, 100, 104, 110, 111, 112, 112, 113])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    caplog.set_level(logging.INFO, "ddpm_jax.progress")
    with progress.ProgressLine(Console(file=io.StringIO())) as line:
        for done in (0, 16, 32, 48, 56, 64):
            line("drawing", done, 64)
        line("measuring", 0, 1)
        line("measuring", 1, 1)
    assert caplog.messages == [
        "drawing: 0/64",
        "drawing: 16/64, at most 0:05:00 left",  # with the compilation
        "drawing: 48/64, 0:00:05 left",  # not the one 4 s after the last, nor the next
        "drawing: 64/64",
        "measuring: started",
        "measuring: done",
    ]


def test_a_terminal_gets_a_live_line_and_no_log(caplog):
    caplog.set_level(logging.INFO, "ddpm_jax.progress")
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100)
    with progress.ProgressLine(console) as line:
        line("drawing", 0, 64)
        line("drawing", 16, 64)
        line._live.refresh()
    assert "drawing" in file.getvalue() and "16/64" in file.getvalue()
    assert not caplog.messages


def test_chunks_are_a_few_and_no_larger_than_fits():
    assert progress.chunk_size(64, 256) == 32
    assert progress.chunk_size(1000, 256) == 125
    assert progress.chunk_size(50_000, 256) == 256
    assert progress.chunk_size(3, 2) == 2
