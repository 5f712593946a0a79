"""MNIST and Fashion-MNIST from files in the upstream layout."""

import gzip
import struct

import numpy as np
import pytest
import tensorflow_datasets as tfds

from ddpm_jax.config import DataConfig
from ddpm_jax.data import datasets, open_dataset
from ddpm_jax.data.mnist import FashionMnist, Mnist, read_idx
from ddpm_jax.errors import UserError
from ddpm_jax.runtime.files import sha256

NUM_TRAIN, NUM_TEST = 40, 12


def idx(array: np.ndarray) -> bytes:
    """Return the array as a gzipped IDX file of unsigned bytes."""
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}i", *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def upstream(tmp_path, monkeypatch):
    """Both sets have files of the same names, so each set has its own directory."""
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
            archives[file] = ((folder / file).stat().st_size, sha256(folder / file))
        attributes = {"ARCHIVES": archives, "name": builder.name}
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
    with pytest.raises(UserError, match="expected sha256 .* named after that set"):
        open_dataset(config(tmp_path, "fashion_mnist"))


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 4, 6)])
def test_idx_files_are_read_in_their_shape(tmp_path, shape):
    array = np.random.default_rng(1).integers(0, 256, shape)
    (tmp_path / "x.gz").write_bytes(idx(array))
    np.testing.assert_array_equal(read_idx(tmp_path / "x.gz"), array)


def test_the_real_files_are_the_ones_tfds_knows(tmp_path):
    known = tfds.core.download.checksums.get_all_url_infos()
    for builder in (Mnist, FashionMnist):
        assert len(builder.ARCHIVES) == 4
        for file, (size, checksum) in builder.ARCHIVES.items():
            info = known[builder.URL + file]
            assert (info.checksum, info.size, info.filename) == (checksum, size, file)
        stock = tfds.builder(builder.name, data_dir=tmp_path)
        assert type(stock).VERSION == builder.VERSION
        ours = builder(data_config=config(tmp_path, builder.name), data_dir=str(tmp_path))
        assert set(ours.info.features) == set(stock.info.features)
        assert ours.info.features["label"].names == stock.info.features["label"].names
