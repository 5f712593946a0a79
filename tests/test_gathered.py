"""Sharded parameters are gathered in bfloat16, where a network uses them in no other dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import make_config

from ddpm_jax import build
from ddpm_jax.runtime import sharding
from ddpm_jax.scenes import cameras
from ddpm_jax.training.parts import build_parts

pytestmark = [
    pytest.mark.quick_to_compile,
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
]

B, SIDE = 4, 8
BASE = dict(model__channels=16, model__attention_resolutions=(8,), model__dtype="bfloat16")
DEVICES = 8
KINDS = {
    "unet": dict(model__class_conditional=True, process__schedule="learned"),
    "classifier": dict(model__name="classifier", model__pool="attention", model__head_dim=8),
    "autoencoder": dict(model__name="autoencoder", autoencoder__discriminator_weight=0.5),
    "xunet": dict(data__name="solids", model__name="xunet", model__num_heads=2),
}


def a_batch(shape):
    rng = np.random.default_rng(0)
    image, view = rng.integers(0, 256, (2, B, *shape), np.uint8)
    camera = cameras.orbit(rng.uniform(0, 6, (B, 2)), rng.uniform(0, 1, (B, 2)), 3.0, 0.7, SIDE)
    numbers = {"pose": camera.pose, "focal": camera.focal, "centre": camera.centre}
    return {"image": image, "view": view, "label": rng.integers(0, 10, B, np.int32), **numbers}


def outputs(kind):
    """Return the parameters of a new run, and a function of them: the loss, or logits."""
    config = make_config(**BASE, **KINDS[kind])
    shape = (SIDE, SIDE, 3 if kind == "xunet" else 1)
    parts, batch = build_parts(config, shape, 10), a_batch(shape)
    params = jax.jit(parts.init)().params
    if kind != "classifier":
        return params, jax.jit(lambda params: parts.eval_step(params, batch, 0))
    x, t = batch["image"] / np.float32(127.5) - 1, np.arange(B)
    apply = build.classifier(config.model, shape, 10).apply
    return params, jax.jit(lambda params: {"logits": apply(params, x, t)})


def randomised(params):
    """The parameters without the zeros of a new network."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    new = [p + 0.1 * jax.random.normal(k, p.shape) for k, p in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, new)


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_uses_what_is_gathered_in_bfloat16_only_in_bfloat16(kind):
    params, found = outputs(kind)
    params = randomised(params)
    rounded = sharding.rounded(params, jnp.bfloat16)
    assert sum(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(rounded)) >= 8
    all_rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    exact, same, other = map(found, (params, rounded, all_rounded))
    for name in exact:
        np.testing.assert_array_equal(same[name], exact[name])
    assert any((other[name] != exact[name]).any() for name in exact)  # so the test can fail


def test_a_gradient_added_over_devices_in_bfloat16_is_nearly_as_exact_as_in_float32():
    """Against the gradient of a float32 network: rounding the sums adds little to the rest."""

    def gradients(dtype):
        config = make_config(**BASE | {"model__dtype": dtype})
        model = build.model(config.model, (SIDE, SIDE, 1), 0)
        params = randomised(jax.jit(model.init)(jax.random.key(0)))
        x = jax.random.normal(jax.random.key(1), (2, DEVICES, B, SIDE, SIDE, 1))

        def loss(params, x):
            return jnp.square(model.apply(params, x[0], jnp.arange(B)) - x[1]).mean()

        one = jax.jit(jax.grad(loss))
        found = [one(params, x[:, i]) for i in range(DEVICES)]
        return [np.concatenate([g.ravel() for g in jax.tree.leaves(each)]) for each in found]

    exact = sum(gradients("float32"))
    rounded = [jnp.asarray(g, jnp.bfloat16) for g in gradients("bfloat16")]
    in_float32 = sum(g.astype(jnp.float32) for g in rounded)
    in_bfloat16 = sum(rounded[1:], rounded[0]).astype(jnp.float32)
    errors = [np.linalg.norm(found - exact) for found in (in_float32, in_bfloat16)]
    assert errors[0] < errors[1] < 1.5 * errors[0]
