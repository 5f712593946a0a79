"""Rendered solids, and folders of renderings: every image has its object and its camera."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax.config import DataConfig
from ddpm_jax.data import open_dataset
from ddpm_jax.data.solids import FIELD_OF_VIEW, HUES, RADIUS, colour_name
from ddpm_jax.errors import UserError
from ddpm_jax.scenes import cameras, sides, solids
from ddpm_jax.training.scene import draw_angles, draw_lights

SIZES = {"image_size": 16, "objects_per_class": 1, "views_per_object": 3}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return DataConfig(name="solids", data_dir=str(tmp_path_factory.mktemp("data")), **SIZES)


@pytest.fixture(scope="module")
def dataset(config):
    return open_dataset(config)


def test_every_object_has_its_views_in_one_split(dataset):
    assert (len(dataset.train), len(dataset.test)) == (8 * 3, 8 * 4 * 3)
    assert dataset.image_shape == (16, 16, 3) and dataset.class_names == tuple(solids.SOLIDS)
    train, test = dataset.train_views.object, dataset.test_views.object
    assert sorted(train) == sorted(np.repeat(np.arange(8), 3))
    assert sorted(test) == sorted(np.repeat(np.arange(8, 40), 3))
    _, labels = dataset.test.read(np.arange(96))
    np.testing.assert_array_equal(labels, (test - 8) // 4)


def test_the_cameras_are_on_an_orbit_and_see_the_object(dataset):
    views = dataset.train_views
    np.testing.assert_allclose(np.linalg.norm(views.pose[:, :3, 3], axis=1), 3.5, rtol=1e-5)
    np.testing.assert_allclose(views.focal, 8 / np.tan(np.deg2rad(20)), rtol=1e-6)
    np.testing.assert_array_equal(views.centre, 8.0)
    elevation = np.rad2deg(np.arcsin(views.pose[:, 2, 3] / 3.5))
    assert elevation.min() >= -10.01 and elevation.max() <= 70.01 and np.ptp(elevation) > 40
    pixels, labels = dataset.train.read(np.arange(24))
    dark = (pixels < 250).any(axis=-1)
    assert (dark.mean(axis=(1, 2)) > 0.05).all()
    whole = np.isin(labels, [0, 1, 4, 5])  # these solids hold the origin, which is the middle
    assert dark[whole][:, 7:9, 7:9].all() and not dark[:, 0, 0].any()


def test_an_image_is_that_of_its_camera(dataset):
    """The outline of a sphere of the drawn size, by its own formula."""
    (row,) = np.flatnonzero(dataset.train.read(np.arange(24))[1] == 1)[:1]
    views = dataset.train_views
    camera = cameras.Camera(*(np.asarray(x[row]) for x in views[1:]))
    origins, directions = (np.asarray(x) for x in cameras.rays(camera, 16, 16))
    pixels = dataset.train.read(np.array([row]))[0][0]

    def misses(size):
        o, d = origins / size, directions / size
        a, b, c = (d * d).sum(-1), (o * d).sum(-1), (o * o).sum(-1) - 0.64
        return ((b * b > a * c) != (pixels < 200).any(axis=-1)).sum()

    rng = np.random.default_rng([0, 1, 0])
    key = jax.random.wrap_key_data(
        rng.integers(2**32, size=2, dtype=np.uint32), impl="threefry2x32"
    )
    size = np.asarray(solids.draw(key, 1).size)
    assert misses(size) < 12 < misses(size * 1.5)


def test_view_labels_name_the_view_of_most_images(config):
    named = dataclasses.replace(config, view_labels=True, views_per_object=8)
    dataset = open_dataset(named)
    assert dataset.num_classes == 200
    assert dataset.class_names[:4] == (
        "cube", "cube, front 0-45 low", "cube, left 45-90 low", "cube, left 90-135 low",
    )  # fmt: skip
    _, labels = dataset.test.read(np.arange(len(dataset.test)))
    views = dataset.test_views
    position = views.pose[:, :3, 3]
    azimuth = np.degrees(np.arctan2(position[:, 1], position[:, 0]))
    elevation = np.degrees(np.arcsin(position[:, 2] / 3.5))
    names = np.array(dataset.class_names)[labels]
    plain = np.char.find(names, ",") < 0
    assert abs(plain.mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / len(plain))
    beside = np.where(azimuth > 0, "left", "right")
    around = np.select([abs(azimuth) < 45, abs(azimuth) > 135], ["front", "back"], beside)
    levels = np.select([elevation < 20, elevation < 50], ["low", "high"], "top")
    seen = set()
    for i in np.flatnonzero(~plain):
        side, degrees, *level = names[i].split(", ")[1].split()
        first, last = map(int, degrees.split("-"))
        assert first < azimuth[i] % 360 < last == first + 45
        assert (side, level) == (("top", []) if levels[i] == "top" else (around[i], [levels[i]]))
        seen.add((degrees, levels[i]))
    assert len(seen) == 24
    np.testing.assert_array_equal(labels // 25, (views.object - 8) // 4)


def test_texts_name_the_colours_the_class_and_the_view_of_the_label(config):
    named = dataclasses.replace(config, text=True, view_labels=True, views_per_object=8)
    dataset = open_dataset(named)
    pixels, labels = dataset.test.read(np.arange(len(dataset.test)))
    plain = set()
    for text, label, picture in zip(dataset.test_texts, labels, pixels, strict=True):
        what = text.split(" seen from the ")[0]
        assert text == sides.caption(what, label % 25 - 1)
        article, *colours, name = what.replace(" and ", " ").replace(" striped", "").split()
        assert article == "a" and list(solids.SOLIDS)[label // 25] == name
        assert len(colours) == 1 or ("striped" in what and colours[0] != colours[1])
        if "striped" not in what and colours[0] in HUES:
            plain.add(colours[0])
            shares = picture[(picture < 250).any(axis=-1)].mean(axis=0)
            number, mixed = divmod(HUES.index(colours[0]), 2)  # red, green, blue lead their hues
            least = (number + 2) % 3  # yellow is little blue
            assert (np.argmin(shares) == least) if mixed else (np.argmax(shares) == number)
    assert len(plain) >= 3


def test_a_caption_names_the_view():
    assert sides.caption("a cone", sides.HIDDEN) == "a cone"
    texts = [sides.caption("a cone", view) for view in range(sides.NUM_VIEWS)]
    assert len(set(texts)) == sides.NUM_VIEWS
    assert texts[0] == "a cone seen from the front, slightly left, low"
    for text, side in zip(texts, sides.SIDE_OF_VIEW, strict=True):
        around, _, level = text.removeprefix("a cone seen from the ").split(", ")
        assert (level == "top") if side == 4 else (around == sides.SIDES[side])


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((0.9, 0.1, 0.1), "red"), ((0.9, 0.1, 0.2), "red"), ((0.9, 0.8, 0.1), "yellow"),
        ((0.1, 0.9, 0.1), "green"), ((0.1, 0.8, 0.8), "turquoise"), ((0.1, 0.1, 0.9), "blue"),
        ((0.7, 0.1, 0.7), "purple"), ((0.5, 0.5, 0.5), "grey"), ((0.9, 0.9, 0.8), "white"),
        ((0.1, 0.1, 0.1), "black"), ((0.1, 0.0, 0.0), "black"), ((0.25, 0.25, 0.25), "black"),
    ],
)  # fmt: skip
def test_a_colour_has_a_name(rgb, name):
    assert colour_name(np.float32(rgb)) == name


def test_views_at_their_borders_and_after_whole_turns():
    degrees = [1.0, 44.0, 46.0, 134.0, 136.0, -1.0, -44.0, -136.0, 361.0, -400.0, 539.0]
    sectors = [0, 0, 1, 2, 3, 7, 7, 4, 0, 7, 3]
    for elevation, level in ((-10.0, 0), (19.0, 0), (21.0, 1), (49.0, 1), (51.0, 2), (70.0, 2)):
        views = sides.view_of(np.deg2rad(degrees), np.deg2rad(elevation))
        assert views.tolist() == [8 * level + sector for sector in sectors]
        around = ["front", "front", "left", "left", "back", "front", "front", "back", "front",
                  "front", "back"]  # fmt: skip
        expected = ["top"] * len(degrees) if level == 2 else around
        assert [sides.SIDES[side] for side in sides.SIDE_OF_VIEW[np.asarray(views)]] == expected


def test_a_label_names_its_class_and_its_view():
    names = sides.names(("a", "b"))
    assert len(set(names)) == len(names) == 2 * (1 + sides.NUM_VIEWS)
    for label in (0, 1):
        assert names[sides.label_of(label, sides.HIDDEN)] == "ab"[label]
        for view, side in enumerate(sides.SIDE_OF_VIEW):
            name = names[sides.label_of(label, view)]
            assert name.startswith(f"{'ab'[label]}, {sides.SIDES[side]} {45 * (view % 8)}-")


def test_the_mean_light_is_that_of_the_pictures():
    """The same solids in black under full light show where they are, in white their light."""
    side, n = 16, 6

    @jax.jit
    def lights(key, label):
        keys = jax.random.split(key, 3)
        solid = solids.draw(keys[0], label)
        camera = cameras.orbit(*draw_angles(keys[1], n), RADIUS, FIELD_OF_VIEW, side)

        def picture(colour, ambient, camera, light):
            plain = solid._replace(colours=jnp.full((2, 3), colour))
            return (solids.render(plain, camera, light, side, ambient)[..., 0] + 1) / 2

        black, white = (
            jax.vmap(functools.partial(picture, *mode))(camera, draw_lights(keys[2], n))
            for mode in ((0.0, 1.0), (1.0, 0.0))
        )
        return white.mean(where=black < 0.5)

    found = [
        float(lights(jax.random.key(i), label))
        for label in range(len(solids.SOLIDS))
        for i in range(8)
    ]
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - solids.MEAN_LIT) < 3 * error < 0.05


def test_options_of_solids_are_refused_for_other_sets(tmp_path):
    for field in ("objects_per_class", "views_per_object", "view_labels"):
        with pytest.raises(UserError, match=rf"^data.{field} .*data.name=digits .*\(solids: yes\)"):
            open_dataset(DataConfig(name="digits", data_dir=str(tmp_path), **{field: 7}))


# srn


def write_object(path: pathlib.Path, num_views: int, side: int = 8, alpha: bool = False):
    (path / "rgb").mkdir(parents=True)
    (path / "pose").mkdir()
    (path / "intrinsics.txt").write_text(f"20.5 4.25 3.75 0.\n0. 0. 0.\n1.\n{side} {side}\n")
    poses = cameras.look_at(np.array([[3.0, i, 1.0] for i in range(num_views)]))
    for i, pose in enumerate(np.asarray(poses)):
        pixels = np.full((side, side, 4 if alpha else 3), 10 * i, np.uint8)
        if alpha:
            pixels[0, 0, 3], pixels[1:, :, 3] = 0, 255
        Image.fromarray(pixels).save(path / "rgb" / f"{i:06}.png")
        (path / "pose" / f"{i:06}.txt").write_text(" ".join(f"{x:.9g}" for x in pose.ravel()))
    return poses


@pytest.fixture
def srn(tmp_path):
    root = tmp_path / "cars"
    poses = {
        name: write_object(root / name, n, alpha=n == 2)
        for name, n in {"cars_train/a": 3, "cars_train/b": 2, "cars_test/c": 2}.items()
    }
    (root / "notes.txt").write_text("not a split")
    config = DataConfig(name="srn", path=str(root), data_dir=str(tmp_path / "data"))
    return config, root, poses


def test_a_folder_of_renderings_keeps_objects_and_cameras(srn):
    config, _, poses = srn
    dataset = open_dataset(config)
    assert dataset.image_shape == (8, 8, 3) and not dataset.num_classes
    assert sorted(dataset.train_views.object) == [0, 0, 0, 1, 1]
    assert dataset.test_views.object.tolist() == [2, 2]
    images, _ = dataset.train.read(np.arange(5))
    for image, index, pose in zip(images, *dataset.train_views[:2], strict=True):
        expected = poses["cars_train/a" if index == 0 else "cars_train/b"][image[5, 5, 0] // 10]
        np.testing.assert_allclose(pose, expected, rtol=1e-6, atol=1e-7)
        assert (image[0, 0] == (255 if index == 1 else image[5, 5])).all()  # alpha goes on white
    np.testing.assert_allclose(dataset.train_views.focal, 20.5)
    np.testing.assert_allclose(dataset.train_views.centre, [[4.25, 3.75]] * 5)


def test_a_camera_is_scaled_with_its_image(srn):
    views = open_dataset(dataclasses.replace(srn[0], image_size=4)).test_views
    np.testing.assert_allclose(views.focal, 10.25)
    np.testing.assert_allclose(views.centre, [[2.125, 1.875]] * 2)


def replaced(text):
    return lambda path: path.write_text(text)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("pose/000001.txt", pathlib.Path.unlink, "cannot be read (No such file"),
        ("pose/000001.txt", replaced("1 2 3"), "must hold 16 numbers"),
        ("pose/000001.txt", replaced("nan " * 16), "must hold 16 numbers"),
        ("intrinsics.txt", pathlib.Path.unlink, "cannot be read (No such file"),
        ("intrinsics.txt", replaced("1 2"), "must have a first line 'f c_u c_v 0.'"),
        ("intrinsics.txt", replaced("-1 2 2 0\n8 8"), "above 0"),
        ("rgb/000001.png", replaced("no image"), "cannot be read as an image"),
        ("rgb/000001.png", lambda p: Image.new("RGB", (8, 9)).save(p), "must be 8x8"),
    ],
)
def test_a_damaged_file_is_named(srn, file, change, message):
    config, root, _ = srn
    change(root / "cars_train/a" / file)
    with pytest.raises(UserError) as caught:
        open_dataset(config)
    assert f"{root}/cars_train/a/{file}" in str(caught.value) and message in str(caught.value)


def test_a_path_without_objects_is_refused(tmp_path):
    for path, message in (("", "data.path is empty"), (str(tmp_path / "no"), "not a directory"),
                          (str(tmp_path), "holds no objects")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            open_dataset(DataConfig(name="srn", path=path, data_dir=str(tmp_path)))


def test_a_changed_file_is_prepared_again(srn):
    config, root, _ = srn
    open_dataset(config)
    write_object(root / "cars_test" / "d", 1)
    assert open_dataset(config).test_views.object.tolist().count(3) == 1


def test_other_crops_would_need_other_cameras(tmp_path):
    with pytest.raises(UserError, match=r"^data.crop is 'pad', but data.name=solids"):
        open_dataset(DataConfig(name="solids", crop="pad", data_dir=str(tmp_path)))
