"""The autoencoder: its shapes and limits, its loss, and its discriminator."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import make_config

from ddpm_jax import autoencoding, build
from ddpm_jax.build import autoencoders
from ddpm_jax.errors import UserError
from ddpm_jax.models import Discriminator
from ddpm_jax.models.autoencoder import LOG_VARIANCES
from ddpm_jax.training import autoencoder
from ddpm_jax.training.optimizer import make_optimizer
from ddpm_jax.training.parts import build_parts
from ddpm_jax.training.step import init_state, make_train_step

pytestmark = pytest.mark.quick_to_compile

IMAGE = (4, 6, 2)


def make(**changes):
    return make_config(**{"model__name": "autoencoder", "model__channels": 4,
                          "model__num_groups": 2} | changes)  # fmt: skip


def params_of(config, image_shape=IMAGE):
    return jax.jit(autoencoders.init_fn(config, image_shape))(jax.random.key(0))


def a_batch(n=4, image_shape=IMAGE):
    images = np.random.default_rng(0).integers(0, 256, (n, *image_shape), np.uint8)
    return {"image": images, "label": np.zeros(n, np.int32)}


@pytest.mark.parametrize(
    ("patch", "multipliers", "latent"), [(1, (1, 2), (2, 3)), (2, (1,), (2, 3)), (1, (1,), (4, 6))]
)
def test_shapes(patch, multipliers, latent):
    config = make(
        model__patch_size=patch, model__channel_multipliers=multipliers, model__latent_channels=5
    )
    network = build.autoencoder(config.model, IMAGE)
    assert network.latent_shape == (*latent, 5)

    def run(key):
        params, x = autoencoders.init_fn(config, IMAGE)(key)["autoencoder"], jnp.zeros((2, *IMAGE))
        mean, log_variance = network.encode(params, x)
        return mean, log_variance, network.decode(params, mean)

    mean, log_variance, images = jax.eval_shape(run, jax.random.key(0))
    assert mean.shape == log_variance.shape == (2, *latent, 5)
    assert images.shape == (2, *IMAGE) and images.dtype == jnp.float32


def test_every_part_gets_a_gradient_and_the_log_variance_is_bounded():
    config = make()
    network = build.autoencoder(config.model, IMAGE)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *IMAGE)), jnp.float32)

    def run(params):
        mean, log_variance = network.encode(params, x, train=True, key=jax.random.key(1))
        images = network.decode(params, mean, train=True, key=jax.random.key(2))
        return jnp.square(images - x).mean() + jnp.square(log_variance).mean(), log_variance

    run = jax.jit(jax.grad(run, has_aux=True))
    # no weight is zero, as after training
    params = jax.tree.map(lambda p: p + 0.01, params_of(config)["autoencoder"])
    grads, _ = run(params)
    assert all(np.isfinite(g).all() and g.any() for g in jax.tree.leaves(grads))
    params["encoder"]["quant"]["bias"] = jnp.full(8, 1e6)
    _, log_variance = run(params)
    assert float(log_variance.max()) == LOG_VARIANCES[1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__class_conditional": True}, "model.class_conditional is True"),
        ({"model__learn_variance": True}, "model.learn_variance is True"),
        ({"loss__kind": "v"}, "loss.kind is 'v', but model.name=autoencoder does not use it"),
        ({"data__codec": "runs/other"}, "data.codec is 'runs/other'"),
        ({"autoencoder__reconstruction": "l3"}, "autoencoder.reconstruction 'l3'.*gaussian, l1"),
        ({"autoencoder__discriminator_layers": 2}, "autoencoder.discriminator_weight=0 does not"),
        ({"model__channel_multipliers": (1, 1, 1, 1)}, "6 cannot be halved 3 times"),
        ({"model__attention_resolutions": (5,)}, "attention_resolutions has 5"),
    ],
)
def test_what_an_autoencoder_does_not_have_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        build_parts(make(**changes), IMAGE, 0)


def test_options_of_autoencoders_are_refused_elsewhere():
    with pytest.raises(UserError, match="autoencoder.kl_weight is 1.0, but model.name=unet"):
        build_parts(make_config(autoencoder__kl_weight=1.0), (8, 8, 1), 0)
    with pytest.raises(UserError, match="model.latent_channels is 3, but model.name=unet"):
        build_parts(make_config(model__latent_channels=3), (8, 8, 1), 0)
    words = "model.name is 'autoencoder', but a denoiser is needed here; pass an autoencoder as"
    with pytest.raises(UserError, match=words):
        build.model(make().model, (8, 8, 1), 0)


def test_the_gaussian_reconstruction_is_minus_the_log_density():
    rng = np.random.default_rng(0)
    x, mean = rng.normal(size=(2, 3, 2, 2, 1))
    density = np.exp(-0.5 * ((x - mean) / 0.5) ** 2) / (0.5 * np.sqrt(2 * np.pi))
    found = autoencoding.gaussian(jnp.asarray(x), jnp.asarray(mean), jnp.log(0.25))
    np.testing.assert_allclose(found, -np.log(density).mean(axis=(1, 2, 3)), rtol=1e-5)


def test_the_scale_of_the_gaussian_is_learned_as_the_mean_square_error():
    """The best log σ² is the log of the mean squared error: its gradient is zero there."""
    x, mean = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 4)), jnp.float32)
    best = jnp.log(jnp.square(x - mean).mean())
    slope = jax.grad(lambda v: autoencoding.gaussian(x, mean, v).mean())
    assert abs(float(slope(best))) < 1e-6 < float(slope(best + 1.0))


def test_the_discriminator_of_a_perfect_judge_costs_nothing():
    real, fake = jnp.ones((2, 3, 3, 1)), -jnp.ones((2, 3, 3, 1))
    np.testing.assert_array_equal(autoencoding.hinge(real, fake), 0.0)
    np.testing.assert_array_equal(autoencoding.hinge(fake, real), 2.0)
    np.testing.assert_array_equal(autoencoding.hinge(0 * real, 0 * fake), 1.0)


def test_a_discriminator_sees_patches_and_one_image_at_a_time():
    judge = Discriminator(channels=4, layers=2)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 16, 16, 1)), jnp.float32)
    params = jax.jit(judge.init)(jax.random.key(0), x)
    both = jax.jit(judge.apply)(params, x)
    assert both.shape == (3, 4, 4, 1)
    chex.assert_trees_all_close(judge.apply(params, x[1:2]), both[1:2], rtol=1e-4, atol=1e-5)


def an_objective(**changes):
    config = make(autoencoder__discriminator_channels=4, autoencoder__discriminator_layers=1,
                  **changes)  # fmt: skip
    network = build.autoencoder(config.model, IMAGE)
    objective = autoencoder.objective(config, network, lambda params: params)
    return config, objective, params_of(config)


def test_the_adaptive_weight_makes_both_terms_pull_equally():
    config, objective, params = an_objective(autoencoder__discriminator_weight=0.5)
    keys = list(jax.random.split(jax.random.key(0), 3))
    inputs, _ = objective.draw((), jnp.int32(0), keys, a_batch())

    def pulls(layer):
        own = params["autoencoder"]
        decoder = own["decoder"] | {"conv_out": layer}
        changed = params | {"autoencoder": own | {"decoder": decoder}}
        _, parts = objective.loss(changed, inputs, jax.random.key(1))
        means = parts["reconstruction"].mean(), parts["adversarial"].mean()
        return means, parts["adversarial_weight"][0]

    layer = params["autoencoder"]["decoder"]["conv_out"]
    found, weight = jax.jit(jax.jacrev(pulls, has_aux=True))(layer)
    norms = [np.sqrt(sum(float(jnp.square(g).sum()) for g in each.values())) for each in found]
    expected = 0.5 * norms[0] / (norms[1] + 1e-4)
    assert float(weight) == pytest.approx(expected, rel=1e-3)
    assert 0 < float(weight) < autoencoding.MAX_RATIO


@pytest.mark.parametrize("step", [0, 5])
def test_each_player_learns_from_its_own_loss_from_the_given_step_on(step):
    config, objective, params = an_objective(
        autoencoder__discriminator_weight=0.5, autoencoder__discriminator_start=5
    )
    keys = list(jax.random.split(jax.random.key(0), 3))
    inputs, weight = objective.draw((), jnp.int32(step), keys, a_batch())
    np.testing.assert_array_equal(weight, 1.0)

    def total(params):
        return objective.loss(params, inputs, jax.random.key(1))[0].mean()

    def hinge(judge):
        with_judge = params | {"discriminator": judge}
        return objective.loss(with_judge, inputs, jax.random.key(1))[1]["discriminator"].mean()

    grads = jax.jit(jax.grad(total))(params)
    if step < 5:
        assert not any(g.any() for g in jax.tree.leaves(grads["discriminator"]))
        return
    chex.assert_trees_all_close(
        grads["discriminator"], jax.jit(jax.grad(hinge))(params["discriminator"]), atol=1e-6
    )


def test_the_loss_is_the_sum_of_its_weighted_parts():
    changes = dict(autoencoder__discriminator_weight=0.5, autoencoder__kl_weight=0.25)
    config, objective, params = an_objective(**changes)
    keys = list(jax.random.split(jax.random.key(0), 3))
    inputs, _ = objective.draw((), jnp.int32(0), keys, a_batch())
    total, parts = jax.jit(objective.loss)(params, inputs, jax.random.key(1))
    expected = parts["reconstruction"] + 0.25 * parts["kl"] / float(np.prod(IMAGE))
    expected += parts["adversarial_weight"] * parts["adversarial"] + parts["discriminator"]
    np.testing.assert_allclose(total, expected, rtol=1e-5)


@pytest.mark.loose_promotion(reason="optax's schedules multiply floats with int32 counts")
def test_a_linear_autoencoder_recovers_the_principal_subspace():
    """Baldi & Hornik 1989: the best linear autoencoder projects on the largest components."""
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    deviations = np.array([3.0, 2.0, 0.3, 0.2, 0.1, 0.05])
    x = jnp.asarray(rng.normal(size=(512, 6)) * deviations @ basis.T / 4, jnp.float32)

    class Network:
        latent_shape = (2,)

        @staticmethod
        def encode(params, x, *, train=False, key=None):
            mean = x @ params["encoder"]
            return mean, jnp.full_like(mean, -30.0)

        @staticmethod
        def decode(params, z, *, train=False, key=None):
            return z @ params["decoder"]

    config = make(autoencoder__reconstruction="gaussian", autoencoder__kl_weight=0.0,
                  optim__learning_rate=0.02, optim__warmup_steps=0,
                  optim__clip_norm=0.0)  # fmt: skip
    objective = autoencoder.objective(config, Network, lambda params: params)

    def init(key):
        keys = jax.random.split(key)
        own = {"encoder": 0.3 * jax.random.normal(keys[0], (6, 2)),
               "decoder": 0.3 * jax.random.normal(keys[1], (2, 6))}  # fmt: skip
        return {"autoencoder": own, "log_variance": jnp.zeros(())}

    # the step takes pixels, so the data are given to the objective directly
    objective = objective._replace(
        draw=lambda *_: ((x, jnp.zeros((512, 2)), jnp.zeros(512)), jnp.ones(512))
    )
    optimizer = make_optimizer(config.optim, 600)
    step = make_train_step(objective, optimizer, optim_config=config.optim, accumulate=1,
                           key=jax.random.key(0))  # fmt: skip
    state = init_state(init, optimizer, jax.random.key(1))
    state, _ = jax.jit(lambda state: jax.lax.scan(lambda s, _: step(s, {}), state, length=600))(
        state
    )
    own = state.params["autoencoder"]
    found = np.asarray(own["encoder"] @ own["decoder"])
    _, _, components = np.linalg.svd(np.asarray(x), full_matrices=False)
    np.testing.assert_allclose(found, components[:2].T @ components[:2], atol=0.02)
