"""Runs on one's own images: arrays of the program, and data that change between two starts."""

import dataclasses
import json
import logging

import numpy as np
import pytest
from PIL import Image
from tiny import SMALL, make_config

import ddpm_jax
from ddpm_jax.errors import UserError
from ddpm_jax.runs.workdir import DatasetFacts, open_for_training, read_config, read_facts

pytestmark = [
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
    pytest.mark.quick_to_compile,
]

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
LABELS = np.arange(40) % 3
CONFIG = {name: dict(fields) for name, fields in SMALL.items() if name != "data"}
CONFIG["model"]["class_conditional"] = True
CONFIG["train"]["num_steps"] = 2
CONFIG["eval"]["every"] = 0
FACTS = DatasetFacts((8, 8, 1), 2, ("ant", "bee"), digest="2 files, 99 bytes, sha256 0f")
OTHER = dataclasses.replace(FACTS, digest="3 files, 142 bytes, sha256 a1")


def folder(path: str, **changes):
    return make_config(data__name="folder", data__path=path, **changes)


def test_a_run_is_resumed_on_moved_data_but_not_on_changed_ones(tmp_path, caplog):
    workdir = open_for_training(tmp_path, folder("here"), FACTS)
    open_for_training(tmp_path, folder("there"), FACTS)
    assert read_config(workdir).data.path == "there"
    with pytest.raises(UserError) as caught:
        open_for_training(tmp_path, folder("elsewhere"), OTHER)
    assert str(caught.value) == (
        f"{tmp_path} was trained on other data: 2 files, 99 bytes, sha256 0f there, 3 files, 142 "
        "bytes, sha256 a1 now; bring the old data back, choose another --workdir, or set "
        "data.allow_changed=True to go on with the new data"
    )
    assert read_config(workdir).data.path == "there" and read_facts(workdir) == FACTS
    with caplog.at_level(logging.WARNING):
        open_for_training(tmp_path, folder("there", data__allow_changed=True), OTHER)
    assert "the data have changed (data.allow_changed)" in caplog.text
    assert read_facts(workdir) == OTHER
    caplog.clear()
    open_for_training(tmp_path, folder("there"), OTHER)
    assert not caplog.text
    fewer = dataclasses.replace(OTHER, num_classes=1, class_names=("ant",))
    with pytest.raises(UserError, match="gone: class .bee."):
        open_for_training(tmp_path, folder("there", data__allow_changed=True), fewer)


def test_a_run_of_a_version_without_digests_is_resumed_where_its_data_are(tmp_path):
    old = dataclasses.replace(FACTS, digest="")
    workdir = open_for_training(tmp_path, folder("here"), old)
    facts = json.loads(workdir.dataset.read_text())
    del facts["digest"]
    workdir.dataset.write_text(json.dumps(facts))
    assert read_facts(workdir) == old
    with pytest.raises(UserError, match=r"data.path: 'here' there, 'there' now"):
        open_for_training(tmp_path, folder("there"), FACTS)
    open_for_training(tmp_path, folder("here"), FACTS)
    assert read_facts(workdir) == FACTS


def test_more_steps_are_refused_only_where_the_rate_depends_on_their_number(tmp_path):
    for decay in ("cosine", "constant"):
        before, after = (folder("here", optim__decay=decay, train__num_steps=n) for n in (8, 9))
        open_for_training(tmp_path / decay, before, FACTS)
        if decay == "cosine":
            with pytest.raises(UserError, match=r"train\.num_steps: 8 there, 9 now"):
                open_for_training(tmp_path / decay, after)
        else:
            open_for_training(tmp_path / decay, after)


@pytest.mark.slow
def test_a_run_is_trained_on_arrays_of_the_program(tmp_path, capsys):
    result = ddpm_jax.train(CONFIG, tmp_path / "run", images=IMAGES, labels=LABELS)
    assert int(result.state.step) == 2
    said = capsys.readouterr().out
    assert "data: array, 38 training images, 2 held out, 8x8x1, 3 classes: 0, 1, 2\n" in said
    _, params = ddpm_jax.load(tmp_path / "run")
    assert params


@pytest.mark.slow
def test_a_folder_that_moves_and_changes_between_two_starts(tmp_path, capsys):
    for i, (pixels, label) in enumerate(zip(IMAGES[..., 0], LABELS, strict=True)):
        path = tmp_path / "here" / f"class {label}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)

    def start(place: str, num_steps: int, **data) -> int:
        data |= {"name": "folder", "path": str(tmp_path / place), "data_dir": str(tmp_path / "d")}
        data |= {"image_size": 8, "channels": 1}
        config = CONFIG | {"data": data, "train": CONFIG["train"] | {"num_steps": num_steps}}
        return int(ddpm_jax.train(config, tmp_path / "run").state.step)

    assert start("here", 1) == 1
    assert "3 classes: class 0, class 1, class 2\n" in capsys.readouterr().out
    (tmp_path / "here").rename(tmp_path / "there")
    assert start("there", 2) == 2
    assert "resumed at step 1" in capsys.readouterr().out
    Image.fromarray(IMAGES[0, ..., 0]).save(tmp_path / "there" / "class 0" / "new.png")
    with pytest.raises(UserError, match="was trained on other data: 40 files, .* now; bring"):
        start("there", 3)
    assert start("there", 3, allow_changed=True) == 3
