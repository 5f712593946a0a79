"""The classifier of noisy images: its functions, its network, its run, and guidance by it."""

import dataclasses
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from mains import ROOT
from mains import run as run_main
from test_guided_runs import FACTS, config_of, make_run

import ddpm_jax
from ddpm_jax import build, guidance
from ddpm_jax.build import guidance as guides
from ddpm_jax.errors import UserError
from ddpm_jax.models import Classifier, as_model
from ddpm_jax.noisy_classifier import is_right, label_log_prob, label_loss
from ddpm_jax.runs import metrics
from ddpm_jax.runs.checkpoint import restore_ema
from ddpm_jax.runs.workdir import open_for_reading
from ddpm_jax.training.loop import train
from ddpm_jax.training.parts import build_parts

PROCESS = ddpm_jax.make_process(oracles.betas("linear", 1000))
X = np.random.default_rng(0).normal(size=(4, 2, 3, 1)).astype(np.float32)
LABELS = np.array([0, 2, 1, 2], np.int32)
TIMES = np.array([1, 10, 500, 1000], np.int32)
loose = pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks")
pytestmark = pytest.mark.quick_to_compile


def network(params, x_t, t, cond, *, train, key):
    """Logits [B, 3]: the first pixels, cooled by t."""
    assert cond is None
    return x_t[:, 0, :, 0] * (1.0 - t.astype(jnp.float32) / 1000.0)[:, None] * 2.0


def logits(x, t):
    return x[:, 0, :, 0] * (1 - (t[:, None] - 1) / 1000) * 2.0


def test_label_log_prob_is_the_softmax_at_t_minus_1_and_silent_without_a_label():
    wanted = logits(X.astype(np.float64), TIMES)
    wanted = wanted - np.log(np.exp(wanted).sum(axis=1, keepdims=True))
    found = label_log_prob(PROCESS, network, None, X, TIMES, LABELS)
    np.testing.assert_allclose(found, wanted[np.arange(4), LABELS], atol=1e-6)
    mixed = np.where([True, False, True, False], LABELS, -1).astype(np.int32)
    found = label_log_prob(PROCESS, network, None, X, TIMES, mixed)
    np.testing.assert_array_equal(found[1::2], 0.0)
    assert np.all(found[::2] < 0)
    loss = label_loss(PROCESS, network, None, X, TIMES, 0 * X, LABELS)
    alpha = oracles.chain_moments("linear", 1000)[0][TIMES][:, None, None, None]
    wanted = logits(alpha * X, TIMES)
    wanted = np.log(np.exp(wanted).sum(axis=1)) - wanted[np.arange(4), LABELS]
    np.testing.assert_allclose(loss, wanted, atol=1e-5)


def test_is_right_where_the_likeliest_class_is_the_label():
    t = np.ones(4, np.int32)
    best = X[:, 0, :, 0].argmax(axis=1)
    right = is_right(PROCESS, network, None, X, t, 0 * X, best)
    wrong = is_right(PROCESS, network, None, X, t, 0 * X, (best + 1) % 3)
    assert np.all(right) and not np.any(wrong)


SETTINGS = dict(channels=8, channel_multipliers=(1, 2), num_groups=4, attention_resolutions=(4,))


@loose
def test_the_network_starts_without_an_opinion_and_depends_on_image_and_time():
    module = Classifier(num_classes=5, num_res_blocks=1, dropout=0.5, **SETTINGS)
    model = as_model(module, (8, 4, 3))
    params = model.init(jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(2, 8, 4, 3)).astype(np.float32)
    t = np.array([3, 900], np.int32)
    apply = jax.jit(model.apply, static_argnames="train")
    start = apply(params, x, t)
    assert start.shape == (2, 5) and start.dtype == jnp.float32
    np.testing.assert_array_equal(start, 0.0)
    assert params["logits"]["kernel"].shape == (16, 5)
    assert "down_1_0_attention" in params and "down_0_0_attention" not in params

    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda p: p + 0.3 * rng.normal(size=p.shape).astype(np.float32), params)
    moved = apply(params, x, t)
    assert np.abs(apply(params, x[::-1], t) - moved).min() > 1e-4
    assert np.abs(apply(params, x, t[::-1]) - moved).max() > 1e-3
    key = jax.random.key(0)
    dropped = apply(params, x, t, None, train=True, key=key)
    assert np.abs(dropped - moved).max() > 1e-3
    half = Classifier(num_classes=5, num_res_blocks=1, dtype=jnp.bfloat16, remat=True, **SETTINGS)
    low = jax.jit(as_model(half, (8, 4, 3)).apply)(params, x, t)
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, moved, atol=0.1)


# Guidance by it


JUDGE = dict(model=dict(name="classifier", class_conditional=False))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A model without classes and a classifier, of random weights."""
    root = tmp_path_factory.mktemp("runs")
    params = make_run(root / "model", config_of(model=dict(class_conditional=False)))
    judge = make_run(root / "judge", config_of(**JUDGE), seed=1)
    return root, params, judge


@loose
def test_load_guides_by_the_classifier(both):
    root, params, judge = both
    sample, loaded = ddpm_jax.load(root / "model", classifier=root / "judge", classifier_scale=4.0)
    config = config_of(model=dict(class_conditional=False))
    process = build.process(config.process)
    apply_judge = build.classifier(config_of(**JUDGE).model, FACTS.image_shape, 3).apply
    labels = np.array([0, 1, 2], np.int32)

    def guide(process, denoiser, params, cond):
        def log_prob(x_t, t):
            all_logits = apply_judge(judge, x_t, jnp.broadcast_to(t - 1, x_t.shape[:1]))
            return (jax.nn.log_softmax(all_logits) * jax.nn.one_hot(cond["label"], 3)).sum(-1)

        return guidance.classifier(process, denoiser(params, None), log_prob, 4.0)

    by_hand = ddpm_jax.make_sample(
        process,
        build.model(config.model, FACTS.image_shape, 3).apply,
        shape=FACTS.image_shape,
        sampler=ddpm_jax.samplers.ancestral(process),
        clip_x_0=False,
        guidance=guide,
    )
    key, cond = jax.random.key(0), {"label": labels}
    images = sample(loaded, key, 3, cond)
    np.testing.assert_allclose(images, by_hand(params, key, 3, cond), rtol=1e-4, atol=1e-4)
    plain, plain_params = ddpm_jax.load(root / "model")
    unguided = plain(plain_params, key, 3)
    assert np.abs(images - unguided).max() > 0.01
    off = sample(loaded, key, 3, {"label": np.full(3, -1, np.int32)})
    np.testing.assert_allclose(off, unguided, atol=1e-5)
    with pytest.raises(UserError, match="classifier guidance needs cond={'label': labels}"):
        sample(loaded, key, 3)


@loose
def test_classifier_guidance_comes_on_top_of_classifier_free():
    config = config_of(sample=dict(guidance=1.0))
    process = build.process(config.process)
    judge = build.classifier(config_of(**JUDGE).model, FACTS.image_shape, 3)
    seen = []

    def denoiser(params, cond):
        seen.append((params, np.asarray(cond["label"]).tolist()))
        return lambda x_t, t: ddpm_jax.Prediction(0 * x_t, x_t)

    guide = guides.with_classifier(config, process, judge, 1.0)
    params = {"model": "weights", "classifier": judge.init(jax.random.key(0))}
    guide(process, denoiser, params, {"label": np.array([1, 2])})
    assert seen == [("weights", [1, -1, 2, -1])]


@loose
def test_what_does_not_fit_is_refused(both, tmp_path):
    root, _, _ = both
    make_run(tmp_path / "noise", config_of(process=dict(num_timesteps=5), **JUDGE))
    model = root / "model"
    for options, message in (
        (dict(classifier=tmp_path / "noise"), "does not fit the model: its process is"),
        (dict(classifier=model), "model.name is 'unet', but a classifier is wanted here"),
        (dict(classifier=root / "judge", classifier_scale=-1.0), "scale of classifier guidance"),
        (dict(classifier=root / "none"), "is not the work directory of a run"),
    ):
        with pytest.raises(UserError, match=message):
            ddpm_jax.load(model, **options)
    with pytest.raises(UserError, match="model.name is 'classifier', but a denoiser is wanted"):
        ddpm_jax.load(root / "judge")
    facts = (root / "judge" / "dataset.json").read_text()
    other = tmp_path / "noise" / "dataset.json"
    other.write_text(facts.replace('"num_classes": 3', '"num_classes": 7'))
    with pytest.raises(UserError, match="its data.num_classes is 7, the model's is 3"):
        ddpm_jax.load(model, classifier=tmp_path / "noise")
    with pytest.raises(UserError, match="unknown model.name 'unett'; did you mean 'unet'"):
        build.model(config_of(model=dict(name="unett")).model, (4, 4, 1), 3)
    with pytest.raises(UserError, match="a classifier needs labels, but the data have none"):
        build.classifier(config_of(**JUDGE).model, (4, 4, 1), 0)


def test_the_command_line_guides_by_a_classifier(both, tmp_path):
    root, _, _ = both
    flags = (f"--workdir={root / 'model'}", f"--classifier={root / 'judge'}", "--n=2", "--label=1")
    done = run_main("sample", *flags, "--classifier_scale=4", f"--out={tmp_path / 'guided'}")
    assert done.returncode == 0, done.stderr
    sample, params = ddpm_jax.load(root / "model", classifier=root / "judge", classifier_scale=4.0)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        wanted = sample(params, jax.random.key(0), 2, {"label": np.array([1, 1], np.int32)})
    wanted = np.clip(np.round((np.asarray(wanted) + 1) * 127.5), 0, 255)
    images = np.load(tmp_path / "guided.npz")
    assert np.abs(images["images"] - wanted).max() <= 1


# Its training


def digits(num_steps, **train):
    return config_of(
        data=dict(name="digits", flip=False),
        process=dict(num_timesteps=10),
        model=dict(JUDGE["model"], channels=16, channel_multipliers=(1, 2, 2), num_groups=4),
        optim=dict(learning_rate=1e-2, warmup_steps=5, ema_decay=0.9),
        train=dict(num_steps=num_steps, batch_size=32, log_every=20, checkpoint_every=20, **train),
        mesh=dict(data=1),
    )


@pytest.mark.slow
@loose
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
        model=dict(JUDGE["model"], channels=8, num_groups=4, dropout=0.1),
        optim=dict(learning_rate=1e-2, warmup_steps=1),
        train=dict(num_steps=4, batch_size=16, log_every=2, **train),
        eval=dict(every=2, num_examples=40),
        mesh=mesh,
    )


@pytest.mark.slow
@loose
def test_a_sharded_classifier_with_fused_steps_takes_the_steps_of_a_whole_one(tmp_path):
    whole = train(small(dict(data=1)), tmp_path / "whole")
    cut = train(small(dict(data=2, fsdp=4), steps_per_call=2), tmp_path / "cut")
    for a, b in zip(jax.tree.leaves(whole.state), jax.tree.leaves(cut.state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)
    kernel = cut.state.params["middle_0"]["conv_1"]["kernel"]
    assert kernel.shape[-1] == 4 * kernel.addressable_shards[0].data.shape[-1]
    rows = [metrics.read(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut")]
    for found in rows:
        judged = [row["step"] for row in found if "accuracy_t_quartile_1" in row]
        assert judged == [2, 4]  # while training; at the end not once more
        assert found[-1].items() >= (whole if found is rows[0] else cut).figures.items()
    assert cut.figures == pytest.approx(whole.figures, abs=0.051)  # two of the 40 images


@loose
def test_what_a_classifier_has_no_use_for_is_refused(tmp_path):
    config = small(dict(data=1))

    def changed(section, **fields):
        section_fields = dataclasses.replace(getattr(config, section), **fields)
        return dataclasses.replace(config, **{section: section_fields})

    for wrong, message in (
        (changed("eval", samples_every=2), "eval.samples_every is 2, but a classifier draws no sa"),
        (changed("process", schedule="learned"), "process.schedule is learned, so its chain is"),
        (changed("model", name="clasifier"), "model.name 'clasifier'; did you mean 'classifier'"),
    ):
        with pytest.raises(UserError, match=message):
            train(wrong, tmp_path / "run")
    with pytest.raises(UserError, match="data.text is True, but a classifier takes no text"):
        build_parts(changed("data", text=True), (8, 8, 1), 10)
    assert not (tmp_path / "run").exists()


def test_the_classifiers_command_refuses_a_denoiser(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "experiments.train_classifier",
            "--config=experiments/digits.py",
            f"--workdir={tmp_path / 'run'}",
        ],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert done.stderr == (
        "error: model.name is 'unet', but a classifier is wanted here "
        "(denoisers: experiments.train)\n"
    )
