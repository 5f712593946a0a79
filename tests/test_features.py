"""Features on several devices, the small classifier, and what is kept on disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import small_classifier
from ddpm_jax.evaluation.features import FeatureNetwork, make_features
from ddpm_jax.models import digest
from ddpm_jax.runtime import files

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (37, 6, 5, 3), np.uint8)
WEIGHTS = RNG.normal(size=(90, 11)).astype(np.float32)
NETWORK = FeatureNetwork(
    "test",
    digest(WEIGHTS),
    lambda params, images: jnp.tanh(
        (images.astype(jnp.float32) / 255.0).reshape(len(images), -1) @ params
    ),
    WEIGHTS,
)


@pytest.mark.parametrize("num_devices", [1, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 16, 64])
def test_features_depend_on_neither_devices_nor_batch_size(num_devices, batch_size):
    features = make_features(
        NETWORK, batch_size=batch_size, devices=jax.local_devices()[:num_devices]
    )
    found = features(IMAGES)
    expected = np.tanh((IMAGES / 255.0).reshape(37, -1) @ WEIGHTS.astype(np.float64))
    assert found.dtype == np.float32 and isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(features(IMAGES[:3]), expected[:3], atol=1e-5)


def test_all_local_devices_share_the_images_and_it_compiles_once():
    shapes = []

    def apply(params, images):
        shapes.append(images.shape)
        return images.reshape(len(images), -1).astype(jnp.float32)

    features = make_features(FeatureNetwork("count", "", apply), batch_size=12)
    for n in (37, 5, 16):
        np.testing.assert_array_equal(features(IMAGES[:n]), IMAGES[:n].reshape(len(IMAGES[:n]), -1))
    assert shapes == [(16, 6, 5, 3)]  # 12 rounded up to the eight devices


def test_a_digest_tells_weights_apart():
    assert digest({"a": WEIGHTS}) == digest({"a": WEIGHTS.copy()})
    assert digest({"a": WEIGHTS}) != digest({"a": np.nextafter(WEIGHTS, 9)})
    assert digest(WEIGHTS) != digest(WEIGHTS.reshape(-1))


@pytest.fixture(scope="module")
def digits():
    found = load_digits()
    images = np.round(found.images * (255 / 16)).astype(np.uint8)[..., None]
    test = np.arange(len(images)) % 5 == 0
    sets = images[~test], found.target[~test], images[test], found.target[test]
    return sets, small_classifier.train(*sets)


def test_the_classifier_of_digits_knows_them(digits):
    (_, _, test_images, test_labels), arrays = digits
    assert arrays["accuracy"] > 0.95
    network = small_classifier.as_network(arrays)
    features = make_features(network)(test_images)
    weights, bias = network.head
    assert features.shape == (len(test_images), small_classifier.HIDDEN) and features.min() == 0.0
    logits = features @ weights + bias
    # JAX's forward pass is scikit-learn's: it is right as often, to the image
    assert (logits.argmax(axis=1) == test_labels).mean() == pytest.approx(float(arrays["accuracy"]))


@pytest.mark.slow
def test_the_classifier_is_the_same_again(digits):
    sets, arrays = digits
    again = small_classifier.train(*sets)
    for name, value in arrays.items():
        np.testing.assert_array_equal(again[name], value)


def test_two_classes_of_large_images_have_two_logits():
    """Bright against dark, 80 x 40: made smaller before they are looked at."""
    labels = np.arange(60) % 2
    images = (RNG.integers(0, 100, (60, 80, 40, 1)) + 150 * labels[:, None, None, None]).astype(
        np.uint8
    )
    arrays = small_classifier.train(images, labels, images, labels)
    assert arrays["accuracy"] == 1.0 and arrays["weights_1"].shape == (32 * 32, 64)
    network = small_classifier.as_network(arrays)
    logits = make_features(network)(images) @ network.head[0] + network.head[1]
    assert logits.shape == (60, 2)
    np.testing.assert_array_equal(logits.argmax(axis=1), labels)


def test_one_class_is_refused():
    with pytest.raises(UserError, match="at least two classes"):
        small_classifier.train(IMAGES, np.zeros(37, int), IMAGES, np.zeros(37, int))


def test_what_is_kept_is_made_once_for_each_set_of_facts(tmp_path, caplog):
    made = []

    def make():
        made.append(1)
        return {"a": np.arange(len(made))}

    directory = tmp_path / "new" / "cache"
    for facts in ({"n": 1, "split": "train"}, {"split": "train", "n": 1}):
        found = files.load_or_make(directory, "thing", facts, make)
        np.testing.assert_array_equal(found["a"], [0])
    assert found.keys() == {"a"}
    assert len(files.load_or_make(directory, "my/thing", {"n": 2}, make)["a"]) == 2
    paths = sorted(directory.iterdir())
    assert len(paths) == 2
    for path in paths:
        path.write_bytes(path.read_bytes()[:50])  # a kill, a full disk
    assert len(files.load_or_make(directory, "my/thing", {"n": 2}, make)["a"]) == 3
    assert "made again" in caplog.text
    assert len(files.load_or_make(directory, "my/thing", {"n": 2}, make)["a"]) == 3


def test_a_cache_that_cannot_be_written_is_said_and_gone_without(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    found = files.load_or_make(tmp_path / "file", "thing", {}, lambda: {"a": np.ones(2)})
    np.testing.assert_array_equal(found["a"], 1.0)
    assert "cannot be written" in caplog.text
