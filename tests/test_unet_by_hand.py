"""The U-Net against a forward pass in numpy, written from the papers and their authors' code.

Ho et al. 2020, appendix B, and `models/unet.py` of their code; for FiLM, Dhariwal & Nichol 2021,
eq. 3, where the scale is 1 + what the dense layer gives (`ResBlock` of their code).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_unet import forward, inputs, small, weights

from ddpm_jax.models import Classifier, as_model

pytestmark = pytest.mark.quick_to_compile

C, MULTIPLIERS, BLOCKS, ATTENDS_AT, GROUPS = 8, (1, 2), 1, 4, 4  # those of test_unet.SMALL


def swish(x):
    return x / (1.0 + np.exp(-x))


def dense(p, x):
    return np.tensordot(x, p["kernel"], 1) + p["bias"]


def group_norm(p, x):
    batch, height, width, channels = x.shape
    grouped = x.reshape(batch, height * width, GROUPS, channels // GROUPS)
    mean = grouped.mean(axis=(1, 3), keepdims=True)
    variance = grouped.var(axis=(1, 3), keepdims=True)
    return ((grouped - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape) * p["scale"] + p["bias"]


def conv(p, x, stride=1):
    """3x3, "SAME" as TensorFlow means it: at stride 2 the even sides get one row at the end."""
    height, width = x.shape[1:3]
    before = 1 if stride == 1 else 0
    x = np.pad(x, ((0, 0), (before, 1), (before, 1), (0, 0)))
    return p["bias"] + sum(
        x[:, i : i + height : stride, j : j + width : stride] @ p["kernel"][i, j]
        for i in range(3)
        for j in range(3)
    )


def residual(p, x, embedding, film):
    h = conv(p["conv_1"], swish(group_norm(p["norm_1"], x)))
    shift = dense(p["dense"], swish(embedding))[:, None, None]
    if film:
        scale, shift = np.split(shift, 2, axis=-1)
        h = group_norm(p["norm_2"], h) * (1.0 + scale) + shift
    else:
        h = group_norm(p["norm_2"], h + shift)
    h = conv(p["conv_2"], swish(h))
    return h + (dense(p["shortcut"], x) if "shortcut" in p else x)


def attention(p, x):
    pixels = group_norm(p["norm"], x).reshape(len(x), -1, x.shape[-1])
    q, k, v = (dense(p[name], pixels) for name in ("query", "key", "value"))  # [B, HW, heads, d]
    logits = np.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(q.shape[-1])
    w = np.exp(logits - logits.max(axis=-1, keepdims=True))
    w = w / w.sum(axis=-1, keepdims=True)
    h = np.einsum("bhij,bjhd->bihd", w, v).reshape(x.shape)
    return x + dense(p["out"], h)


def unet(params, x, t, label, film):
    def block(name, h):
        h = residual(params[name], h, embedding, film)
        name = f"{name}_attention"
        return attention(params[name], h) if name in params else h

    half = C // 2
    angles = t[:, None] * np.exp(-np.log(10_000.0) / (half - 1) * np.arange(half))
    embedding = dense(params["time_1"], np.concatenate([np.sin(angles), np.cos(angles)], axis=1))
    embedding = dense(params["time_2"], swish(embedding)) + params["label"]["embedding"][label]

    hs = [conv(params["conv_in"], x)]
    for level in range(len(MULTIPLIERS)):
        for i in range(BLOCKS):
            hs.append(block(f"down_{level}_{i}", hs[-1]))
        if level < len(MULTIPLIERS) - 1:
            hs.append(conv(params[f"down_{level}_conv"], hs[-1], stride=2))
    h = block("middle_1", block("middle_0", hs[-1]))
    for level in reversed(range(len(MULTIPLIERS))):
        for i in range(BLOCKS + 1):
            h = block(f"up_{level}_{i}", np.concatenate([h, hs.pop()], axis=-1))
        if level > 0:
            h = conv(params[f"up_{level}_conv"], np.kron(h, np.ones((1, 2, 2, 1))))
    assert not hs
    return conv(params["conv_out"], swish(group_norm(params["norm_out"], h)))


@pytest.mark.parametrize(("film", "heads"), [(False, 1), (True, 2)])
def test_the_network_is_the_papers(film, heads):
    model = small(scale_shift=film, num_heads=heads, num_classes=3)
    params = weights(model)
    attending = {name for name in params if name.endswith("attention")}
    assert attending == {
        f"{name}_attention" for name in ("down_1_0", "middle_0", "up_1_0", "up_1_1")
    }
    x, t = inputs(batch=3)
    label = np.array([2, 0, 1], np.int32)
    found = forward(model, params, x, t, {"label": jnp.asarray(label)})
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    expected = unet(params, np.asarray(x, np.float64), np.asarray(t, np.float64), label, film)
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def classifier(params, x, t):
    """The way down, the middle, the mean over pixels and one dense layer."""
    half = C // 2
    angles = t[:, None] * np.exp(-np.log(10_000.0) / (half - 1) * np.arange(half))
    embedding = dense(params["time_1"], np.concatenate([np.sin(angles), np.cos(angles)], axis=1))
    embedding = dense(params["time_2"], swish(embedding))
    h = conv(params["conv_in"], x)
    for level in range(len(MULTIPLIERS)):
        h = residual(params[f"down_{level}_0"], h, embedding, False)
        if level < len(MULTIPLIERS) - 1:
            h = conv(params[f"down_{level}_conv"], h, stride=2)
    h = attention(params["down_1_0_attention"], h)
    h = attention(params["middle_0_attention"], residual(params["middle_0"], h, embedding, False))
    h = residual(params["middle_1"], h, embedding, False)
    h = swish(group_norm(params["norm_out"], h)).mean(axis=(1, 2))
    return dense(params["logits"], h)


def test_the_classifier_is_its_half():
    settings = dict(channels=C, channel_multipliers=MULTIPLIERS, num_groups=GROUPS)
    module = Classifier(5, num_res_blocks=BLOCKS, attention_resolutions=(ATTENDS_AT,), **settings)
    model = as_model(module, (8, 8, 3))
    params = weights(model)
    x, t = inputs(batch=3)
    found = forward(model, params, x, t)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    expected = classifier(params, np.asarray(x, np.float64), np.asarray(t, np.float64))
    assert found.shape == (3, 5) and expected.std() > 0.1
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
