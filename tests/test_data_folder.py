"""Folders of images: formats, labels, damage, holdout, and a new preparation after a change."""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib

import numpy as np
import pytest
from PIL import Image
from test_data_images import png

from ddpm_jax.config import DataConfig
from ddpm_jax.data import Dataset, check_workdir, open_dataset
from ddpm_jax.data.folder import divide, scan
from ddpm_jax.data.sources import ArraySource
from ddpm_jax.errors import UserError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def save(path: pathlib.Path, colour=RED, size=(20, 16), mode="RGB", **options) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path, **options)
    return path


@pytest.fixture
def config(tmp_path) -> DataConfig:
    (tmp_path / "pictures").mkdir()
    return DataConfig(
        name="folder",
        path=str(tmp_path / "pictures"),
        data_dir=str(tmp_path / "data"),
        image_size=8,
        channels=3,
        holdout=0.0,
    )


def read_all(source) -> tuple[np.ndarray, np.ndarray]:
    return source.read(np.arange(len(source)))


def refusal(config: DataConfig) -> str:
    with pytest.raises(UserError) as caught:
        open_dataset(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def prepared_sets(config: DataConfig) -> list[pathlib.Path]:
    return sorted(pathlib.Path(config.data_dir).glob("folder/*/1.0.0"))


def test_sub_folders_are_classes_in_sorted_order(config):
    root = pathlib.Path(config.path)
    for i in range(3):
        save(root / "zebra" / f"{i}.png", RED, size=(20 + i, 16))
        save(root / "ant" / "deep" / f"{i}.png", GREEN, size=(16, 20 + i))
    save(root / "Mouse" / "0.png", BLUE)
    (root / "without images").mkdir()
    dataset = open_dataset(config)
    assert dataset.class_names == ("Mouse", "ant", "zebra") and dataset.num_classes == 3
    assert dataset.image_shape == (8, 8, 3)
    assert dataset.test is None
    images, labels = read_all(dataset.train)
    assert np.bincount(labels).tolist() == [1, 3, 3]
    expected = np.array([BLUE, GREEN, RED])[labels]
    np.testing.assert_array_equal(images, np.broadcast_to(expected[:, None, None], images.shape))


def test_a_flat_folder_has_no_labels(config):
    for i in range(4):
        save(pathlib.Path(config.path) / f"{i}.png")
    dataset = open_dataset(config)
    assert dataset.num_classes == 0 and dataset.class_names == ()
    images, labels = read_all(dataset.train)
    assert len(images) == 4 and labels.tolist() == [0] * 4


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_format_and_mode_is_read(config, channels):
    root = pathlib.Path(config.path)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        save(root / f"{mode}.png", mode=mode)
    for ending in ("jpg", "JPEG", "bmp", "gif", "tif", "webp", "ppm", "tga", "ico"):
        save(root / f"format.{ending}")
    save(root / "cmyk.jpg", mode="CMYK")
    save(root / "cmyk.tiff", mode="CMYK")
    Image.fromarray(np.full((9, 7), 0x4C4C, np.uint16)).save(root / "sixteen.png")
    frames = [Image.new("RGB", (9, 9), colour) for colour in (RED, GREEN, BLUE)]
    frames[0].save(root / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(root / "moving.png", save_all=True, append_images=frames[1:])
    config = dataclasses.replace(config, channels=channels, on_bad_image="refuse")
    images, _ = read_all(open_dataset(config).train)
    assert images.shape == (20, 8, 8, channels)
    if channels == 1:
        # The luma of red is 76 = 0x4c; one image has one bit, dithered to black and white.
        assert (np.abs(images.astype(int) - 76).max(axis=(1, 2, 3)) <= 4).sum() == 19
    else:
        red = np.abs(images[..., :3].astype(int) - RED).max(axis=(1, 2, 3)) <= 6
        assert red.sum() == 16  # in all modes but 1, L, LA and 16-bit grey
        assert channels == 3 or (images[..., 3] == 255).all()


def test_transparency_becomes_white_or_stays(config):
    Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save(pathlib.Path(config.path) / "a.png")
    for channels, expected in ((1, [255]), (3, [255] * 3), (4, [0] * 4)):
        images, _ = read_all(open_dataset(dataclasses.replace(config, channels=channels)).train)
        assert images[0, 4, 4].tolist() == expected


def test_the_orientation_of_a_camera_is_applied(config):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, 16:] = 255  # as stored: dark on the left
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # upright after a quarter turn clockwise: dark at the top
    image.save(pathlib.Path(config.path) / "a.jpg", exif=exif, quality=95)
    images, _ = read_all(open_dataset(dataclasses.replace(config, crop="stretch")).train)
    assert images[0, 0].max() < 30 and images[0, -1].min() > 225


def test_crop_and_size_decide_what_is_seen(config):
    stripes = np.zeros((30, 90, 3), np.uint8)
    stripes[:, :30], stripes[:, 30:60], stripes[:, 60:] = RED, GREEN, BLUE
    Image.fromarray(stripes).save(pathlib.Path(config.path) / "a.png")
    center, _ = read_all(open_dataset(dataclasses.replace(config, image_size=16)).train)
    stretch, _ = read_all(
        open_dataset(dataclasses.replace(config, image_size=16, crop="stretch")).train
    )
    assert center.shape == stretch.shape == (1, 16, 16, 3)
    assert center[0, 8, [4, 8, 12]].tolist() == [list(GREEN)] * 3
    assert np.abs(stretch[0, 8, [2, 8, 13]].astype(int) - [RED, GREEN, BLUE]).max() < 10


def test_what_is_no_image_is_ignored(config):
    root = pathlib.Path(config.path)
    for name in ("a.png", "b.jpg"):
        save(root / name)
    for name in ("notes.txt", ".DS_Store", "._a.png", "labels.csv", "paper.eps", "data.h5", "a"):
        (root / name).write_bytes(b"no image")
    save(root / ".thumbnails" / "a.png")
    (root / "documents").mkdir()
    (root / "documents" / "read.me").write_text("no image")
    assert scan(root) == ["a.png", "b.jpg"]
    assert len(open_dataset(config).train) == 2


def cut(path: pathlib.Path) -> pathlib.Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.fixture
def damaged(config) -> DataConfig:
    """Four whole images, and five that cannot be read."""
    root = pathlib.Path(config.path)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    for i in range(4):
        save(root / f"good {i}.png", size=(10 + i, 12))
    for name in ("cut.jpg", "cut.png"):
        noise.save(root / name)
        cut(root / name)
    (root / "empty.png").write_bytes(b"")
    (root / "text.png").write_text("this is no picture")
    Image.fromarray(np.ones((4, 4), np.float32)).save(root / "float.tiff")
    return config


BAD = ["cut.jpg", "cut.png", "empty.png", "float.tiff", "text.png"]


def test_an_unreadable_image_is_refused_by_name(damaged):
    message = refusal(damaged)
    assert str(pathlib.Path(damaged.path) / BAD[0]) in message
    assert "data.on_bad_image" in message and "skip" in message
    assert not prepared_sets(damaged)
    for name in BAD:
        alone = dataclasses.replace(damaged, path=damaged.path + name)
        save(pathlib.Path(alone.path) / "good.png")
        (pathlib.Path(alone.path) / name).write_bytes(
            (pathlib.Path(damaged.path) / name).read_bytes()
        )
        assert f"unreadable image {pathlib.Path(alone.path) / name}" in refusal(alone)


def test_unreadable_images_are_skipped_and_named_each_time(damaged, caplog):
    skipping = dataclasses.replace(damaged, on_bad_image="skip")
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            dataset = open_dataset(skipping)
        assert len(dataset.train) == 4
        (record,) = [r for r in caplog.records if r.name.startswith("ddpm_jax")]
        assert "skipped 5 unreadable images" in record.getMessage()
        assert all(name in record.getMessage() for name in BAD)
    assert "unreadable image" in refusal(damaged)  # the prepared set does not hide the damage


def test_many_skipped_images_are_counted_and_the_first_named(config, caplog):
    save(pathlib.Path(config.path) / "good.png")
    for i in range(9):
        (pathlib.Path(config.path) / f"bad {i}.png").write_bytes(b"")
    open_dataset(dataclasses.replace(config, on_bad_image="skip"))
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "skipped 9" in record.getMessage() and "and 4 more" in record.getMessage()
    assert "bad 4.png" in record.getMessage() and "bad 5.png" not in record.getMessage()


def test_a_folder_of_damage_alone_is_refused(config):
    (pathlib.Path(config.path) / "a.png").write_bytes(b"")
    message = refusal(dataclasses.replace(config, on_bad_image="skip"))
    assert "none of the 1 train images" in message and config.path in message
    assert not prepared_sets(config)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"path": ""}, ["data.path", "empty"]),
        ({"path": "/no/such/place"}, ["data.path", "/no/such/place", "not a directory"]),
        ({"image_size": 0}, ["data.image_size", "64"]),
        ({"image_size": -3}, ["data.image_size", "-3"]),
        ({"channels": 0}, ["data.channels", "3 for RGB"]),
        ({"channels": 2}, ["data.channels", "2"]),
        ({"max_pixels": 0}, ["data.max_pixels", "at least 1"]),
        ({"holdout": 1.0}, ["data.holdout", "1.0"]),
        ({"holdout": -0.1}, ["data.holdout", "-0.1"]),
        ({"crop": "centre"}, ["data.crop", "did you mean 'center'", "stretch"]),
        ({"on_bad_image": "ignore"}, ["data.on_bad_image", "ignore", "refuse, skip"]),
    ],
)
def test_wrong_settings_are_named(config, change, words):
    save(pathlib.Path(config.path) / "a.png")
    message = refusal(dataclasses.replace(config, **change))
    assert all(word in message for word in words), message


def test_an_empty_folder_is_refused(config):
    (pathlib.Path(config.path) / "notes.txt").write_text("nothing")
    message = refusal(config)
    assert config.path in message and "no images" in message


def test_images_beside_class_folders_are_refused(config):
    save(pathlib.Path(config.path) / "a.png")
    save(pathlib.Path(config.path) / "cats" / "b.png")
    message = refusal(config)
    assert "a.png" in message and "cats/b.png" in message and "top" in message


def test_holdout_divides_by_name_and_leaves_training_images():
    files = [f"{i}.png" for i in range(200)]
    for holdout in (0.0, 0.05, 0.5, 0.999):
        train, test = divide(files, holdout)
        assert sorted(train + test) == sorted(files)
        assert len(test) == min(round(200 * holdout), 199)
        assert divide(files[::-1], holdout)[1] == test
    assert divide(["a.png"], 0.5) == (["a.png"], [])
    assert [len(part) for part in divide(["a.png", "b.png"], 0.01)] == [1, 1]
    more = divide([*files, "new.png"], 0.5)[1]
    assert len(set(more) ^ set(divide(files, 0.5)[1])) <= 2  # one new file moves at most one other


def test_held_out_images_are_the_split_test(config):
    for i in range(40):
        save(pathlib.Path(config.path) / f"{i}.png", (i, 0, 0))
    dataset = open_dataset(dataclasses.replace(config, holdout=0.25))
    train, test = (read_all(source)[0][:, 0, 0, 0] for source in (dataset.train, dataset.test))
    assert (len(train), len(test)) == (30, 10)
    assert sorted([*train, *test]) == list(range(40))


def test_one_image_is_enough_to_train_on(config):
    save(pathlib.Path(config.path) / "a.png")
    dataset = open_dataset(dataclasses.replace(config, holdout=0.05))
    assert len(dataset.train) == 1 and dataset.test is None


def test_a_changed_folder_is_prepared_anew_and_the_old_set_stays(config):
    root = pathlib.Path(config.path)
    save(root / "a.bmp", RED)
    assert read_all(open_dataset(config).train)[0][0, 0, 0].tolist() == list(RED)
    first = prepared_sets(config)
    assert len(first) == 1
    stamp = first[0].stat().st_mtime_ns
    open_dataset(config)
    assert prepared_sets(config) == first and first[0].stat().st_mtime_ns == stamp

    save(root / "a.bmp", BLUE)  # the same name and length, another time of change
    os.utime(root / "a.bmp", ns=(1, 1))
    assert read_all(open_dataset(config).train)[0][0, 0, 0].tolist() == list(BLUE)
    save(root / "b.png", GREEN)
    assert len(open_dataset(config).train) == 2
    (root / "b.png").rename(root / "c.png")
    open_dataset(config)
    for change in ({"image_size": 9}, {"channels": 1}, {"crop": "stretch"}, {"holdout": 0.5}):
        open_dataset(dataclasses.replace(config, **change))
    assert len(prepared_sets(config)) == 8
    assert set(first) < set(prepared_sets(config))


@pytest.mark.slow
def test_a_preparation_that_is_killed_leaves_nothing_that_is_taken_for_whole(config):
    for i in range(30):
        save(pathlib.Path(config.path) / f"{i}.png", (i, 0, 0))
    program = """
import os, sys
from ddpm_jax.config import DataConfig
from ddpm_jax.data import folder, open_dataset
encode = folder.Folder._encode
def die_at_20(self, file):
    return os._exit(9) if file.startswith("20") else encode(self, file)
folder.Folder._encode = die_at_20
open_dataset(DataConfig(name="folder", path=sys.argv[1], data_dir=sys.argv[2], image_size=8,
                        channels=3, holdout=0.0))
"""
    root = pathlib.Path(__file__).parents[1]
    killed = subprocess.run(
        [sys.executable, "-c", program, config.path, config.data_dir],
        env={**os.environ, "PYTHONPATH": str(root)},
        timeout=60,
    )
    assert killed.returncode == 9
    assert prepared_sets(config) == []
    images, _ = read_all(open_dataset(config).train)
    assert sorted(images[:, 0, 0, 0]) == list(range(30))


def test_ram_and_disk_hold_the_same_bytes(config):
    rng = np.random.default_rng(0)
    for i in range(20):
        pixels = rng.integers(0, 256, (24, 20, 3), np.uint8)
        path = pathlib.Path(config.path) / f"class {i % 3}" / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    ram = open_dataset(config).train
    disk = open_dataset(dataclasses.replace(config, ram_limit_gb=0.0)).train
    assert type(ram) is not type(disk)
    order = rng.permutation(20)
    for a, b in zip(ram.read(order), disk.read(order), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS refuses file names that are no text")
def test_names_that_are_no_text_are_read(config):
    path = os.fsencode(config.path) + b"/caf\xe9.png"
    Image.new("RGB", (9, 9), RED).save(save(pathlib.Path(config.path) / "a.png"))
    os.rename(os.fsencode(config.path) + b"/a.png", path)
    assert len(open_dataset(config).train) == 1


ANY_NAMES = [(b"a\nb", b"c"), (b"cat", b"cat "), (b" ", b"x"), (b"caf\xe9", b"caf\xc3\xa9")]


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS refuses file names that are no text")
@pytest.mark.parametrize("names", ANY_NAMES)
def test_a_class_keeps_any_name(config, names):
    for i, name in enumerate(names):
        folder = os.path.join(os.fsencode(config.path), name)
        os.mkdir(folder)
        image = save(pathlib.Path(config.path) / "made.png", (100 * i, 0, 0))
        os.rename(image, os.path.join(folder, b"1.png"))
    for _ in range(2):  # prepared, and read again
        dataset = open_dataset(config)
        texts = [name.decode(errors="backslashreplace") for name in names]
        assert dataset.num_classes == 2 and sorted(dataset.class_names) == sorted(texts)
        images, labels = read_all(dataset.train)
        for image, label in zip(images, labels, strict=True):
            assert dataset.class_names[label] == texts[image[0, 0, 0] // 100]
        json.dumps(dataset.class_names, ensure_ascii=False).encode()  # can be written


def test_a_set_that_an_older_version_prepared_is_read(config):
    """It kept the names of its classes as the lines of a text file."""
    for name in ("a\nb", "c"):
        save(pathlib.Path(config.path) / name / "1.png")
    open_dataset(config)
    (prepared,) = prepared_sets(config)
    (prepared / "label.labels.txt").write_text("a\nb\nc\n")
    dataset = open_dataset(config)
    assert dataset.class_names == ("a\nb", "c") and prepared_sets(config) == [prepared]


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS refuses file names that are no text")
def test_a_folder_with_a_name_that_is_no_text_is_read(config):
    path = os.fsdecode(os.fsencode(config.path) + b"\xe9")
    save(pathlib.Path(path) / "a.png")
    assert len(open_dataset(dataclasses.replace(config, path=path)).train) == 1


def warnings_of(config: DataConfig, caplog) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        open_dataset(config)
    return [record.getMessage() for record in caplog.records]


def test_files_that_are_left_out_are_counted_by_ending(config, caplog):
    root = pathlib.Path(config.path)
    save(root / "cats" / "a.png")
    assert warnings_of(config, caplog) == []
    for name in ("a.heic", "b.HEIC", "c.svg", "d", ".hidden"):
        (root / "cats" / name).write_bytes(b"no image that Pillow reads")
    for _ in range(2):  # prepared, and read again
        (line,) = warnings_of(config, caplog)
        assert "left out 4 of 5 files" in line and "2 .heic, 1 .svg, 1 without an ending" in line
    (root / "cats" / "a.png").unlink()
    assert "holds no images that can be read (it holds 2 .heic, 1" in refusal(config)


def test_a_named_pipe_is_left_out_and_counted(config, caplog):
    root = pathlib.Path(config.path)
    save(root / "a.png")
    os.mkfifo(root / "b.png")
    (root / "c.png").symlink_to(root / "b.png")
    assert scan(root) == ["a.png"]  # otherwise the next line would wait forever
    (line,) = warnings_of(config, caplog)
    assert "left out 2 of 3 files" in line and "2 special (a pipe, a socket or a device)" in line


@pytest.mark.parametrize("on_bad_image", ["refuse", "skip"])
def test_an_image_that_is_too_large_to_be_padded_is_named(config, caplog, on_bad_image):
    save(pathlib.Path(config.path) / "fits.png", size=(7, 8))
    large = save(pathlib.Path(config.path) / "large.png", size=(9, 8))
    config = dataclasses.replace(config, crop="pad", on_bad_image=on_bad_image)
    if on_bad_image == "refuse":
        said = refusal(config)
    else:
        (said,) = warnings_of(config, caplog)
        assert len(open_dataset(config).train) == 1
    assert f"{large}: an image of 9 x 8 pixels does not fit into data.image_size=8" in said


@contextlib.contextmanager
def ordinary_user():
    """Be a user without root's rights, who may read any directory."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_folder_that_may_not_be_read_is_refused():
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        os.chmod(directory, 0o755)
        root = pathlib.Path(directory).resolve()
        save(root / "cats" / "a.png")
        closed = save(root / "dogs" / "a.png").parent
        with ordinary_user():
            assert scan(root) == ["cats/a.png", "dogs/a.png"]
        closed.chmod(0o000)
        try:
            with ordinary_user(), pytest.raises(UserError) as caught:
                scan(root)
        finally:
            closed.chmod(0o755)
    assert str(caught.value) == (
        f"{closed} in data.path cannot be read (Permission denied); make it readable, or move it "
        "away"
    )


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["train/a.png", "Test/b.png"], "if these are splits"),
        (["train/cat/a.png", "val/cat/b.png"], "if these are splits"),
        (["images/cat/a.png", "images/dog/b.png"], "the one class 'images'"),
        (["cat/a.png", "cat /b.png", "dog/c.png"], "make 2 classes: 'cat', 'cat '"),
        (["caf\xe9/a.png", "cafe\u0301/b.png"], "almost the same"),
    ],
)
def test_sub_folders_that_are_probably_no_classes_are_named(config, caplog, files, words):
    for i, file in enumerate(files):
        save(pathlib.Path(config.path) / file, (i, 0, 0))
    (line,) = warnings_of(config, caplog)
    assert words in line


def test_sub_folders_that_are_classes_cause_no_warning(config, caplog):
    for file in ("train/a.png", "car/b.png", "bus/c.png"):
        save(pathlib.Path(config.path) / file)
    assert warnings_of(config, caplog) == []


def test_twelve_bits_in_sixteen_are_named(config, caplog):
    root = pathlib.Path(config.path)
    grey = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(grey * 16).save(root / "bright.png")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(root / "black.png")
    assert warnings_of(config, caplog) == []
    Image.fromarray(grey).save(root / "grey.png")
    Image.fromarray(grey).save(root / "grey.tif")
    (root / "rgb.png").write_bytes(png(16, np.repeat(grey[..., None], 3, axis=-1), 9999))
    for _ in range(2):  # prepared, and read again
        (line,) = warnings_of(config, caplog)
        assert "3 images of 16 bits come out dark" in line and "multiply their pixels by 16" in line
        assert all(f"{name} (" in line for name in ("grey.png", "grey.tif", "rgb.png"))


def test_a_line_names_the_classes(config):
    assert describe(()) == "no classes"
    assert describe(("ant",)) == "1 class: ant"
    assert describe(("a\nb", "cat ", "dog")) == "3 classes: 'a\\nb', 'cat ', dog"
    many = describe(tuple(map(str, range(12))))
    assert many == "12 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"


def describe(names: tuple[str, ...]) -> str:
    source = ArraySource(np.zeros((1, 8, 8, 1), np.uint8), np.zeros(1, np.int32))
    return Dataset(source, None, (8, 8, 1), len(names), names).describe_classes()


def test_skipping_holds_out_images_that_can_be_read(config, caplog):
    root = pathlib.Path(config.path)
    files = [f"{i}.png" for i in range(10)]
    for i, file in enumerate(files):
        save(root / file, (i, 0, 0))
    _, held_out = divide(files, 0.2)
    for file in held_out:
        (root / file).write_bytes(b"")
    skipping = dataclasses.replace(config, holdout=0.2, on_bad_image="skip")
    with caplog.at_level(logging.WARNING):
        dataset = open_dataset(skipping)
    pixels = [read_all(source)[0][:, 0, 0, 0].tolist() for source in (dataset.train, dataset.test)]
    assert [len(part) for part in pixels] == [6, 2]
    assert sorted(sum(pixels, [])) == [i for i in range(10) if files[i] not in held_out]
    assert "skipped 2 unreadable images" in caplog.text


@pytest.mark.parametrize("bad", ["a.png", "b.png"])
def test_skipping_leaves_an_image_to_train_on(config, bad):
    for file in ("a.png", "b.png"):
        save(pathlib.Path(config.path) / file)
    (pathlib.Path(config.path) / bad).write_bytes(b"")
    dataset = open_dataset(dataclasses.replace(config, holdout=0.5, on_bad_image="skip"))
    assert len(dataset.train) == 1 and dataset.test is None


def test_a_large_image_is_refused_and_can_be_allowed(config):
    path = save(pathlib.Path(config.path) / "a.png", size=(20, 17))
    limited = dataclasses.replace(config, max_pixels=338)
    message = refusal(limited)
    assert f"unreadable image {path}: it has 340 pixels" in message
    assert "data.max_pixels is 338" in message and "set data.max_pixels=340" in message
    save(path.with_name("b.png"), size=(13, 26))
    skipping = dataclasses.replace(limited, on_bad_image="skip")
    assert len(open_dataset(skipping).train) == 1
    assert len(open_dataset(dataclasses.replace(skipping, max_pixels=340)).train) == 2


def test_the_default_limit_speaks_of_no_attack(config):
    """Of 20,000 x 20,000 pixels only the header is written: the size is refused before the rest."""
    data = bytearray(png(8, np.zeros((4, 4), int), 0))
    data[16:24] = struct.pack(">II", 20_000, 20_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (pathlib.Path(config.path) / "a.png").write_bytes(data)
    message = refusal(config)
    assert "set data.max_pixels=400000000" in message and "attack" not in message


def test_a_run_among_the_images_is_refused_wherever_it_would_be_scanned(config, tmp_path):
    root = pathlib.Path(config.path)
    save(root / "cats" / "a.png")
    (tmp_path / "link").symlink_to(root)
    for path in (root, root / "run", root / "cats" / "run", tmp_path / "link" / "run"):
        with pytest.raises(UserError, match=r"--workdir=.* is inside of data\.path"):
            check_workdir(config, path)
    for path in (tmp_path / "run", tmp_path, root / ".runs" / "run", f"{root}-run"):
        check_workdir(config, path)
    check_workdir(dataclasses.replace(config, name="digits"), root)


def test_the_digest_is_of_names_and_bytes(config, tmp_path):
    root = pathlib.Path(config.path)
    save(root / "cats" / "a.bmp", RED)
    save(root / "cats" / "b.png", BLUE)
    digest = open_dataset(config).digest
    assert digest.startswith("2 files, ") and open_dataset(config).digest == digest
    moved = dataclasses.replace(config, path=str(tmp_path / "moved"))
    shutil.copytree(root, moved.path, copy_function=shutil.copyfile)  # other times of change
    assert open_dataset(moved).digest == digest
    for prepared in prepared_sets(config):  # as an older version wrote them
        assert "content" in (prepared / "metadata.json").read_text()
        (prepared / "metadata.json").write_text(json.dumps({"skipped": []}))
    assert open_dataset(config).digest == open_dataset(moved).digest == digest
    found = [digest]
    for change in (
        lambda: save(root / "cats" / "a.bmp", GREEN),  # the same name and size
        lambda: save(root / "cats" / "c.png"),
        lambda: (root / "cats" / "c.png").rename(root / "cats" / "d.png"),
        lambda: (root / "cats").rename(root / "dogs"),
    ):
        change()
        found.append(open_dataset(config).digest)
    assert len(set(found)) == 5
