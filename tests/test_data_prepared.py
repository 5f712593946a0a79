"""Sets that TFDS prepared, sets that are not prepared, and what TFDS prints during it."""

import io
import json
import os
import pathlib
import resource
import shutil
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from ddpm_jax.config import DataConfig
from ddpm_jax.data import open_dataset, prepared
from ddpm_jax.data.digits import Digits
from ddpm_jax.errors import UserError


class Flowers(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The same files as `tfds build oxford_flowers102 --file_format=array_record`, but smaller."""

    name = "oxford_flowers102"
    VERSION = tfds.core.Version("2.1.1")
    FEATURES = {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(names=["rose", "pansy"]),
        "file_name": tfds.features.Text(),
    }

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(self.FEATURES)
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(12), "validation": self._generate_examples(5)}

    def _generate_examples(self, count):
        for i in range(count):
            image = Image.new("RGB", (20 + i, 30), (20 * i, 0, 0))
            image.paste((0, 0, 255), (0, 0, 20 + i, 4))  # a blue strip at the top
            record = {"image": image, "label": i % 2, "file_name": f"{i}.jpg"}
            yield i, {key: record[key] for key in self.FEATURES}


@pytest.fixture
def data_dir(tmp_path, capfd) -> str:
    Flowers(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    capfd.readouterr()
    return str(tmp_path)


@pytest.fixture(scope="module")
def prepared_digits(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("digits")
    open_dataset(DataConfig(name="digits", data_dir=str(path)))
    return path


@pytest.fixture
def digits_dir(tmp_path, prepared_digits) -> pathlib.Path:
    """A directory in which the digits are prepared."""
    return shutil.copytree(prepared_digits, tmp_path / "data")


def refusal(**kwargs) -> str:
    with pytest.raises(UserError) as caught:
        open_dataset(DataConfig(**kwargs))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["oxford_flowers102", "oxford_flowers102:2.1.1"])
def test_a_set_prepared_elsewhere_is_read(data_dir, name):
    dataset = open_dataset(
        DataConfig(name=name, data_dir=data_dir, test_split="validation", image_size=16)
    )
    assert dataset.image_shape == (16, 16, 3) and dataset.class_names == ("rose", "pansy")
    assert (len(dataset.train), len(dataset.test)) == (12, 5)
    images, labels = dataset.train.read(np.arange(12))
    shades = np.round(images[:, 8, 8, 0] / 20).astype(int)
    assert sorted(shades) == list(range(12))
    np.testing.assert_array_equal(labels, shades % 2)


@pytest.mark.parametrize(("crop", "strip"), [("center", False), ("stretch", True)])
def test_crop_decides_what_is_seen_of_images_of_other_shapes(data_dir, crop, strip):
    dataset = open_dataset(
        DataConfig(
            name="oxford_flowers102", data_dir=data_dir, test_split="", image_size=15, crop=crop
        )
    )
    images, _ = dataset.train.read(np.arange(12))
    darkest = images[images[:, 8, 8, 0].argmin()]  # 20 x 30: the middle square has no strip
    assert (darkest[0, :, 2].min() > 128) == strip


def test_pad_keeps_the_pixels_of_a_prepared_set(digits_dir):
    stored = open_dataset(DataConfig(name="digits", data_dir=str(digits_dir)))
    config = DataConfig(name="digits", data_dir=str(digits_dir), image_size=12, crop="pad")
    images, _ = open_dataset(config).train.read(np.arange(50))
    expected, _ = stored.train.read(np.arange(50))
    np.testing.assert_array_equal(images, np.pad(expected, [(0, 0), (2, 2), (2, 2), (0, 0)]))
    small = refusal(name="digits", data_dir=str(digits_dir), image_size=7, crop="pad")
    assert "8 x 8 pixels does not fit into data.image_size=7" in small


def test_an_image_with_too_many_pixels_is_one_line(data_dir, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    message = refusal(name="oxford_flowers102", data_dir=data_dir, test_split="", image_size=8)
    assert f"{data_dir}/oxford_flowers102/2.1.1 has too many pixels for Pillow" in message
    assert "exceeds limit of 20 pixels" in message


@pytest.mark.parametrize("name", ["digits", "oxford_flowers102", "emoji"])
def test_a_path_that_the_set_does_not_use_is_refused(tmp_path, name):
    assert refusal(name=name, data_dir=str(tmp_path), path="mine") == (
        f"data.path is 'mine', but data.name={name} does not use it (folder, srn, array: yes); "
        "leave it at ''"
    )


@pytest.mark.parametrize(
    ("split", "count"),
    [("train[:75%]", 9), ("train[9:]", 3), ("train+validation", 17), ("train[2:4]+validation", 7)],
)
def test_slices_are_tfds_slices(data_dir, split, count):
    config = DataConfig(
        name="oxford_flowers102", data_dir=data_dir, train_split=split, test_split="", image_size=8
    )
    dataset = open_dataset(config)
    assert len(dataset.train) == count and dataset.test is None


@pytest.mark.parametrize("key", ["train_split", "test_split"])
@pytest.mark.parametrize("split", ["test", "trian", "train[:x]", "train+test", "train["])
def test_a_wrong_split_is_refused_with_the_splits_there_are(data_dir, key, split):
    splits = {"train_split": "train", "test_split": "", key: split}
    message = refusal(name="oxford_flowers102", data_dir=data_dir, image_size=8, **splits)
    assert f"data.{key} {split!r}" in message and "train, validation" in message


def test_a_split_without_images_is_refused(data_dir):
    message = refusal(
        name="oxford_flowers102", data_dir=data_dir, image_size=8, train_split="train[:0]"
    )
    assert "no images" in message and "train[:0]" in message


def test_images_of_different_sizes_need_a_size(data_dir):
    message = refusal(name="oxford_flowers102", data_dir=data_dir, test_split="")
    assert "data.image_size" in message and "oxford_flowers102" in message


def test_a_set_without_labels_has_no_classes(tmp_path):
    features = {"image": tfds.features.Image(shape=(None, None, None))}
    builder = type(
        "Plain", (Flowers,), {"FEATURES": features, "name": "plain"}, skip_registration=True
    )
    builder(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    config = {"name": "plain", "data_dir": str(tmp_path), "test_split": "", "image_size": 8}
    assert "data.channels" in refusal(**config)
    dataset = open_dataset(DataConfig(**config, channels=1))
    assert dataset.num_classes == 0 and dataset.class_names == ()
    images, labels = dataset.train.read(np.arange(3))
    assert images.shape == (3, 8, 8, 1) and labels.tolist() == [0, 0, 0]


def test_a_set_without_images_is_refused(tmp_path):
    features = {"file_name": tfds.features.Text()}
    builder = type(
        "Texts", (Flowers,), {"FEATURES": features, "name": "texts"}, skip_registration=True
    )
    builder(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    message = refusal(name="texts", data_dir=str(tmp_path))
    assert "texts" in message and "'image'" in message and "file_name" in message


@pytest.mark.parametrize("damage", [lambda png: png[:40], lambda png: b"GIF89a" + png[6:]])
def test_a_damaged_image_of_a_set_is_one_line(tmp_path, damage):
    class Damaged(Flowers, skip_registration=True):
        name = "damaged"

        def _generate_examples(self, *arguments):
            for key, example in super()._generate_examples(*arguments):
                image = io.BytesIO()
                Image.fromarray(np.full((9, 9, 3), 200, np.uint8)).save(image, "PNG")
                yield key, example | {"image": damage(image.getvalue())}

    Damaged(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    message = refusal(name="damaged", data_dir=str(tmp_path), image_size=8, test_split="")
    assert f"an image of the set in {tmp_path}" in message and "cannot be read" in message


@pytest.fixture
def registered(monkeypatch) -> str:
    """A set that TFDS lists as its own; unlike TFDS's own sets it needs no TensorFlow."""
    monkeypatch.setattr(
        tfds.core.registered, "_DATASET_REGISTRY", dict(tfds.core.registered._DATASET_REGISTRY)
    )
    name = "flowers_of_the_test"
    type("Registered", (Flowers,), {"name": name})
    return name


def command_of(message: str) -> str:
    """Return the program that follows `python -c` in an error message."""
    return message.partition('run: python -c "')[2].removesuffix('"')


def test_the_command_in_the_error_prepares_the_set(tmp_path, registered):
    config = {"name": registered, "data_dir": str(tmp_path), "test_split": "", "image_size": 8}
    message = refusal(**config)
    assert f"data.name {registered!r} is not prepared in {tmp_path}" in message
    assert "TensorFlow" in message
    exec(command_of(message), {})
    assert len(open_dataset(DataConfig(**config)).train) == 12


@pytest.mark.parametrize("name", ["oxford_flowers102", "lsun/church_outdoor", "celeb_a:2.1.0"])
def test_a_set_that_is_not_prepared_says_which_command_prepares_it(tmp_path, name):
    message = refusal(name=name, data_dir=str(tmp_path))
    assert f"tfds.builder({name!r}, data_dir={str(tmp_path)!r}, " in command_of(message)


def test_a_set_prepared_as_tfrecord_says_how_to_prepare_it_anew(tmp_path, registered):
    config = {"name": registered, "data_dir": str(tmp_path), "test_split": "", "image_size": 8}
    exec(command_of(refusal(**config)), {})
    path = pretend_tfrecord(tmp_path, registered)
    message = refusal(**config)
    assert f"{path} is prepared as tfrecord" in message and "move that directory away" in message
    path.rename(tmp_path / "away")
    exec(command_of(message), {})
    assert len(open_dataset(DataConfig(**config)).train) == 12


def test_our_set_prepared_as_tfrecord_is_prepared_anew_once_it_is_moved(digits_dir):
    path = pretend_tfrecord(digits_dir, "digits")
    message = refusal(name="digits", data_dir=str(digits_dir))
    assert f"{path} is prepared as tfrecord" in message and "command again" in message
    path.rename(digits_dir / "away")
    assert len(open_dataset(DataConfig(name="digits", data_dir=str(digits_dir))).train) == 1634


def pretend_tfrecord(data_dir: pathlib.Path, name: str) -> pathlib.Path:
    """Change a prepared set's format to tfrecord in its info file, and return its directory."""
    (info,) = data_dir.glob(f"{name}/*/dataset_info.json")
    info.write_text(json.dumps({**json.loads(info.read_text()), "fileFormat": "tfrecord"}))
    return info.parent


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("cifar11", "'cifar10'"), ("digit", "'digits'"), ("oxford_flower", "'oxford_flowers102'")],
)
def test_an_unknown_name_is_answered_with_the_nearest(tmp_path, name, nearest):
    message = refusal(name=name, data_dir=str(tmp_path))
    assert f"unknown data.name {name!r}; did you mean" in message and nearest in message
    assert "cifar10, cifar100, mnist, fashion_mnist, digits, emoji, solids, srn, folder" in message


@pytest.mark.parametrize("name", ["", "two words", "/", "xyzzyxyzzy", "a/b/c:d"])
def test_a_name_like_no_other_is_refused(tmp_path, name):
    assert f"unknown data.name {name!r}" in refusal(name=name, data_dir=str(tmp_path))


def test_size_and_channels_are_changed_when_read(digits_dir):
    stored = open_dataset(DataConfig(name="digits", data_dir=str(digits_dir)))
    config = DataConfig(name="digits", data_dir=str(digits_dir), image_size=16, channels=3)
    for limit in (8.0, 0.0):
        changed = open_dataset(DataConfig(**{**vars(config), "ram_limit_gb": limit}))
        assert changed.image_shape == (16, 16, 3)
        images, labels = changed.train.read(np.arange(20))
        np.testing.assert_array_equal(images, images[..., :1].repeat(3, axis=-1))
        np.testing.assert_array_equal(labels, stored.train.read(np.arange(20))[1])
        means = stored.train.read(np.arange(20))[0].mean(axis=(1, 2, 3))
        assert np.abs(images.mean(axis=(1, 2, 3)) - means).max() < 8
    assert len(list(digits_dir.glob("digits/*"))) == 1


def test_only_sets_within_the_limit_are_held_in_ram(digits_dir):
    size = (1634 + 163) * 64 / 1e9
    for limit, kind in ((size * 1.001, "ArraySource"), (size * 0.999, "RecordSource")):
        config = DataConfig(name="digits", data_dir=str(digits_dir), ram_limit_gb=limit)
        dataset = open_dataset(config)
        assert type(dataset.train).__name__ == type(dataset.test).__name__ == kind


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    message = refusal(name="digits", data_dir=str(tmp_path / "file"))
    assert "data.data_dir" in message and str(tmp_path / "file") in message


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # the largest file, in bytes
    try:
        message = refusal(name="digits", data_dir=str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "data.data_dir" in message and str(tmp_path) in message and "room" in message
    assert list(tmp_path.glob("digits/*")) == []


@pytest.mark.parametrize("damage", ["half", "bit", "gone", "no info"])
def test_a_damaged_set_is_named(digits_dir, damage):
    (file,) = digits_dir.glob("digits/1.0.0/*train*")
    data = bytearray(file.read_bytes())
    if damage == "half":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "bit":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif damage == "gone":
        file.unlink()
    else:
        (file.parent / "dataset_info.json").unlink()
    message = refusal(name="digits", data_dir=str(digits_dir))
    assert f"{file.parent} is damaged" in message and "remove that directory" in message


def test_an_interrupted_preparation_starts_afresh(tmp_path, monkeypatch):
    generate = Digits._generate_examples

    def interrupted(self, indices):
        for i, example in enumerate(generate(self, indices)):
            if i == 100:
                raise KeyboardInterrupt
            yield example

    monkeypatch.setattr(Digits, "_generate_examples", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_dataset(DataConfig(name="digits", data_dir=str(tmp_path)))
    assert list(tmp_path.glob("digits/*")) == []
    monkeypatch.undo()
    assert len(open_dataset(DataConfig(name="digits", data_dir=str(tmp_path))).train) == 1634


def test_two_that_prepare_at_once_both_get_the_whole_set(tmp_path, monkeypatch):
    together = threading.Barrier(2, timeout=20)
    generate = Digits._generate_examples

    def meet(self, indices):
        yield from generate(self, indices)
        if len(indices) < 1000:  # the second of the two splits
            together.wait()

    monkeypatch.setattr(Digits, "_generate_examples", meet)
    lengths, errors = [], []

    def work():
        builder = Digits(data_config=DataConfig(name="digits"), data_dir=str(tmp_path))
        try:
            lengths.append(len(prepared.records(prepared.prepare(builder), "train", "")))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (lengths, errors) == ([1634, 1634], [])
    assert [path.name for path in tmp_path.glob("digits/*")] == ["1.0.0"]


def test_opening_prints_nothing(tmp_path, capfd):
    open_dataset(DataConfig(name="digits", data_dir=str(tmp_path)))
    open_dataset(DataConfig(name="digits", data_dir=str(tmp_path)))
    assert capfd.readouterr() == ("", "")


def test_the_default_directory_is_the_one_of_tfds(monkeypatch):
    assert prepared.data_directory("") == str(
        pathlib.Path(tfds.core.constants.DATA_DIR).expanduser()
    )
    monkeypatch.setenv("HOME", "/home/somebody")
    assert prepared.data_directory("~/sets") == "/home/somebody/sets"


def test_without_a_home_directory_sets_go_into_a_temporary_directory(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2_000_000_000)  # as by docker run -u
    default = tfds.core.constants.get_default_data_dir()
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", default)
    prepared._temporary_directory.cache_clear()
    try:
        for _ in range(2):  # both calls use one directory
            assert len(open_dataset(DataConfig(name="digits")).train) == 1634
        warnings = [r for r in caplog.records if "prepared data sets are not kept" in r.message]
        assert len(warnings) == 1
    finally:
        prepared._temporary_directory().cleanup()
        prepared._temporary_directory.cache_clear()
    for data_dir in ("~/sets", "~no_such_user/sets"):  # asked for, so it is not replaced
        message = refusal(name="digits", data_dir=data_dir)
        assert f"data directory {data_dir}; set data.data_dir to another" in message
    assert list(tmp_path.iterdir()) == []


def test_the_digest_is_of_the_version_and_the_sizes_of_the_splits(digits_dir, data_dir):
    assert open_dataset(DataConfig(name="digits", data_dir=str(digits_dir))).digest == (
        "digits/1.0.0, test: 163, train: 1634"
    )
    flowers = DataConfig(name="oxford_flowers102", data_dir=data_dir, test_split="", image_size=8)
    assert open_dataset(flowers).digest == ("oxford_flowers102/2.1.1, train: 12, validation: 5")
