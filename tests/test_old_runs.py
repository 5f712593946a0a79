"""A run that version 0.1.0 trained is loaded, sampled, evaluated and resumed.

The fixture is the work directory of 4 steps of a tiny network on the digits, with T = 20. The
numbers that are expected here are those of version 0.1.0 itself.
"""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax import data
from ddpm_jax.config import from_dict
from ddpm_jax.evaluation import likelihoods
from ddpm_jax.runs import metrics, open_run
from ddpm_jax.training.loop import train

FIXTURE = Path(__file__).parent / "fixtures" / "digits_run_0_1_0.zip"

pytestmark = [
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
    pytest.mark.quick_to_compile,
]


@pytest.fixture
def root(tmp_path):
    """The work directory as it was written, its config with every key of that version."""
    shutil.unpack_archive(FIXTURE, tmp_path)
    return tmp_path / "digits"


def test_it_is_loaded_and_sampled(root):
    sample, params = ddpm_jax.load(root)
    images = np.asarray(sample(params, jax.random.key(0), 4))
    assert images.shape == (4, 8, 8, 1)
    row = [0.78044, 0.24614, -0.82675, -0.09452, 0.48122, 0.89439, -0.98198, 0.80925]
    np.testing.assert_allclose(images[0, 0, :, 0], row, atol=1e-3)
    sums = [0.3000, 0.7693, -10.6137, -5.9839]
    np.testing.assert_allclose(images.sum(axis=(1, 2, 3)), sums, atol=0.01)


@pytest.mark.slow
def test_it_is_evaluated(root):
    run = open_run(root)
    assert run.step == 4
    dataset = data.open_dataset(run.config.data)
    rows = likelihoods.evaluate(
        run, dataset, "test", variance="fixed_large", num_images=8, num_terms=20
    ).rows
    found = {row.name: row.value for row in rows}
    expected = {"bits_per_dim_test": 6.2092, "L_0_test": 3.2096, "rmse_test": 9.1455}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_it_is_resumed_with_more_steps(root):
    sections = json.loads((root / "config.json").read_text())
    sections["train"]["num_steps"] = 6
    before = metrics.read(root / "metrics.jsonl")
    state = train(from_dict(sections), root).state
    assert int(state.step) == 6
    rows = metrics.read(root / "metrics.jsonl")
    assert rows[: len(before)] == before and rows[-1]["step"] == 6
    assert rows[-1]["loss"] == pytest.approx(0.946137, abs=1e-4)
    assert rows[-1]["grad_norm"] == pytest.approx(1.568569, abs=1e-3)
    assert (root / "checkpoints" / "6").is_dir()
