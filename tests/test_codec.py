"""Codecs: the scale of latents, their KL, and what a run on latents refuses."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import make_config

from ddpm_jax import codec, data
from ddpm_jax.build import latents
from ddpm_jax.codec import Codec, Scale
from ddpm_jax.config import DataConfig
from ddpm_jax.data import latents as data_latents
from ddpm_jax.data.sources import ArraySource
from ddpm_jax.errors import UserError
from ddpm_jax.pixels import to_x_0
from ddpm_jax.training.objectives import clean_latents

SHAPE = (4, 6, 2)  # H, W, C
LATENT = (2, 3, 4)


def by_blocks(params, images):
    """Return moments that a hand can compute: the corner of each 2x2 block, in two roles."""
    corner = images[:, ::2, ::2]
    mean = jnp.concatenate([corner, 3.0 * corner + 1.0], axis=-1)
    return params * mean, jnp.zeros_like(mean) - 2.0


def repeat(params, z):
    return z[..., :2].repeat(2, axis=1).repeat(2, axis=2) / params


def a_codec(scale=None):
    scale = scale or Scale(np.zeros(4, np.float32), np.ones(4, np.float32))
    return Codec(jnp.float32(2.0), scale, by_blocks, repeat, SHAPE, LATENT, "abc")


def a_dataset(n=300, labels=3):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, *SHAPE), np.uint8)
    source = ArraySource(images, rng.integers(0, labels, n, np.int32))
    test = ArraySource(images[:20], np.zeros(20, np.int32))
    return data.Dataset(source, test, SHAPE, labels, tuple("abc"), digest="d")


def config_of(tmp_path, **fields):
    return DataConfig(**{"name": "array", "data_dir": str(tmp_path), "flip": True} | fields)


def test_the_kl_is_that_of_the_closed_form_for_each_gaussian():
    rng = np.random.default_rng(0)
    mean, log_variance = rng.normal(size=(2, 5, 2, 3, 4)).astype(np.float32)
    # KL(p | q) = H(p, q) - H(p), each from its own formula
    entropy = 0.5 * (np.log(2 * np.pi * np.e) + log_variance)
    cross = 0.5 * (np.log(2 * np.pi) + mean**2 + np.exp(log_variance))
    expected = (cross - entropy).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(codec.kl(mean, log_variance), expected, rtol=1e-5)
    assert float(codec.kl(jnp.zeros((1, 2)), jnp.zeros((1, 2)))[0]) == 0.0


def test_standardised_latents_have_mean_0_and_deviation_1_over_the_set():
    rng = np.random.default_rng(0)
    mean = rng.normal([3.0, -1.0], [0.1, 5.0], (4000, 3, 3, 2))
    log_variance = rng.normal([0.0, 2.0], 0.3, (4000, 3, 3, 2))
    moments = np.concatenate([mean, log_variance], axis=-1).astype(np.float32)
    scale = codec.scale_of(np.array_split(moments, 7))
    z = np.asarray(codec.standardised(scale, jnp.asarray(moments), jax.random.key(0)))
    error = 5 / np.sqrt(z[..., 0].size)
    np.testing.assert_allclose(z.mean(axis=(0, 1, 2)), 0.0, atol=error)
    np.testing.assert_allclose(z.std(axis=(0, 1, 2)), 1.0, atol=error)


def test_without_a_key_the_latents_are_the_mean():
    codec_ = a_codec(Scale(np.float32([1, 2, 3, 4]), np.float32([2, 2, 2, 4])))
    images = jnp.asarray(np.random.default_rng(0).normal(size=(3, *SHAPE)), jnp.float32)
    mean = np.asarray(by_blocks(2.0, images)[0])
    expected = (mean - np.float32([1, 2, 3, 4])) / np.float32([2, 2, 2, 4])
    chex.assert_trees_all_close(codec_.encode(images), expected, rtol=1e-6)
    drawn = codec_.encode(images, jax.random.key(0))
    spread = np.exp(-1.0) / np.float32([2, 2, 2, 4])
    assert 0 < np.abs(drawn - expected).max() < 5 * spread.max()


def test_decode_undoes_the_scale():
    images = jnp.ones((1, 2, 3, 1)).repeat(2, axis=1).repeat(2, axis=2).repeat(2, axis=3) * 0.3
    for scale in (None, Scale(np.float32([1, 2, 3, 4]), np.float32([2, 2, 2, 4]))):
        found = a_codec(scale).decode(a_codec(scale).encode(images))
        chex.assert_trees_all_close(found, images, rtol=1e-6)


def test_a_codec_is_an_argument_of_jit():
    codec_ = a_codec()
    run = jax.jit(lambda codec, x: codec.decode(codec.encode(x)))
    x = jnp.zeros((1, *SHAPE))
    run(codec_, x)
    run(dataclasses.replace(codec_, params=jnp.float32(3.0)), x)
    assert run._cache_size() == 1


@pytest.mark.parametrize("flip", [False, True])
def test_the_latents_of_a_set_are_those_of_its_images(tmp_path, flip):
    dataset, codec_ = a_dataset(), a_codec()
    seen = []
    found, scale = data_latents.encoded(
        config_of(tmp_path, flip=flip), dataset, codec_, lambda *report: seen.append(report)
    )
    assert (len(found.train), len(found.test)) == (300, 20)
    indices, mirrored = np.array([7, 3, 299, 7]), np.array([False, True, True, False]) & flip
    moments, labels = found.train.read(indices, mirrored if flip else None)
    images, expected_labels = dataset.train.read(indices, mirrored)
    expected = codec_.moments(to_x_0(jnp.asarray(images)))
    assert moments.dtype == np.float16 and moments.shape == (4, 2, 3, 8)
    np.testing.assert_allclose(moments, expected, atol=2e-3)
    np.testing.assert_array_equal(labels, expected_labels)
    total = 620 if flip else 320  # the test images are never mirrored
    assert seen[-1][1:] == (total, total)

    every = codec_.moments(to_x_0(jnp.asarray(dataset.train.images)))
    mean, deviation = codec.scale_of([np.asarray(every)])
    np.testing.assert_allclose(scale.mean, mean, atol=1e-3)
    np.testing.assert_allclose(scale.deviation, deviation, rtol=1e-3)


def test_latents_are_computed_once_for_one_codec_and_one_set(tmp_path):
    dataset, codec_, config = a_dataset(), a_codec(), config_of(tmp_path)
    calls = []

    def encode(codec, dataset, config=config):
        calls.clear()
        data_latents.encoded(config, dataset, codec, lambda *report: calls.append(report))
        return bool(calls)

    assert encode(codec_, dataset) and not encode(codec_, dataset)
    assert encode(dataclasses.replace(codec_, digest="other"), dataset)
    other = dataclasses.replace(dataset, train=ArraySource(255 - dataset.train.images,
                                                           dataset.train.labels))  # fmt: skip
    assert encode(codec_, other)
    assert encode(codec_, dataset, dataclasses.replace(config, flip=False))
    assert not [path for path in (tmp_path / "latents").iterdir() if path.name.startswith(".")]


def test_damaged_latents_are_named(tmp_path):
    dataset, codec_, config = a_dataset(), a_codec(), config_of(tmp_path)
    data_latents.encoded(config, dataset, codec_)
    (directory,) = (tmp_path / "latents").iterdir()
    path = directory / "train_moments_0.npy"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="latents in .* are damaged .*; remove that directory"):
        data_latents.encoded(config, dataset, codec_)


def test_latents_that_cannot_be_written_are_an_error_and_leave_nothing(tmp_path):
    (tmp_path / "latents").write_text("a file")
    with pytest.raises(UserError, match="cannot be written.*set data.data_dir"):
        data_latents.encoded(config_of(tmp_path), a_dataset(), a_codec())
    assert (tmp_path / "latents").read_text() == "a file"


def test_each_step_draws_its_latents_anew_and_not_with_the_noise_of_the_process():
    moments = jnp.zeros((2000, 1, 1, 2), jnp.float16)
    clean_fn = clean_latents(Scale(np.zeros(1, np.float32), np.ones(1, np.float32)))
    key = jax.random.key(0)
    first, again = (clean_fn(key, {"image": moments}) for _ in range(2))
    other = clean_fn(jax.random.key(1), {"image": moments})
    eps = jax.random.normal(key, first.shape)
    assert (first == again).all()
    for x in (other, eps):
        assert abs(np.corrcoef(first.ravel(), x.ravel())[0, 1]) < 5 / np.sqrt(2000)


def test_a_latent_is_kept_if_all_of_its_pixels_are():
    mask = np.ones((4, 6, 1), bool)
    mask[1, 0] = mask[2:, 4:] = False
    kept = latents.grid_mask(a_codec(), mask)
    assert kept[..., 0].tolist() == [[False, True, True], [True, True, False]]
    assert latents.grid_mask(None, mask) is mask


def test_what_is_collected_is_decoded_if_it_is_latents():
    codec_ = a_codec()

    def sample(params, n, collect):
        x = jnp.full((n, *LATENT), params)
        return (x, (jnp.arange(5), jnp.zeros((5, n, *LATENT)))) if collect else x

    decoded = latents.decoded(sample, codec_)
    assert decoded(0.5, 3, False).shape == (3, *SHAPE)
    images, (steps, frames) = decoded(0.5, 3, True)
    assert (images.shape, steps.shape, frames.shape) == ((3, *SHAPE), (5,), (5, 3, *SHAPE))
    assert float(decoded(9.0, 1, False).max()) == 1.0  # images are in [-1, 1]
    assert latents.decoded(sample, None) is sample


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss__objective": "vlb"}, "loss.objective is vlb"),
        ({"loss__objective": "hybrid"}, "loss.objective is hybrid"),
        ({"process__schedule": "learned"}, "process.schedule is learned"),
        ({"model__super_resolution": 2}, "model.super_resolution is 2"),
        ({"sample__dynamic_threshold": 0.9}, "sample.clip_latents"),
    ],
)
def test_a_run_on_latents_refuses_what_needs_pixels(changes, words):
    with pytest.raises(UserError, match=words):
        latents.check(make_config(data__codec="somewhere", **changes))


def test_latents_are_not_clipped_unless_asked_for():
    assert latents.clip(make_config()) is True
    assert latents.clip(make_config(data__codec="x")) == 0.0
    assert latents.clip(make_config(data__codec="x", sample__clip_latents=4.0)) == 4.0
    with pytest.raises(UserError, match="sample.clip_latents is 4.0, but data.codec is empty"):
        latents.check(make_config(sample__clip_latents=4.0))
