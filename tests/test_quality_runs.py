"""The evaluation of a run from the command line, the classifier that judges, and the ODE's bits."""

import json

import numpy as np
import pytest
from mains import run as run_main
from test_quality import run_and_data  # noqa: F401

from ddpm_jax.evaluation import likelihoods as coding
from ddpm_jax.evaluation import references

pytestmark = [
    pytest.mark.slow,
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
    pytest.mark.quick_to_compile,
]

PICTURES = ("nearest_training_images", "rate_distortion", "progressive")


def test_the_classifier_of_a_set_is_trained_once_and_knows_it(run_and_data, monkeypatch):  # noqa: F811
    run, dataset, _ = run_and_data
    network, accuracy = references.classifier(run.config.data, dataset)
    assert accuracy > 0.95
    monkeypatch.setattr(references.small_classifier, "train", None)  # not called again
    again, same = references.classifier(run.config.data, dataset)
    assert (again.digest, same) == (network.digest, accuracy)


def test_the_command_prints_a_table_and_writes_it(run_and_data):  # noqa: F811
    _, _, root = run_and_data
    flag = f"--workdir={root}"
    sizes = ["--n=100", "--seeds=2", "--num_steps=3", "--bound_images=8", "--bound_terms=3"]
    done = run_main("evaluate", flag, *sizes)
    assert done.returncode == 0, done.stderr
    table = done.stdout
    assert "fd100_train_min" in table and "dpm_solver_pp_2m, 3 steps" in table
    written = json.loads((root / "evaluate.json").read_text())
    kept = "step3_n-100_seeds-2_num_steps-3_bound_images-8_bound_terms-3"
    assert json.loads((root / "evaluations" / f"{kept}.json").read_text()) == written
    assert str(root / "evaluations" / f"{kept}.json") in table
    assert written["settings"]["num_steps"] == 3
    assert written["checkpoint"] == 3 and "2 x 100" in written["samples"]
    found = {row["name"]: row for row in written["rows"]}
    assert found["fd100_train"]["value"] > 0 and found["fd100_train"]["n"] == 100
    assert found["cs100"]["value"] is None and "1000 images" in found["cs100"]["note"]
    assert found["bits_per_dim_test"]["n"] == 8 and found["bits_per_dim_test"]["value"] > 0
    assert len(written["rate_distortion"]["train"]) == 3
    pictures = {name: root / "samples" / f"{name}.png" for name in PICTURES}
    copies = {name: root / "evaluations" / f"{kept}_{name}.png" for name in PICTURES}
    for name in PICTURES:
        assert f": {pictures[name]}\n" in table and f": {copies[name]}\n" in table
        assert copies[name].read_bytes() == pictures[name].read_bytes()

    # Other settings draw other pictures, and leave the copies alone.
    before = {name: path.read_bytes() for name, path in copies.items()}
    done = run_main("evaluate", flag, "--features=none", "--bound_images=4", "--bound_terms=2")
    assert done.returncode == 0, done.stderr
    assert pictures["rate_distortion"].read_bytes() != before["rate_distortion"]
    assert {name: path.read_bytes() for name, path in copies.items()} == before
    others = root / "evaluations" / "step3_features-none_bound_images-4_bound_terms-2"
    assert json.loads(others.with_suffix(".json").read_text())["checkpoint"] == 3
    assert others.with_name(f"{others.name}_rate_distortion.png").exists()
    assert not others.with_name(f"{others.name}_nearest_training_images.png").exists()


def test_the_odes_likelihood_is_a_row(run_and_data):  # noqa: F811
    run, dataset, _ = run_and_data
    row = coding.evaluate_by_ode(run, dataset, "test", num_images=2, tolerance=1e-2)
    assert row.name == "bits_per_dim_ode_test" and row.n == 2 and np.isfinite(row.value)
    assert "tolerance 0.01" in row.note


def test_a_sampler_that_is_none_is_one_line(run_and_data):  # noqa: F811
    _, _, root = run_and_data
    refused = run_main("evaluate", f"--workdir={root}", "--sampler=dimm")
    assert refused.returncode == 2
    assert "error: unknown sample.sampler 'dimm'; did you mean 'ddim'?" in refused.stderr
