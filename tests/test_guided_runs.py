"""Guidance by config: what a run allows, from `build`, `load` and the command line."""

import jax
import numpy as np
import pytest
from mains import run as run_main
from tiny import small

import ddpm_jax
from ddpm_jax import build, guidance
from ddpm_jax.build import guidance as guides
from ddpm_jax.build.overrides import override
from ddpm_jax.config import Config, from_dict
from ddpm_jax.errors import UserError
from ddpm_jax.runs.checkpoint import Checkpoints
from ddpm_jax.runs.state import TrainState
from ddpm_jax.runs.workdir import DatasetFacts, open_for_training, write_facts

pytestmark = [
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
    pytest.mark.quick_to_compile,
]

FACTS = DatasetFacts((4, 4, 1), 3, ("a", "b", "c"))
TINY = small(
    data={},
    process__num_timesteps=4,
    model__channels=4,
    model__num_groups=2,
    model__dropout=0.1,
    model__class_conditional=True,
    optim={},
    train=dict(num_steps=1),
    eval={},
    sample__clip_x_0=False,
)


def config_of(**sections):
    return from_dict(
        {name: TINY.get(name, {}) | sections.get(name, {}) for name in TINY | sections}
    )


def make_run(root, config, seed=0, facts=FACTS):
    """Write the work directory of a run with random weights, also in the zero layers."""
    workdir = open_for_training(root, config)
    write_facts(workdir, facts)
    make = build.classifier if config.model.name == "classifier" else build.model
    model = make(config.model, facts.image_shape, facts.num_classes)
    leaves, tree = jax.tree.flatten(model.init(jax.random.key(seed)))
    rng = np.random.default_rng(seed)
    params = tree.unflatten([0.3 * rng.normal(size=x.shape).astype(np.float32) for x in leaves])
    checkpoints = Checkpoints(workdir.checkpoints, 1, 0)
    checkpoints.save(TrainState(np.int32(1), params, params, ()), wait=True)
    checkpoints.close()
    return params


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    return root, make_run(root, config_of())


@pytest.mark.slow
def test_load_guides_as_the_overridden_fields_say(run):
    root, params = run
    settings = dict(guidance=2.0, guidance_interval=(2, 4), guidance_rescale=0.5)
    sample, loaded = ddpm_jax.load(root, sample=settings | {"clip_x_0": True})
    cond, key = {"label": np.array([0, 1, 2], np.int32)}, jax.random.key(0)
    process = build.process(config_of().process)

    def guide(process, denoiser, params, cond):
        pair = denoiser(params, guidance.with_null(cond))
        return guidance.classifier_free(process, pair, 2.0, interval=(2, 4), rescale=0.5)

    by_hand = ddpm_jax.make_sample(
        process,
        build.model(config_of().model, FACTS.image_shape, FACTS.num_classes).apply,
        shape=FACTS.image_shape,
        sampler=ddpm_jax.samplers.ancestral(process),
        guidance=guide,
    )
    images = sample(loaded, key, 3, cond)
    np.testing.assert_allclose(images, by_hand(params, key, 3, cond), atol=1e-5)
    plain, _ = ddpm_jax.load(root, sample={"clip_x_0": True})
    assert np.abs(images - plain(loaded, key, 3, cond)).max() > 0.01
    dynamic, _ = ddpm_jax.load(root, sample=settings | dict(clip_x_0=True, dynamic_threshold=0.5))
    assert np.abs(images - dynamic(loaded, key, 3, cond)).max() > 0.01


def test_another_sampler_begins_with_its_own_defaults():
    config = config_of(sample=dict(variance="fixed_small", num_steps=2))
    same = override(config, {"num_steps": 3}).sample
    assert same.variance == "fixed_small" and same.num_steps == 3
    other = override(config, {"sampler": "ddim", "eta": 0.5}).sample
    assert (other.variance, other.eta, other.num_steps) == ("fixed_large", 0.5, 2)


def test_override_is_checked_as_a_config_is():
    assert override(config_of(), {"guidance": 1}).sample.guidance == 1.0
    assert override(config_of(), None) == config_of()
    with pytest.raises(UserError, match="'sample.guidence'; did you mean 'sample.guidance'"):
        override(config_of(), {"guidence": 1.0})


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (dict(sample=dict(guidance=1.0), model=dict(class_conditional=False)), "has no classes or"),
        (
            dict(sample=dict(guidance=1.0), loss=dict(p_uncond=0.0)),
            "training never uses the null",
        ),
        (dict(sample=dict(guidance_interval=(1, 2))), r"guidance_interval is \(1, 2\), but sample"),
        (dict(sample=dict(guidance_rescale=0.5)), "guidance_rescale is 0.5, but sample.guidance"),
        (dict(sample=dict(guidance=1.0, guidance_rescale=2.0)), r"rescale must be in \[0, 1\]"),
        (dict(sample=dict(guidance=1.0, guidance_interval=(3,))), r"must be \(low, high\) or \(\)"),
        (dict(sample=dict(guidance=1.0, guidance_interval=(3, 2))), "1 <= low <= high <= 4 .T."),
        (dict(sample=dict(guidance=1.0, guidance_interval=(2, 5))), "1 <= low <= high <= 4 .T."),
        (dict(sample=dict(dynamic_threshold=0.9)), "0.9, but clip_x_0 is False"),
        (dict(sample=dict(dynamic_threshold=99.5, clip_x_0=True)), r"must be in \[0, 1\]"),
    ],
)
def test_what_a_run_cannot_do_is_refused_before_it_starts(sections, message):
    with pytest.raises(UserError, match=message):
        config = config_of(**sections)
        process = build.process(config.process)
        model = build.model(config.model, FACTS.image_shape, FACTS.num_classes)
        build.sample_fn(config, process, model, FACTS.image_shape)


def test_the_defaults_guide_nothing():
    assert guides.from_config(Config(), build.process(config_of().process)) == 0.0


def test_the_command_line_guides_and_refuses(run, tmp_path):
    root, _ = run
    flags = (f"--workdir={root}", "--n=2", "--label=1")
    done = run_main("sample", *flags, "--guidance=2.0", f"--out={tmp_path / 'guided'}")
    assert done.returncode == 0, done.stderr
    images = np.load(tmp_path / "guided.npz")
    sample, params = ddpm_jax.load(root, sample={"guidance": 2.0})
    wanted = sample(params, jax.random.key(0), 2, {"label": np.array([1, 1], np.int32)})
    wanted = np.clip(np.round((np.asarray(wanted) + 1) * 127.5), 0, 255)
    assert np.abs(images["images"] - wanted).max() <= 1
    np.testing.assert_array_equal(images["labels"], [1, 1])

    unconditional = tmp_path / "unconditional"
    make_run(unconditional, config_of(model=dict(class_conditional=False)))
    refused = run_main("sample", f"--workdir={unconditional}", "--guidance=1.5")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1] == (
        "error: --guidance=1.5 is given, but the model has no classes or texts to guide to; "
        "leave out --guidance"
    )
