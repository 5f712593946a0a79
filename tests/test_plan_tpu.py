"""Plans for TPUs, by their own compiler: facts of the compiled programs that must not change.

They need libtpu: pip install 'jax[tpu]'. No TPU is needed.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from mains import ROOT
from tiny import FLAGS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu"),
]


def plan(path, *flags):
    """Run experiments.plan; return its numbers."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "experiments.plan", *flags, f"--json={path}"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done
    assert done.stderr == ""  # libtpu is silent
    assert "images/s" in done.stdout and "Nothing was run" in done.stdout
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The numbers of a tiny network: on Colab's TPU, and on four chips with fsdp 1 and 2."""
    root, rows = tmp_path_factory.mktemp("plans"), []
    tiny = ["--config=experiments/digits.py", *FLAGS, "--config.model.dtype=bfloat16"]
    tiny += ["--config.train.steps_per_call=3", "--config.train.batch_size=32"]
    for i, flags in enumerate(
        (
            ["--target=v5e:1x1"],
            ["--target=v5e:2x2", "--nosampler"],
            ["--target=v5e:2x2", "--nosampler", "--config.mesh.fsdp=2"],
        )
    ):
        rows += plan(root / f"{i}.json", *tiny, *flags)
    return rows


def test_the_notebook_of_cifar10_fits_colabs_tpu(tmp_path):
    """The settings of the notebook, with a tiny network on 8x8 images: both compile faster."""
    notebook = json.loads((ROOT / "colab" / "cifar10_tpu.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"]]
    cell = next(cell for cell in cells if "settings = " in cell)
    scope: dict = {}
    exec(cell[: cell.index("if SMOKE:")], scope)
    settings = scope["settings"]
    settings.data.update(name="digits", flip=False)
    settings.model.update(channels=8, channel_multipliers=(1,), num_res_blocks=1, num_groups=4)
    settings.model.attention_resolutions = ()
    settings.sample.chunk_size = 8
    path = tmp_path / "config.json"
    path.write_text(json.dumps(settings.to_dict()))
    (row,) = plan(tmp_path / "plan.json", f"--config={path}", "--target=v5e:1x1")
    assert row["problem"] == "" and row["train"]["steps"] == 10 and row["sampler"]["steps"] == 25
    assert row["train"]["products"]["bf16"] > 4 * row["train"]["products"].get("f32", 0)
    assert row["train"]["host"] == row["sampler"]["host"] == 0


def test_it_fits_and_the_state_is_donated(found):
    for row in found:
        assert row["problem"] == ""
        held = row["train"]["memory"]["state"]
        assert 0.9 * held < row["train"]["donated"] <= held  # the rest is the batch
        # the parameters, their average and two moments; the TPU pads small arrays
        assert held >= 16 * row["parameters"] / row["mesh"]["fsdp"]
    _, whole, sharded = (row["train"]["memory"]["state"] for row in found)
    assert sharded < 0.8 * whole


def test_the_network_computes_in_bfloat16(found):
    for row in found:
        products = row["train"]["products"]
        assert products["bf16"] > 4 * products.get("f32", 0)  # the last convolution is float32


def test_nothing_waits_for_the_host(found):
    assert [row["train"]["host"] for row in found] == [0, 0, 0]
    assert found[0]["sampler"]["host"] == 0


def test_chips_send_one_gradient(found):
    alone, whole, sharded = (row["train"]["messages"] for row in found)
    assert alone == found[0]["sampler"]["messages"] == {}
    count, size = whole["all-reduce"]
    assert set(whole) == {"all-reduce"} and count <= 3 * 3  # with small sums, in each of 3 steps
    assert 3 * 2 * found[1]["parameters"] < size < 3 * 4.5 * found[1]["parameters"]
    assert sharded["all-gather"][0] > 0


def test_the_steps_of_a_call_and_of_a_sampler_are_counted(found):
    row = found[0]
    assert row["train"]["steps"] == 3 and row["train"]["images"] == 3 * 32
    assert row["train"]["flops"] == pytest.approx(4 * found[1]["train"]["flops"], rel=0.2)
    assert row["sampler"]["steps"] == 4 and row["sampler"]["kernels"] > 4 * 50
