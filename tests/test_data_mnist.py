"""MNIST and Fashion-MNIST from files in the upstream layout."""

import gzip
import hashlib
import pathlib
import shutil
import struct
import tracemalloc

import numpy as np
import pytest
import tensorflow_datasets as tfds

from ddpm_jax.config import DataConfig
from ddpm_jax.data import datasets, open_dataset
from ddpm_jax.data.mnist import FashionMnist, Mnist, read_idx
from ddpm_jax.errors import UserError
from ddpm_jax.runtime.files import Package

NUM_TRAIN, NUM_TEST = 40, 12


def idx(array: np.ndarray) -> bytes:
    """Return the array as a gzipped IDX file of unsigned bytes."""
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}i", *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def upstream(tmp_path, monkeypatch):
    """Both sets have files of the same names, so each set has its own directory.

    The URL answers no one, and the Debian package has the directory `system`, which is absent.
    """
    rng = np.random.default_rng(0)
    truth = {}
    for builder in (Mnist, FashionMnist):
        arrays = {}
        for part, count in (("train", NUM_TRAIN), ("t10k", NUM_TEST)):
            arrays[f"{part}-images-idx3-ubyte.gz"] = rng.integers(0, 256, (count, 28, 28))
            arrays[f"{part}-labels-idx1-ubyte.gz"] = rng.integers(0, 10, count)
        folder = tmp_path / builder.name
        folder.mkdir()
        archives = {}
        for file, array in arrays.items():
            (folder / file).write_bytes(idx(array))
            content = gzip.decompress(idx(array))
            archives[file] = (len(content), hashlib.sha256(content).hexdigest())
        package = builder.PACKAGE and Package(builder.PACKAGE.name, str(tmp_path / "system"))
        attributes = {
            "ARCHIVES": archives,
            "name": builder.name,
            "URL": "http://127.0.0.1:1/",
            "PACKAGE": package,
        }
        fake = type("Fake", (builder,), attributes, skip_registration=True)
        monkeypatch.setitem(datasets.BUILDERS, builder.name, fake)
        truth[builder.name] = list(arrays.values())
    return truth


def config(tmp_path, name: str) -> DataConfig:
    return DataConfig(name=name, data_dir=str(tmp_path / "data"), manual_dir=str(tmp_path))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_images_and_labels_are_those_of_the_files(tmp_path, upstream, name):
    dataset = open_dataset(config(tmp_path, name))
    train_images, train_labels, test_images, test_labels = upstream[name]
    assert dataset.image_shape == (28, 28, 1) and dataset.num_classes == 10
    assert dataset.class_names[0] == {"mnist": "0", "fashion_mnist": "T-shirt/top"}[name]
    for source, images, labels in (
        (dataset.train, train_images, train_labels),
        (dataset.test, test_images, test_labels),
    ):
        read, read_labels = source.read(np.arange(len(source)))
        expected = {i.astype(np.uint8).tobytes(): x for i, x in zip(images, labels, strict=True)}
        assert {i.tobytes(): x for i, x in zip(read, read_labels, strict=True)} == expected


def test_the_other_sets_file_of_the_same_name_is_refused(tmp_path, upstream):
    for file in (tmp_path / "mnist").iterdir():
        file.rename(tmp_path / file.name)
    for file in (tmp_path / "fashion_mnist").iterdir():
        file.unlink()
    assert len(open_dataset(config(tmp_path, "mnist")).train) == NUM_TRAIN
    with pytest.raises(UserError, match="expected uncompressed sha256 .* named after that set"):
        open_dataset(config(tmp_path, "fashion_mnist"))


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 4, 6)])
def test_idx_files_are_read_in_their_shape(tmp_path, shape):
    array = np.random.default_rng(1).integers(0, 256, shape)
    (tmp_path / "x.gz").write_bytes(idx(array))
    np.testing.assert_array_equal(read_idx(tmp_path / "x.gz"), array)


@pytest.fixture
def system(tmp_path, upstream) -> pathlib.Path:
    """The directory of the Debian package, with the files of Fashion-MNIST compressed again."""
    system = tmp_path / "system"
    (tmp_path / "fashion_mnist").rename(system)
    for path in system.iterdir():
        before = path.read_bytes()
        path.write_bytes(gzip.compress(gzip.decompress(before), compresslevel=1, mtime=7))
        assert path.read_bytes() != before
    return system


def refusal(tmp_path, name: str) -> str:
    """Return the one line with which the set is refused; nothing of it is prepared."""
    with pytest.raises(UserError) as caught:
        open_dataset(config(tmp_path, name))
    assert "\n" not in str(caught.value)
    assert [path for path in (tmp_path / "data").rglob("*") if path.is_file()] == []
    assert list((tmp_path / "data").glob(f"{name}/*")) == []
    return str(caught.value)


def test_the_files_of_the_debian_package_are_read(tmp_path, upstream, system):
    dataset = open_dataset(config(tmp_path, "fashion_mnist"))
    assert (len(dataset.train), len(dataset.test)) == (NUM_TRAIN, NUM_TEST)
    images, _ = dataset.train.read(np.arange(NUM_TRAIN))
    assert images.sum() == upstream["fashion_mnist"][0].sum()


def test_files_placed_by_hand_come_before_those_of_the_package(tmp_path, system):
    shutil.copytree(system, tmp_path / "fashion_mnist")
    for path in system.iterdir():
        path.write_bytes(b"")
    assert len(open_dataset(config(tmp_path, "fashion_mnist")).train) == NUM_TRAIN


def changed(data: bytes) -> bytes:
    """Return a whole gzip file, in which one byte of the content is another one."""
    content = bytearray(gzip.decompress(data))
    content[-1] ^= 1
    return gzip.compress(content)


DAMAGE = {
    "changed": (changed, "expected uncompressed sha256"),
    "half": (lambda data: data[: len(data) // 2], "cannot be read (Compressed file ended"),
    "empty": (lambda data: b"", "expected uncompressed sha256"),
    "plain": (gzip.decompress, "cannot be read (Not a gzipped file"),
    "bad block": (lambda data: data[:10] + b"\xff" * 40 + data[50:], "cannot be read (Error -3"),
    "bad sum": (lambda data: data[:-8] + bytes(8), "cannot be read (CRC check failed"),
    "longer": (
        lambda data: gzip.compress(gzip.decompress(data) + bytes(99)),
        f"found more than {16 + NUM_TRAIN * 784} bytes",
    ),
    "directory": (None, "it is not a file"),
}


@pytest.mark.parametrize("place", ["system", "fashion_mnist"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_wrong_file_in_either_directory_is_named(tmp_path, system, place, damage):
    if place != "system":
        system.rename(tmp_path / place)
    damaged, words = DAMAGE[damage]
    path = tmp_path / place / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    path.unlink()
    if damaged:
        path.write_bytes(damaged(whole))
    else:
        path.mkdir()
    message = refusal(tmp_path, "fashion_mnist")
    assert message.startswith(f"{path} is not http://127.0.0.1:1/{path.name}: ")
    assert words in message
    remedy = "apt install --reinstall dataset-fashion-mnist" if place == "system" else "remove it"
    assert remedy in message


def test_a_content_that_would_fill_the_memory_is_read_up_to_its_right_size(tmp_path, system):
    (system / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(10**7)))
    tracemalloc.start()
    try:
        message = refusal(tmp_path, "fashion_mnist")
        assert tracemalloc.get_traced_memory()[1] < 5 * 10**6
    finally:
        tracemalloc.stop()
    assert f"found more than {8 + NUM_TEST} bytes" in message


def test_a_missing_set_names_the_debian_package_if_there_is_one(tmp_path, upstream):
    for name in upstream:
        shutil.rmtree(tmp_path / name)
        message = refusal(tmp_path, name)
        assert "cannot download http://127.0.0.1:1/train-images-idx3-ubyte.gz" in message
        assert ("apt install dataset-fashion-mnist" in message) == (name == "fashion_mnist")


@pytest.mark.slow
@pytest.mark.skipif(
    not pathlib.Path(FashionMnist.PACKAGE.directory).is_dir(),
    reason="needs Debian's dataset-fashion-mnist",
)
def test_the_real_set_of_the_debian_package(tmp_path):
    """The mean of 0.2860 and the deviation of 0.3530 are the figures that others state."""
    whole = DataConfig(name="fashion_mnist", data_dir=str(tmp_path), image_size=32, crop="pad")
    dataset = open_dataset(whole)
    assert dataset.class_names == FashionMnist.CLASS_NAMES and dataset.image_shape == (32, 32, 1)
    assert (len(dataset.train), len(dataset.test)) == (60_000, 10_000)
    images, labels = dataset.train.read(np.arange(60_000))
    assert np.bincount(labels).tolist() == [6_000] * 10
    garments = images[:, 2:-2, 2:-2] / np.float32(255)
    np.testing.assert_allclose([garments.mean(), garments.std()], [0.2860, 0.3530], atol=1e-4)
    assert images.sum() == 3_431_114_169  # so the frame is black
    test_images, test_labels = dataset.test.read(np.arange(10_000))
    assert np.bincount(test_labels).tolist() == [1_000] * 10
    assert test_images.sum() == 573_469_082
    # Trousers have two legs, a bag has none: the middle of the lowest rows is dark, or it is not.
    legs = [test_images[test_labels == label][:, 24:28, 15:17].mean() for label in (1, 8)]
    assert legs[0] < 50 < 100 < legs[1]


def test_the_real_files_are_at_the_addresses_that_tfds_knows(tmp_path):
    known = tfds.core.download.checksums.get_all_url_infos()
    for builder in (Mnist, FashionMnist):
        assert len(builder.ARCHIVES) == 4
        for file, (size, _) in builder.ARCHIVES.items():
            assert known[builder.URL + file].filename == file
            count = 60_000 if file.startswith("train") else 10_000
            assert size == (16 + 784 * count if "images" in file else 8 + count)
        stock = tfds.builder(builder.name, data_dir=tmp_path)
        assert type(stock).VERSION == builder.VERSION
        ours = builder(data_config=config(tmp_path, builder.name), data_dir=str(tmp_path))
        assert set(ours.info.features) == set(stock.info.features)
        assert ours.info.features["label"].names == stock.info.features["label"].names
