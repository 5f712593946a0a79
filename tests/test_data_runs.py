"""Runs on one's own images: arrays of the program."""

import numpy as np
import pytest
from tiny import SMALL

import ddpm_jax

pytestmark = [
    pytest.mark.slow,
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
    pytest.mark.quick_to_compile,
]

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
LABELS = np.arange(40) % 3
CONFIG = {name: dict(fields) for name, fields in SMALL.items() if name != "data"}
CONFIG["model"]["class_conditional"] = True
CONFIG["train"]["num_steps"] = 2
CONFIG["eval"]["every"] = 0


def test_a_run_is_trained_on_arrays_of_the_program(tmp_path, capsys):
    result = ddpm_jax.train(CONFIG, tmp_path / "run", images=IMAGES, labels=LABELS)
    assert int(result.state.step) == 2
    said = capsys.readouterr().out
    assert "data: array, 38 training images, 2 held out, 8x8x1, 3 classes: 0, 1, 2\n" in said
    _, params = ddpm_jax.load(tmp_path / "run")
    assert params
