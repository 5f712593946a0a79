"""Every config file of experiments/: its parts can be built and traced."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from test_configs import CONFIGS, load

from ddpm_jax.pretrained import text_encoder as text
from ddpm_jax.training.parts import build_parts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
]

SHAPES = {  # otherwise of image_size
    "cifar10": (32, 32, 3),
    "digits": (8, 8, 1),
    "emoji": (32, 32, 3),
    "fashion_mnist": (28, 28, 1),
}


FIGURES = {
    "unet": ["held_out_loss"],
    "xunet": ["held_out_loss"],
    "classifier": [f"accuracy_t_quartile_{i}" for i in (1, 2, 3, 4)],
    "autoencoder": ["held_out_error", "held_out_kl", "held_out_psnr"],
}


def shape_of(config):
    side = config.data.image_size
    known = SHAPES.get(config.data.name, (32, 32, 3))
    return (side, side, known[2]) if side else known


@pytest.mark.parametrize(("name", "variant"), CONFIGS)
def test_a_step_of_every_config_can_be_traced(name, variant):
    config, n = load(name, variant), 2
    if config.data.codec:  # the latents in place of an autoencoder's
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, codec="", image_size=8)
        )
    shape, num_classes = shape_of(config), 10
    parts = build_parts(config, shape, num_classes)
    batch = {
        "image": jax.ShapeDtypeStruct((n, *shape), jnp.uint8),
        "label": jax.ShapeDtypeStruct((n,), jnp.int32),
    }
    if config.data.text:
        for key, dtype, inner in (
            ("embedding", jnp.float32, (text.WIDTH,)),
            ("context", jnp.float32, (8, text.WIDTH)),
            ("context_mask", jnp.bool_, (8,)),
        ):
            batch[key] = jax.ShapeDtypeStruct((n, *inner), dtype)
    if config.model.name == "xunet":
        batch["view"] = batch["image"]
        for key, inner in (("pose", (2, 4, 4)), ("focal", (2,)), ("centre", (2, 2))):
            batch[key] = jax.ShapeDtypeStruct((n, *inner), jnp.float32)
    state = jax.eval_shape(parts.init)
    after, metrics = jax.eval_shape(parts.train_step, state, batch)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert metrics["loss"].shape == ()
    figures = jax.eval_shape(parts.eval_step, state.params, batch, 0)
    names = FIGURES[config.model.name]
    assert {name: leaf.shape for name, leaf in figures.items()} == dict.fromkeys(names, (n,))
