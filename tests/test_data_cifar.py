"""CIFAR from archives in the upstream layout; TFDS's own builder reads the result."""

import dataclasses
import io
import pathlib
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds

from ddpm_jax.config import DataConfig
from ddpm_jax.data import datasets, open_dataset
from ddpm_jax.data.cifar import Cifar10, Cifar100
from ddpm_jax.errors import UserError
from ddpm_jax.runtime.files import sha256

NAMES_10 = "airplane automobile bird cat deer dog frog horse ship truck".split()
NAMES_100 = [f"fine {i:02}" for i in range(100)]
NAMES_20 = [f"coarse {i:02}" for i in range(20)]


def write_archive(path: pathlib.Path, folder: str, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def rows(images: np.ndarray, *labels: np.ndarray) -> bytes:
    """Return rows in the upstream layout: the label bytes, then a red, a green, a blue plane."""
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([np.stack(labels, 1), planes], axis=1).astype(np.uint8).tobytes()


@pytest.fixture(scope="module")
def truth() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 32, 32, 3), np.uint8)
    fine = np.arange(60) * 7 % 100
    return {"images": images, "label": np.arange(60) % 10, "fine": fine, "coarse": fine // 5}


@pytest.fixture
def cifar(tmp_path, monkeypatch, truth):
    """Archives of 50 training and 10 test images, placed by hand, with the checksums to match."""
    images, label = truth["images"], truth["label"]
    parts = {f"data_batch_{i + 1}.bin": slice(10 * i, 10 * i + 10) for i in range(5)}
    parts["test_batch.bin"] = slice(50, 60)
    files = {name: rows(images[part], label[part]) for name, part in parts.items()}
    files["batches.meta.txt"] = "\n".join([*NAMES_10, "", ""]).encode()
    write_archive(tmp_path / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", files)
    parts = {"train.bin": slice(0, 50), "test.bin": slice(50, 60)}
    files = {
        name: rows(images[part], truth["coarse"][part], truth["fine"][part])
        for name, part in parts.items()
    }
    files["fine_label_names.txt"] = "\n".join([*NAMES_100, ""]).encode()
    files["coarse_label_names.txt"] = "\n".join([*NAMES_20, ""]).encode()
    write_archive(tmp_path / "cifar-100-binary.tar.gz", "cifar-100-binary", files)
    for builder in (Cifar10, Cifar100):
        checksum = sha256(tmp_path / builder.ARCHIVE.filename)
        archive = dataclasses.replace(builder.ARCHIVE, sha256=checksum)
        fake = type(
            "Fake", (builder,), {"ARCHIVE": archive, "name": builder.name}, skip_registration=True
        )
        monkeypatch.setitem(datasets.BUILDERS, builder.name, fake)

    def config(name: str) -> DataConfig:
        return DataConfig(name=name, data_dir=str(tmp_path / "data"), manual_dir=str(tmp_path))

    return config


@pytest.mark.parametrize(
    ("name", "key", "names"), [("cifar10", "label", NAMES_10), ("cifar100", "fine", NAMES_100)]
)
def test_images_and_labels_are_those_of_the_archive(cifar, truth, name, key, names):
    dataset = open_dataset(cifar(name))
    assert dataset.image_shape == (32, 32, 3)
    assert dataset.num_classes == len(names) and dataset.class_names == tuple(names)
    for source, part in ((dataset.train, slice(0, 50)), (dataset.test, slice(50, 60))):
        images, labels = source.read(np.arange(len(source)))
        expected = {
            image.tobytes(): label
            for image, label in zip(truth["images"][part], truth[key][part], strict=True)
        }
        found = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
        assert found == expected


def test_tfds_itself_reads_what_was_prepared_and_keeps_its_own_builder(cifar, truth):
    config = cifar("cifar10")
    open_dataset(config)
    stock = tfds.builder("cifar10", data_dir=config.data_dir, file_format="array_record")
    assert type(stock).__module__.startswith("tensorflow_datasets.")
    assert type(stock).VERSION == Cifar10.VERSION
    assert set(stock.info.features) == set(Cifar10(data_config=config).info.features)
    records = stock.as_data_source("train")
    assert len(records) == 50
    for record in records:
        index = int(record["id"].decode().removeprefix("train_"))
        np.testing.assert_array_equal(record["image"], truth["images"][index])
        assert record["label"] == truth["label"][index]
    stock_100 = tfds.builder("cifar100", data_dir=config.data_dir)
    assert type(stock_100).VERSION == Cifar100.VERSION
    assert set(stock_100.info.features) == set(Cifar100(data_config=config).info.features)


def test_a_wrong_archive_is_refused_and_nothing_is_prepared(cifar, tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    config = cifar("cifar10")
    with pytest.raises(UserError, match="expected sha256 .*, found") as caught:
        open_dataset(config)
    assert str(path) in str(caught.value) and sha256(path) in str(caught.value)
    assert not list((tmp_path / "data").glob("cifar10/*"))
    path.write_bytes(whole)
    assert len(open_dataset(config).train) == 50


def test_the_real_archives_are_the_ones_tfds_knows():
    known = tfds.core.download.checksums.get_all_url_infos()
    for builder in (Cifar10, Cifar100):
        archive = builder.ARCHIVE
        info = known[archive.url]
        assert (info.checksum, info.size) == (archive.sha256, archive.size)
        assert info.filename == archive.filename
