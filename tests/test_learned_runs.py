"""Runs with a learned noise schedule: trained, resumed, loaded and sampled, and what is refused."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import small

import ddpm_jax
from ddpm_jax import build
from ddpm_jax.build.chain import make_chain, sample_fn
from ddpm_jax.config import from_dict
from ddpm_jax.errors import UserError
from ddpm_jax.models import Model
from ddpm_jax.models.blocks import with_fourier_features
from ddpm_jax.runs import open_run
from ddpm_jax.training.loop import train
from ddpm_jax.training.parts import build_parts

pytestmark = [
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
    pytest.mark.quick_to_compile,
]

TINY = small(
    process=dict(schedule="learned", num_timesteps=6),
    model__channels=4,
    model__num_groups=2,
    model__fourier_features=(7, 8),
    optim=dict(learning_rate=1e-2, warmup_steps=0, ema_decay=0.5),
    train=dict(
        num_steps=4, batch_size=8, sample_every=0, num_samples=8, checkpoint_every=2, log_every=1
    ),
    eval=dict(every=4, num_examples=8),
    mesh=dict(data=1),
)


def config_of(**sections):
    """TINY with some fields changed: section=dict(field=value)."""
    return from_dict(
        {k: v | sections.get(k, {}) for k, v in (TINY | {"loss": {}, "sample": {}}).items()}
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of four steps, interrupted and resumed after two; and its last state."""
    root = tmp_path_factory.mktemp("runs") / "vdm"
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        train(config_of(train=dict(num_steps=2)), root)
        state = train(config_of(), root).state
    return pathlib.Path(root), jax.device_get(state)


@pytest.mark.slow
def test_network_and_schedule_are_trained_together(run):
    _, state = run
    initial = build_parts(config_of(), (8, 8, 1), 10).init()
    assert state.step == 4
    for part in ("model", "schedule"):
        assert any(
            np.abs(a - b).max() > 1e-4
            for a, b in zip(
                jax.tree.leaves(state.params[part]),
                jax.tree.leaves(initial.params[part]),
                strict=True,
            )
        )
    ends = state.params["schedule"]["ends"]
    assert ends["gamma_0"] != np.float32(-13.3) and ends["gamma_1"] != np.float32(5.0)


@pytest.mark.slow
def test_a_loaded_run_has_the_chain_of_its_averaged_schedule(run):
    root, state = run
    opened = open_run(root)
    ends = state.ema_params["schedule"]["ends"]
    np.testing.assert_allclose(opened.process.log_snr[1], -ends["gamma_0"], rtol=1e-5)
    np.testing.assert_allclose(opened.process.log_snr[-1], -ends["gamma_1"], rtol=1e-5)
    low, high = -13.3, 5.0  # the network receives the noise itself, on a fixed scale
    received = 1 + 1000 * (-np.asarray(opened.process.log_snr[1:]) - low) / (high - low)
    np.testing.assert_allclose(opened.process.timesteps[1:], received, rtol=1e-4, atol=1e-2)
    sample, params = ddpm_jax.load(root)
    images = sample(params, jax.random.key(0), 8)
    assert images.shape == (8, 8, 8, 1) and np.all(np.isfinite(images))
    # The same from the joint parameters, as the grids of a run are drawn
    joint = sample_fn(opened.config, build.model(opened.config.model, (8, 8, 1), 10), (8, 8, 1))
    again = joint(state.ema_params, jax.random.key(0), 8)
    np.testing.assert_allclose(again, images, atol=1e-5)


def test_other_parameters_of_the_schedule_do_not_compile_again():
    """The process is an argument of the program: the network is traced for the first ones only."""
    traced = []

    def apply(params, x_t, t, cond, *, train, key):
        traced.append(1)
        return params * x_t

    config = config_of(sample=dict(sampler="ddim", num_steps=4, timesteps="karras"))
    chain, network = make_chain(config), Model(lambda key: jnp.float32(0.5), apply)
    sample = sample_fn(config, network, (2, 2, 1))
    params = chain.joint(network).init(jax.random.key(1))
    ends = {"gamma_0": jnp.float32(-7.0), "gamma_1": jnp.float32(1.0)}
    moved = params | {"schedule": params["schedule"] | {"ends": ends}}
    key, found, counts = jax.random.key(0), [], []
    for one in (params, moved):
        found.append(np.asarray(sample(one, key, 8)))
        counts.append(len(traced))
    assert counts[0] == counts[1] > 0
    assert np.abs(found[0] - found[1]).max() > 0.01
    for one, images in zip((params, moved), found, strict=True):  # each by its own chain
        process, own = chain.split(one)
        np.testing.assert_allclose(
            build.sample_fn(config, process, network, (2, 2, 1))(own, key, 8), images, atol=1e-6
        )


@pytest.mark.parametrize("n", [(), (7,), (7, 8)])
def test_fourier_features_are_sines_and_cosines_behind_the_image(n):
    x = np.random.default_rng(0).uniform(-1, 1, (2, 3, 3, 2)).astype(np.float32)
    found = np.asarray(with_fourier_features(jnp.asarray(x), n))
    assert found.shape == (2, 3, 3, 2 * (1 + 2 * len(n)))
    np.testing.assert_array_equal(found[..., :2], x)
    for i, exponent in enumerate(n):
        angle = 2.0**exponent * np.pi * x.astype(np.float64)
        np.testing.assert_allclose(found[..., 2 + 4 * i : 4 + 4 * i], np.sin(angle), atol=1e-3)
        np.testing.assert_allclose(found[..., 4 + 4 * i : 6 + 4 * i], np.cos(angle), atol=1e-3)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (dict(loss=dict(weighting="vlb")), "loss.weighting is 'vlb', but a learned schedule"),
        (dict(loss=dict(objective="vlb")), "loss.objective is 'vlb', but a learned schedule"),
        (dict(loss=dict(t_sampler="stratified")), "loss.t_sampler is 'stratified', but"),
        (dict(loss=dict(kind="epsilon")), "unknown loss.kind 'epsilon'"),
        (dict(model=dict(learn_variance=True)), "model.learn_variance is True, but"),
        (dict(process=dict(beta_T=0.02)), "process.beta_T is 0.02, but .*schedule=learned does"),
        (dict(process=dict(zero_terminal_snr=True)), "zero_terminal_snr is True, but .*=learned"),
        (dict(process=dict(gamma_min=6.0)), r"gamma_min\) must be below .*, found 6 and 5"),
        (dict(process=dict(num_timesteps=1)), "num_timesteps must be at least 2 .* found 1"),
        (dict(sample=dict(sampler="ddimm")), "unknown sample.sampler 'ddimm'"),
        (
            dict(process=dict(schedule="cosine", gamma_max=4.0)),
            r"process.gamma_max is 4.0, but process.schedule=cosine does not use it "
            r"\(learned: yes\); leave it at 5.0",
        ),
    ],
)
def test_what_a_learned_schedule_does_not_use_is_refused(sections, message):
    base = TINY | {"loss": {}, "sample": {}}
    config = from_dict({k: v | sections.get(k, {}) for k, v in base.items()})
    with pytest.raises(UserError, match=message):
        build_parts(config, (8, 8, 1), 10)


def test_what_has_no_run_has_no_learned_chain():
    with pytest.raises(UserError, match="process.schedule is learned, so its chain is known only"):
        build.process(dataclasses.replace(config_of().process))
