"""The U-Net against a forward pass in numpy, written from the papers and their authors' code.

Ho et al. 2020, appendix B, and `models/unet.py` of their code; for FiLM, Dhariwal & Nichol 2021,
eq. 3, where the scale is 1 + what the dense layer gives (`ResBlock` of their code). Their
code also has blocks that average or repeat pixels, and convolutions of stride 2 that pad all sides.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_unet import forward, inputs, small, weights

from ddpm_jax.models import Classifier, as_model

pytestmark = pytest.mark.quick_to_compile

C, MULTIPLIERS, BLOCKS, ATTENDS_AT, GROUPS = 8, (1, 2), 1, 4, 4  # those of test_unet.SMALL


class Options(NamedTuple):
    """The options of the network that change the computation, with the defaults of Ho's network."""

    scale_shift: bool = False
    norm_eps: float = 1e-6
    freq_shift: int = 1
    resample: str = "conv"
    time_scale: float = 1.0
    time_channels: int = 0


def swish(x):
    return x / (1.0 + np.exp(-x))


def dense(p, x):
    return np.tensordot(x, p["kernel"], 1) + p["bias"]


def group_norm(p, x, eps=1e-6):
    batch, height, width, channels = x.shape
    grouped = x.reshape(batch, height * width, GROUPS, channels // GROUPS)
    mean = grouped.mean(axis=(1, 3), keepdims=True)
    variance = grouped.var(axis=(1, 3), keepdims=True)
    return ((grouped - mean) / np.sqrt(variance + eps)).reshape(x.shape) * p["scale"] + p["bias"]


def conv(p, x, stride=1, before=1):
    """3x3, with one row and column of zeros at the end, and `before` of them before."""
    height, width = x.shape[1:3]
    x = np.pad(x, ((0, 0), (before, 1), (before, 1), (0, 0)))
    return p["bias"] + sum(
        x[:, i : i + height : stride, j : j + width : stride] @ p["kernel"][i, j]
        for i in range(3)
        for j in range(3)
    )


def doubled(x):
    return np.kron(x, np.ones((1, 2, 2, 1)))


def halved(x):
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def residual(p, x, embedding, how, resize=lambda x: x):
    h = conv(p["conv_1"], resize(swish(group_norm(p["norm_1"], x, how.norm_eps))))
    x = resize(x)
    shift = dense(p["dense"], swish(embedding))[:, None, None]
    if how.scale_shift:
        scale, shift = np.split(shift, 2, axis=-1)
        h = group_norm(p["norm_2"], h, how.norm_eps) * (1.0 + scale) + shift
    else:
        h = group_norm(p["norm_2"], h + shift, how.norm_eps)
    h = conv(p["conv_2"], swish(h))
    return h + (dense(p["shortcut"], x) if "shortcut" in p else x)


def attention(p, x, how):
    h = group_norm(p["norm"], x, how.norm_eps) if "norm" in p else x
    pixels = h.reshape(len(x), -1, x.shape[-1])
    q, k, v = (dense(p[name], pixels) for name in ("query", "key", "value"))  # [B, HW, heads, d]
    logits = np.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(q.shape[-1])
    w = np.exp(logits - logits.max(axis=-1, keepdims=True))
    w = w / w.sum(axis=-1, keepdims=True)
    h = np.einsum("bhij,bjhd->bihd", w, v).reshape(x.shape)
    return x + dense(p["out"], h)


def down(params, level, h, embedding, how):
    if how.resample == "residual":
        return residual(params[f"down_{level}_resize"], h, embedding, how, halved)
    before = 1 if how.resample == "conv_symmetric" else 0  # "SAME" of TensorFlow: none before
    return conv(params[f"down_{level}_conv"], h, 2, before)


def up(params, level, h, embedding, how):
    if how.resample == "residual":
        return residual(params[f"up_{level}_resize"], h, embedding, how, doubled)
    return conv(params[f"up_{level}_conv"], doubled(h))


def time_features(t, how):
    half = (how.time_channels or C) // 2
    frequencies = np.exp(-np.log(10_000.0) / (half - how.freq_shift) * np.arange(half))
    angles = how.time_scale * t[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def unet(params, x, t, label, how):
    def block(name, h):
        h = residual(params[name], h, embedding, how)
        name = f"{name}_attention"
        return attention(params[name], h, how) if name in params else h

    embedding = dense(params["time_1"], time_features(t, how))
    embedding = dense(params["time_2"], swish(embedding)) + params["label"]["embedding"][label]

    hs = [conv(params["conv_in"], x)]
    for level in range(len(MULTIPLIERS)):
        for i in range(BLOCKS):
            hs.append(block(f"down_{level}_{i}", hs[-1]))
        if level < len(MULTIPLIERS) - 1:
            hs.append(down(params, level, hs[-1], embedding, how))
    h = block("middle_1", block("middle_0", hs[-1]))
    for level in reversed(range(len(MULTIPLIERS))):
        for i in range(BLOCKS + 1):
            h = block(f"up_{level}_{i}", np.concatenate([h, hs.pop()], axis=-1))
        if level > 0:
            h = up(params, level, h, embedding, how)
    assert not hs
    return conv(params["conv_out"], swish(group_norm(params["norm_out"], h, how.norm_eps)))


@pytest.mark.parametrize(
    ("how", "others"),
    [
        (Options(), {}),
        (Options(scale_shift=True), dict(num_heads=2)),
        (  # an epsilon that matters
            Options(False, 0.1, 0, "conv_symmetric", time_scale=0.25, time_channels=6),
            dict(head_dim=4, middle_attention="plain", null_class=False),
        ),
        (Options(resample="residual", norm_eps=0.1), dict(middle_attention="none")),
    ],
)
def test_the_network_is_the_papers(how, others):
    model = small(**how._asdict(), **others, num_classes=3)
    params = weights(model)
    attending = {name for name in params if name.endswith("attention")}
    middle = ("middle_0",) if others.get("middle_attention") != "none" else ()
    assert attending == {f"{name}_attention" for name in ("down_1_0", *middle, "up_1_0", "up_1_1")}
    heads = {params[name]["query"]["kernel"].shape[1] for name in attending}
    assert heads == {
        16 // others["head_dim"] if "head_dim" in others else others.get("num_heads", 1)
    }
    x, t = inputs(batch=3)
    label = np.array([2, 0, 1], np.int32)
    found = forward(model, params, x, t, {"label": jnp.asarray(label)})
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    expected = unet(params, np.asarray(x, np.float64), np.asarray(t, np.float64), label, how)
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def classifier(params, x, t, how):
    """The way down, the middle, the mean over pixels and one dense layer."""
    embedding = dense(params["time_1"], time_features(t, how))
    embedding = dense(params["time_2"], swish(embedding))
    h = conv(params["conv_in"], x)
    for level in range(len(MULTIPLIERS)):
        h = residual(params[f"down_{level}_0"], h, embedding, how)
        if level < len(MULTIPLIERS) - 1:
            h = down(params, level, h, embedding, how)
    h = attention(params["down_1_0_attention"], h, how)
    h = attention(
        params["middle_0_attention"], residual(params["middle_0"], h, embedding, how), how
    )
    h = residual(params["middle_1"], h, embedding, how)
    h = swish(group_norm(params["norm_out"], h, how.norm_eps))
    h = pool(params["pool"], h) if "pool" in params else h.mean(axis=(1, 2))
    return dense(params["logits"], h)


def pool(p, x):
    """One query, the mean of the pixels, attends to itself and to the pixels."""
    rows = x.reshape(len(x), -1, x.shape[-1])
    rows = np.concatenate([rows.mean(axis=1, keepdims=True), rows], axis=1) + p["position"]
    q, k, v = (dense(p[name], rows) for name in ("query", "key", "value"))  # [B, 1 + HW, heads, d]
    w = np.exp(np.einsum("bhd,bjhd->bhj", q[:, 0], k) / np.sqrt(q.shape[-1]))
    return np.einsum("bhj,bjhd->bhd", w / w.sum(axis=-1, keepdims=True), v).reshape(len(x), -1)


@pytest.mark.parametrize(
    ("how", "others"),
    [
        (Options(), {}),
        (Options(True, 0.1, 0, "residual", 0.25, 6), dict(head_dim=4, pool="attention")),
        (Options(resample="conv_symmetric"), {}),
    ],
)
def test_the_classifier_is_its_half(how, others):
    settings = dict(channels=C, channel_multipliers=MULTIPLIERS, num_groups=GROUPS, **others)
    settings |= dict(num_res_blocks=BLOCKS, attention_resolutions=(ATTENDS_AT,), **how._asdict())
    module = Classifier(5, **settings)
    model = as_model(module, (8, 8, 3))
    params = weights(model)
    x, t = inputs(batch=3)
    found = forward(model, params, x, t)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    expected = classifier(params, np.asarray(x, np.float64), np.asarray(t, np.float64), how)
    assert found.shape == (3, 5) and expected.std() > 0.1
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
