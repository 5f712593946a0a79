"""No path out of an archive, a folder or a run leads elsewhere: nothing there is touched or read.

Hostile names and links beside what is wanted, in the real readers; `secret` is what they aim at.
The name of a set is tried in test_hostile.py.
"""

import gzip
import io
import shutil
import tarfile
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image
from test_data_cifar import NAMES_10, rows
from test_torch_file import BLOCK, program_of

from ddpm_jax import config as config_lib
from ddpm_jax.config import DataConfig
from ddpm_jax.data.cifar import Cifar10
from ddpm_jax.data.folder import scan
from ddpm_jax.data.mnist import read_idx
from ddpm_jax.errors import UserError
from ddpm_jax.pretrained.torch_file import read_tensors
from ddpm_jax.runs import metrics, workdir
from ddpm_jax.runs.checkpoint import Checkpoints, restore_ema
from ddpm_jax.runs.state import TrainState


@pytest.fixture
def secret(tmp_path):
    """A directory beside `tmp_path/here`; what it holds must be the same at the end."""
    root = tmp_path / "secret"
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "key").write_text("mine")
    picture = np.full((8, 8, 3), 77, np.uint8)
    Image.fromarray(picture).save(root / "picture.png")
    (tmp_path / "here").mkdir()

    def content():
        return {
            path.relative_to(tmp_path): path.is_file() and path.read_bytes()
            for path in tmp_path.rglob("*")
            if tmp_path / "here" not in (path, *path.parents)
        }

    before = content()
    yield root
    assert content() == before


def test_an_archive_of_cifar_writes_nowhere_and_its_links_lead_nowhere(secret, tmp_path):
    folder, images = Cifar10.FOLDER, np.zeros((2, 32, 32, 3), np.uint8)
    hostile = ["../secret/deep/key", f"{folder}/../../secret/new", str(secret / "deep" / "key")]
    path = tmp_path / "here" / "cifar.tar"
    with tarfile.open(path, "w") as archive:
        for name in (*hostile, f"{folder}/data_batch_1.bin"):
            data = rows(images, np.array([3, 4]))
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target in (("test_batch.bin", "../../secret/picture.png"), ("x", str(secret))):
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    config = DataConfig(name="cifar10", data_dir=str(tmp_path / "here"))
    builder = Cifar10(data_config=config, data_dir=config.data_dir)
    builder.info.features["label"].names = NAMES_10
    read = list(builder._generate_examples(path, "train", ("data_batch_1.bin",)))
    assert [record["label"] for _, record in read] == [3, 4]
    with pytest.raises(KeyError, match="linkname"):  # only the archive is searched
        list(builder._generate_examples(path, "test", ("test_batch.bin",)))


def test_the_name_within_a_gzipped_file_is_not_used(secret, tmp_path):
    path = tmp_path / "here" / "a.gz"
    with path.open("wb") as raw, gzip.GzipFile("../secret/deep/key", "wb", fileobj=raw) as file:
        file.write(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]))
    assert b"key" in path.read_bytes()
    assert read_idx(path).tolist() == [7, 9]


def test_the_names_within_a_file_of_torch_are_not_used(secret, tmp_path):
    path = tmp_path / "here" / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../secret/data.pkl", program_of((2, 3), (3, 1), key="../deep/key"))
        archive.writestr("../secret/data/../deep/key", BLOCK)
        archive.writestr(str(secret / "new"), b"x")
    np.testing.assert_array_equal(read_tensors(path)["w"].ravel(), np.arange(6))


def test_links_out_of_a_folder_of_images_are_refused_unless_they_are_ones_own(secret, tmp_path):
    root = tmp_path / "here"
    Image.new("RGB", (8, 8)).save(root / "a.png")
    (root / "b.png").symlink_to("a.png")  # stays inside
    (root / "notes.txt").symlink_to(secret / "deep" / "key")  # is no image
    assert scan(root) == ["a.png", "b.png"]
    for name, target in (("c.png", "picture.png"), ("d", "."), ("e.png", "no.png")):
        link = root / name
        link.symlink_to(secret / target)
        with pytest.raises(UserError, match=f"{link} is a link to {secret}.*data.follow_links=Tru"):
            scan(root)
        if name != "d":
            assert scan(root, follow_links=True) == ["a.png", "b.png", name]
        link.unlink()
    (root / "d").symlink_to(secret)
    assert scan(root, follow_links=True) == ["a.png", "b.png", "d/picture.png"]


def test_a_link_to_the_folder_itself_is_not_gone_round(tmp_path):
    (tmp_path / "class").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "class" / "a.png")
    (tmp_path / "class" / "again").symlink_to(tmp_path)
    assert scan(tmp_path) == scan(tmp_path, follow_links=True) == ["class/a.png"]


LINKS = ["lock", "config.json", "metrics.jsonl", "metrics.tmp", "samples/step_0000001_ema.png"]


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("target", ["deep/key", "new"])
def test_a_run_with_a_file_that_is_a_link_is_refused(secret, tmp_path, name, target):
    paths = workdir.WorkDir(tmp_path / "here")
    paths.samples.mkdir()
    (paths.root / name).symlink_to(secret / target)
    with pytest.raises(UserError, match=f"{name} is a link"), workdir.locked(paths.root):
        workdir.open_for_training(paths.root, config_lib.from_dict({}))
        metrics.MetricsWriter(paths, 0)
    with pytest.raises(UserError, match=f"{name} is a link"):
        workdir.open_for_reading(paths.root)


def test_checkpoints_of_odd_names_are_left_alone_and_links_are_not_followed_to_delete(
    secret, tmp_path
):
    def tree(n):
        return {"kernel": jax.numpy.full((4, 4), float(n))}

    def save(checkpoints, n):
        checkpoints.save(TrainState(jax.numpy.int32(n), tree(n), tree(n), tree(n)), wait=True)

    directory = tmp_path / "here" / "checkpoints"
    checkpoints = Checkpoints(directory, 1, 0)
    save(checkpoints, 3)
    checkpoints.close()
    odd = ["..5", "-7", "1.5", "0009", "8 (copy)", "\u0666", "latest"]
    for name in odd:
        shutil.copytree(directory / "3", directory / name)
    links = ["9.orbax-checkpoint-tmp-1", "6"]  # Orbax removes the first kind when it starts
    for name in links:
        (directory / name).symlink_to(secret / "deep")
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree(0)
    )
    assert restore_ema(directory, abstract)[0] == 3
    state = TrainState(jax.numpy.int32(0), tree(0), tree(0), tree(0))
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    checkpoints = Checkpoints(directory, 1, 0)
    assert int(checkpoints.restore_latest(state).step) == 3
    for n in (10, 11):
        save(checkpoints, n)
    checkpoints.close()
    assert {path.name for path in directory.iterdir()} >= {"11", *odd}
    assert not (directory / "3").exists() and not (directory / "10").exists()
