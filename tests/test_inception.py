"""The Inception of the FID against torch-fidelity's on the same weights, and its errors.

The published weights are a download of 96 MB, so the weights here are random. They test the
architecture, the order of axes and the resize: everything that the library does with the file.
"""

import dataclasses

import fidelity
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax.evaluation.inception
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.features import make_features
from ddpm_jax.pretrained.inception import Inception, from_state, inception_features, resize_tf1
from ddpm_jax.pretrained.torch_file import read_tensors


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("inception")


@pytest.fixture(scope="module")
def theirs(directory):
    pytest.importorskip("torch")
    return fidelity.extractor(directory / "zip.pth")


@pytest.fixture(scope="module")
def state(theirs, directory):
    return read_tensors(directory / "zip.pth")


def hold(found, expected):
    """Compare features: to 1e-4 of their size, and to 1e-3 of the differences between images."""
    expected = expected.numpy()
    assert found.shape == expected.shape and found.dtype == np.float32
    spread = expected.std(axis=0).mean()
    assert spread > 0.03
    assert np.abs(found - expected).max() < min(1e-4 * np.abs(expected).max(), 1e-3 * spread)


@pytest.mark.slow
def test_features_and_logits_agree_with_torch_fidelity(theirs, state, directory):
    """The file has the legacy format, as the published file has."""
    import torch

    path = directory / "legacy.pth"
    torch.save(theirs.state_dict(), path, _use_new_zipfile_serialization=False)
    legacy = read_tensors(path)
    assert list(legacy) == list(state) and len(state) > 470
    for name in state:
        np.testing.assert_array_equal(legacy[name], state[name])
    images = fidelity.images(2, 4, 64, 48)
    found = jax.jit(inception_features)(from_state(legacy), images)
    pool, logits = theirs(fidelity.channels_first(images))
    hold(found["pool"], pool)
    hold(found["logits_unbiased"], logits)


@pytest.mark.slow
def test_the_network_of_features_is_torch_fidelitys(theirs, directory):
    network = ddpm_jax.evaluation.inception.load(str(directory), str(directory / "zip.pth"))
    assert network.name.startswith("inception_")  # other weights give no FID
    images = fidelity.images(3, 5)
    found = make_features(network, batch_size=4, devices=jax.local_devices()[:1])(images)
    pool, logits = theirs(fidelity.channels_first(images))
    hold(found, pool)
    weights, bias = network.head
    hold(found @ weights + bias, logits)
    params = jax.eval_shape(lambda: network.params)
    grey = jax.eval_shape(network.apply, params, jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.uint8))
    assert grey.shape == (2, 2048)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(32, 32), (64, 48), (299, 299), (400, 512), (1, 7)])
def test_resizing_agrees_with_torch_fidelity(size):
    resize = fidelity.module("interpolate_compat_tensorflow")
    images = fidelity.images(4, 2, *size)
    expected = resize.interpolate_bilinear_2d_like_tensorflow1x(
        fidelity.channels_first(images).float(), size=(299, 299), align_corners=False
    )
    found = resize_tf1(jnp.asarray(images, jnp.float32), (299, 299))
    expected = np.moveaxis(expected.numpy(), 1, -1)
    np.testing.assert_allclose(found, expected, atol=1e-5 * 255)


@pytest.mark.parametrize(
    ("size", "out"), [((5, 8), (12, 9)), ((32, 20), (7, 299)), ((1, 3), (4, 2))]
)
def test_resizing_is_linear_interpolation_at_i_in_over_out(size, out):
    x = np.random.default_rng(0).normal(size=(2, *size, 3))
    expected = x
    for axis, n in ((1, out[0]), (2, out[1])):
        places = np.arange(n) * expected.shape[axis] / n  # np.interp repeats the last pixel
        lines = lambda line, r=places: np.interp(r, np.arange(len(line)), line)  # noqa: E731
        expected = np.apply_along_axis(lines, axis, expected)
    np.testing.assert_allclose(resize_tf1(jnp.asarray(x, jnp.float32), out), expected, atol=2e-5)


def test_resizing_to_the_same_size_is_the_identity():
    x = jnp.asarray(fidelity.images(5, 1, 6, 9), jnp.float32)
    np.testing.assert_array_equal(resize_tf1(x, (6, 9)), x)


def primitives(jaxpr, name):
    """Return all equations of a primitive, nested ones included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == name:
            yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from primitives(inner, name)


def test_every_product_is_of_the_highest_precision():
    x = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
    params = jax.eval_shape(Inception().init, jax.random.key(0), x)
    jaxpr = jax.make_jaxpr(Inception().apply)(params, x).jaxpr
    convolutions = [*primitives(jaxpr, "conv_general_dilated")]
    products = [*primitives(jaxpr, "dot_general")]
    assert (len(convolutions), len(products)) == (94, 1)
    highest = jax.lax.Precision.HIGHEST
    assert all(e.params["precision"] == (highest, highest) for e in convolutions + products)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((2, 8, 8, 1), np.uint8),
        np.zeros((8, 8, 3), np.uint8),
    ],
)
def test_other_images_are_refused(images):
    with pytest.raises(UserError, match="uint8 .N, H, W, 3., found"):
        inception_features({}, images)


def test_other_tensors_are_refused_by_name(state):
    name = "Mixed_7c.branch_pool.conv.weight"
    fewer = {n: t for n, t in state.items() if n != name}
    with pytest.raises(UserError, match=f"lack '{name}'"):
        from_state(fewer)
    with pytest.raises(UserError, match="have unknown 'AuxLogits.fc.weight'"):
        from_state({**state, "AuxLogits.fc.weight": state[name]})
    for other in (state[name][:, :, 0], state[name][1:], state[name].astype(np.float64)):
        with pytest.raises(UserError, match=f"'{name}' is float"):
            from_state({**state, name: other})
    with pytest.raises(UserError, match="'fc.weight' is float32 .1000, 2048.,"):  # torchvision's
        from_state({**state, "fc.weight": state["fc.weight"][:1000]})
    unused = {"fc.bias", *(n for n in state if n.endswith("num_batches_tracked"))}
    assert len(unused) == 95
    from_state({n: t for n, t in state.items() if n not in unused})


def test_without_a_network_it_says_where_to_put_the_file(tmp_path, monkeypatch):
    url = f"http://127.0.0.1:1/{ddpm_jax.evaluation.inception.WEIGHTS.filename}"
    weights = dataclasses.replace(ddpm_jax.evaluation.inception.WEIGHTS, url=url)
    monkeypatch.setattr(ddpm_jax.evaluation.inception, "WEIGHTS", weights)
    with pytest.raises(UserError) as caught:
        ddpm_jax.evaluation.inception.load(str(tmp_path))
    for words in (url, weights.filename, weights.sha256, str(tmp_path / "manual/inception")):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    (tmp_path / "manual").mkdir()
    (tmp_path / "manual" / weights.filename).write_bytes(b"another file")
    with pytest.raises(UserError, match=f"expected sha256 {weights.sha256}"):
        ddpm_jax.evaluation.inception.load(str(tmp_path))


def test_a_file_placed_by_hand_is_taken(theirs, state, tmp_path, directory, monkeypatch):
    (tmp_path / "manual").mkdir()
    weights = ddpm_jax.evaluation.inception.WEIGHTS
    path = tmp_path / "manual" / weights.filename
    path.symlink_to(directory / "zip.pth")
    digest = ddpm_jax.evaluation.inception.sha256(path)
    weights = dataclasses.replace(weights, sha256=digest)
    monkeypatch.setattr(ddpm_jax.evaluation.inception, "WEIGHTS", weights)
    network = ddpm_jax.evaluation.inception.load(str(tmp_path))
    assert (network.name, network.digest) == ("inception", digest[:16])
    np.testing.assert_array_equal(network.head[0], state["fc.weight"].T)


def test_the_checksum_begins_as_the_files_name_says():
    weights = ddpm_jax.evaluation.inception.WEIGHTS
    assert weights.filename.removesuffix(".pth").endswith(f"-{weights.sha256[:8]}")
    assert len(weights.sha256) == 64
