"""A classifier's training: the parts of `training.parts.classifier_parts` in the one loop."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from mains import run as run_main
from test_guided_runs import config_of

from ddpm_jax import build
from ddpm_jax.errors import UserError
from ddpm_jax.runs import metrics
from ddpm_jax.runs.checkpoint import restore_ema
from ddpm_jax.runs.workdir import open_for_reading
from ddpm_jax.training.loop import train
from ddpm_jax.training.parts import build_parts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.quick_to_compile,
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
]
JUDGE = dict(name="classifier", class_conditional=False)


def digits(num_steps, **train):
    return config_of(
        data=dict(name="digits", flip=False),
        process=dict(num_timesteps=10),
        model=dict(JUDGE, channels=16, channel_multipliers=(1, 2, 2), num_groups=4),
        optim=dict(learning_rate=1e-2, warmup_steps=5, ema_decay=0.9),
        train=dict(num_steps=num_steps, batch_size=32, log_every=20, checkpoint_every=20, **train),
        mesh=dict(data=1),
    )


def test_training_learns_resumes_bit_for_bit_and_reports_accuracy_by_quarter(tmp_path, capsys):
    _, signal, accuracy = train(digits(80), tmp_path / "whole")
    assert signal is None
    assert list(accuracy) == [f"accuracy_t_quartile_{i}" for i in (1, 2, 3, 4)]
    assert accuracy["accuracy_t_quartile_1"] > 0.4  # chance is 0.1
    assert accuracy["accuracy_t_quartile_1"] > accuracy["accuracy_t_quartile_4"] + 0.1
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "80")  # as if killed after step 60
    capsys.readouterr()
    again = train(digits(80), tmp_path / "parts").figures
    said = capsys.readouterr().out
    assert "resumed at step 60" in said and "held-out accuracy_t_quartile_1: 0." in said
    assert again == accuracy
    assert train(digits(80), tmp_path / "parts").figures == accuracy  # done: from its log
    said = capsys.readouterr().out
    assert "compiled" not in said and "held-out accuracy_t_quartile_1: 0." in said
    facts = (8, 8, 1)
    model = build.classifier(digits(80).model, facts, 10)
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), abstract
    )
    states = [
        restore_ema(open_for_reading(tmp_path / name).checkpoints, abstract)[1]
        for name in ("whole", "parts")
    ]
    jax.tree.map(np.testing.assert_array_equal, *states)
    start = model.init(jax.random.split(jax.random.key(0), 3)[0])
    assert np.abs(states[0]["logits"]["kernel"] - start["logits"]["kernel"]).max() > 0.01


def small(mesh, **train):
    return config_of(
        data=dict(name="digits", flip=False),
        model=dict(JUDGE, channels=8, num_groups=4, dropout=0.1),
        optim=dict(learning_rate=1e-2, warmup_steps=1),
        train=dict(num_steps=4, batch_size=16, log_every=2, **train),
        eval=dict(every=2, num_examples=40),
        mesh=mesh,
    )


def test_a_sharded_classifier_with_fused_steps_takes_the_steps_of_a_whole_one(tmp_path):
    whole = train(small(dict(data=1)), tmp_path / "whole")
    cut = train(small(dict(data=2, fsdp=4), steps_per_call=2), tmp_path / "cut")
    for a, b in zip(jax.tree.leaves(whole.state), jax.tree.leaves(cut.state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)
    kernel = cut.state.params["middle_0"]["conv_1"]["kernel"]
    assert kernel.shape[-1] == 4 * kernel.addressable_shards[0].data.shape[-1]
    rows = [metrics.read(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut")]
    for found in rows:
        # The logits start at 0, and the first rate is 0 too. A hidden label would cost nothing.
        assert found[0]["step"] == 2 and found[0]["loss"] == pytest.approx(np.log(10.0), rel=1e-4)
        judged = [row["step"] for row in found if "accuracy_t_quartile_1" in row]
        assert judged == [2, 4]  # while training; at the end not once more
        assert found[-1].items() >= (whole if found is rows[0] else cut).figures.items()
    assert cut.figures == pytest.approx(whole.figures, abs=0.051)  # two of the 40 images


def test_what_a_classifier_has_no_use_for_is_refused(tmp_path):
    config = small(dict(data=1))

    def changed(section, **fields):
        section_fields = dataclasses.replace(getattr(config, section), **fields)
        return dataclasses.replace(config, **{section: section_fields})

    for wrong, message in (
        (changed("eval", samples_every=2), "eval.samples_every is 2, but the classifier draws no"),
        (changed("process", schedule="learned"), "process.schedule is learned, so its chain is"),
        (changed("model", name="clasifier"), "model.name 'clasifier'; did you mean 'classifier'"),
    ):
        with pytest.raises(UserError, match=message):
            train(wrong, tmp_path / "run")
    with pytest.raises(UserError, match="data.text is True, but a classifier takes no text"):
        build_parts(changed("data", text=True), (8, 8, 1), 10)
    assert not (tmp_path / "run").exists()


def test_the_classifiers_command_refuses_a_denoiser(tmp_path):
    root = tmp_path / "run"
    done = run_main("train_classifier", "--config=experiments/digits.py", f"--workdir={root}")
    assert done.returncode == 2 and not root.exists()
    assert done.stderr == (
        "error: model.name is 'unet', but a classifier is needed here; "
        "train denoisers by experiments.train\n"
    )
