"""Images that come as an array: from an .npz file and from the program."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

import ddpm_jax
from ddpm_jax.config import DataConfig
from ddpm_jax.data import open_dataset
from ddpm_jax.data.arrays import Arrays, of_program
from ddpm_jax.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, 8, 6, 3), np.uint8)
LABELS = np.arange(40) % 3


@pytest.fixture
def config(tmp_path) -> DataConfig:
    return DataConfig(name="array", path=str(tmp_path / "mine.npz"), holdout=0.25)


def read_all(source) -> tuple[np.ndarray, np.ndarray]:
    return source.read(np.arange(len(source)))


def refusal(config: DataConfig) -> str:
    with pytest.raises(UserError) as caught:
        open_dataset(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int16])
def test_images_and_labels_are_read_and_some_are_held_out(config, dtype):
    np.savez(config.path, images=IMAGES, labels=LABELS.astype(dtype), notes=np.array("anything"))
    dataset = open_dataset(config)
    assert dataset.image_shape == (8, 6, 3)
    assert dataset.num_classes == 3 and dataset.class_names == ("0", "1", "2")
    assert (len(dataset.train), len(dataset.test)) == (30, 10)
    found = [read_all(source) for source in (dataset.train, dataset.test)]
    pairs = {(x.tobytes(), int(y)) for part in found for x, y in zip(*part, strict=True)}
    assert pairs == {(x.tobytes(), int(y)) for x, y in zip(IMAGES, LABELS, strict=True)}
    assert all(labels.dtype == np.int32 for _, labels in found)


def test_grey_images_need_no_channel_and_labels_are_optional(config):
    np.savez(config.path, images=IMAGES[..., 0])
    dataset = open_dataset(dataclasses.replace(config, holdout=0.0))
    assert dataset.image_shape == (8, 6, 1) and dataset.num_classes == 0 and dataset.test is None
    images, labels = read_all(dataset.train)
    np.testing.assert_array_equal(images, IMAGES[..., :1])
    assert labels.tolist() == [0] * 40


def test_no_split_of_held_out_images(config):
    np.savez(config.path, images=IMAGES)
    assert open_dataset(dataclasses.replace(config, test_split="")).test is None


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("crop", "size"), [("center", 5), ("stretch", 5), ("pad", 9)])
def test_size_and_channels_are_converted_as_in_a_folder(config, tmp_path, channels, crop, size):
    np.savez(config.path, images=IMAGES[:4])
    wanted = dict(image_size=size, channels=channels, crop=crop, holdout=0.0)
    dataset = open_dataset(dataclasses.replace(config, **wanted))
    (tmp_path / "folder").mkdir()
    for i, pixels in enumerate(IMAGES[:4]):
        Image.fromarray(pixels).save(tmp_path / "folder" / f"{i}.png")
    folder = DataConfig(
        name="folder", path=str(tmp_path / "folder"), data_dir=str(tmp_path / "data"), **wanted
    )
    found, expected = (read_all(d.train)[0] for d in (dataset, open_dataset(folder)))
    assert sorted(map(bytes, found)) == sorted(map(bytes, expected))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": IMAGES / 127.5 - 1}, "must be uint8, 0 to 255, found float64 [40, 8, 6, 3]"),
        ({"images": IMAGES.astype(np.int32)}, "must be uint8, 0 to 255, found int32"),
        ({"images": IMAGES[0, 0]}, "must have the shape [N, H, W, C]"),
        ({"images": IMAGES[None]}, "found uint8 [1, 40, 8, 6, 3]"),
        ({"images": IMAGES[:0]}, "must not be empty, found uint8 [0, 8, 6, 3]"),
        ({"images": IMAGES[..., :2]}, "C = 1, 3 or 4"),
        ({"images": IMAGES.transpose(0, 3, 1, 2)}, "images.transpose(0, 2, 3, 1)"),
        ({"images": IMAGES, "labels": LABELS[1:]}, "of the shape [40], found int64 [39]"),
        ({"images": IMAGES, "labels": LABELS - 1}, "0 to num_classes - 1, found -1"),
        ({"images": IMAGES, "labels": LABELS + 2**40}, f"found {2**40 + 2}"),
        ({"images": IMAGES, "labels": LABELS / 1}, "one integer per image"),
        ({"images": IMAGES, "labels": np.eye(40, dtype=int)}, "found int64 [40, 40]"),
        ({"images": np.array([None])}, "cannot be read as .npz"),
        ({"x": IMAGES, "y": LABELS}, "has no array 'images', it has: x, y"),
    ],
)
def test_arrays_that_cannot_be_used_are_one_line(config, arrays, words):
    np.savez(config.path, **arrays)
    message = refusal(config)
    assert words in message and config.path in message


def test_files_and_settings_that_cannot_be_used_are_one_line(config, tmp_path):
    assert "cannot be read as .npz (" in refusal(config)  # no such file
    (tmp_path / "text.npz").write_text("no array")
    np.save(tmp_path / "one.npy", IMAGES)
    for name in ("text.npz", "one.npy", ""):
        message = refusal(dataclasses.replace(config, path=str(tmp_path / name)))
        assert "cannot be read as .npz (" in message and "np.savez(" in message
    assert "data.path is empty" in refusal(dataclasses.replace(config, path=""))
    np.savez(config.path, images=IMAGES)
    for change in ({"train_split": "train[:5]"}, {"test_split": "val"}, {"text": True}):
        assert next(iter(change)) in refusal(dataclasses.replace(config, **change))


def test_arrays_of_the_program_need_a_config_of_no_other_set():
    config, arrays = of_program(DataConfig(), IMAGES, LABELS)
    assert config == DataConfig(name="array")
    dataset = open_dataset(config, arrays)
    assert len(dataset.train) == 38 and len(dataset.test) == 2 and dataset.num_classes == 3
    assert isinstance(arrays, Arrays)
    for other in (DataConfig(name="digits"), DataConfig(name="array", path="mine.npz")):
        with pytest.raises(UserError, match=r"data\.name='array' and leave data\.path empty"):
            of_program(other, IMAGES)
    with pytest.raises(UserError, match="labels were given without images"):
        of_program(DataConfig(), None, LABELS)


def test_train_refuses_arrays_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="must be uint8"):
        ddpm_jax.train({}, tmp_path / "run", images=IMAGES / 255)
    with pytest.raises(UserError, match="labels were given without images"):
        ddpm_jax.train({}, tmp_path / "run", labels=LABELS)
    assert not (tmp_path / "run").exists()


def test_the_digest_is_of_the_content(config):
    other = IMAGES.copy()
    other[3, 2, 1, 0] ^= 1
    pairs = [(IMAGES, LABELS), (IMAGES, None), (IMAGES, LABELS + 1), (other, LABELS)]
    pairs += [(IMAGES.reshape(40, 6, 8, 3), LABELS)]
    digests = [open_dataset(*of_program(DataConfig(), *pair)).digest for pair in pairs]
    assert len(set(digests)) == 5
    np.savez(config.path, images=IMAGES, labels=LABELS)
    assert open_dataset(config).digest == digests[0]
