"""The classifier of noisy images: its functions, its network, and guidance by it."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from mains import run as run_main
from test_guided_runs import FACTS, config_of, make_run

import ddpm_jax
from ddpm_jax import build, guidance
from ddpm_jax.build import guidance as guides
from ddpm_jax.errors import UserError
from ddpm_jax.models import Classifier, as_model
from ddpm_jax.noisy_classifier import is_right, label_log_prob, label_loss

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


@pytest.mark.slow
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
    patches = Classifier(num_classes=5, num_res_blocks=1, patch_size=2, **SETTINGS)
    wide, start = as_model(patches, (16, 8, 3)), jnp.asarray(x).repeat(2, axis=1).repeat(2, axis=2)
    shapes = jax.eval_shape(wide.init, jax.random.key(0))
    assert shapes["conv_in"]["kernel"].shape == (3, 3, 12, 8)
    seen = dict(params, conv_in=dict(params["conv_in"]))
    seen["conv_in"]["kernel"] = jnp.concatenate([params["conv_in"]["kernel"] / 4] * 4, axis=2)
    np.testing.assert_allclose(jax.jit(wide.apply)(seen, start, t), moved, rtol=1e-4, atol=1e-4)
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


@pytest.mark.slow
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
    with pytest.raises(UserError, match="classifier guidance needs the wanted classes, but"):
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
        (dict(classifier=model), "model.name is 'unet', but a classifier is needed here"),
        (dict(classifier=root / "judge", classifier_scale=-1.0), "scale of classifier guidance"),
        (dict(classifier=root / "none"), "is not the work directory of a run"),
    ):
        with pytest.raises(UserError, match=message):
            ddpm_jax.load(model, **options)
    with pytest.raises(UserError, match="model.name is 'classifier', but a denoiser is needed"):
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


@pytest.mark.slow
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
