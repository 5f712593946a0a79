"""Emoji: pictures from the real font if it is installed; the list and the errors always."""

import collections
import pathlib

import numpy as np
import pytest

from ddpm_jax.config import DataConfig
from ddpm_jax.data import emoji, open_dataset, prepared
from ddpm_jax.data.emoji import Emoji, Glyph, held_out, read_list
from ddpm_jax.errors import UserError

LIST = """# group: Smileys & Emotion

# subgroup: face-smiling
1F600                                      ; fully-qualified     # 😀 E1.0 grinning face
263A FE0F                                  ; fully-qualified     # ☺️ E0.6 smiling face
263A                                       ; unqualified         # ☺ E0.6 smiling face

# group: People & Body

# subgroup: hand-fingers-open
1F44B                                      ; fully-qualified     # 👋 E0.6 waving hand
1F44B 1F3FB                   ; fully-qualified     # 👋🏻 E1.0 waving hand: light skin tone

# group: Flags

# subgroup: country-flag
1F1F3 1F1F4                                ; fully-qualified     # 🇳🇴 E2.0 flag: Norway
1F1E7 1F1FB                                ; fully-qualified     # 🇧🇻 E2.0 flag: Bouvet Island
1F415 1F600                                ; fully-qualified     # 🐕😀 E99.0 two glyphs
"""

FONT_IS_THERE = pathlib.Path(emoji.FONT).is_file() and pathlib.Path(emoji.EMOJI_TEST).is_file()
needs_font = pytest.mark.skipif(
    not FONT_IS_THERE, reason="needs Debian's fonts-noto-color-emoji and unicode-data"
)


@pytest.fixture
def short_list(tmp_path) -> str:
    (tmp_path / "emoji-test.txt").write_text(LIST, encoding="utf-8")
    return str(tmp_path / "emoji-test.txt")


def test_the_list_is_read_with_names_groups_and_subgroups(short_list):
    glyphs = read_list(pathlib.Path(short_list), skin_tones=True)
    assert [glyph.name for glyph in glyphs] == [
        "grinning face",
        "smiling face",
        "waving hand",
        "waving hand: light skin tone",
        "flag: Norway",
        "flag: Bouvet Island",
        "two glyphs",
    ]
    assert glyphs[1] == Glyph("\u263a\ufe0f", "smiling face", "Smileys & Emotion", "face-smiling")
    assert glyphs[4].text == "\U0001f1f3\U0001f1f4" and glyphs[4].subgroup == "country-flag"
    plain = read_list(pathlib.Path(short_list), skin_tones=False)
    assert plain == [glyph for glyph in glyphs if "skin tone" not in glyph.name]


def test_the_skin_tones_of_an_emoji_are_on_one_side():
    for base in "\u261d\ufe0f", "\U0001f44b", "\U0001f46e\u200d\u2640\ufe0f":
        toned = [base[0] + tone + base[1:].lstrip("\ufe0f") for tone in emoji.SKIN_TONES]
        sides = {held_out(Glyph(text, "", "", "")) for text in (base, *toned)}
        assert len(sides) == 1


@pytest.mark.parametrize("key", ["font_path", "emoji_test_path"])
def test_an_absent_file_is_named_with_the_packages_that_hold_it(tmp_path, short_list, key):
    paths = {"font_path": short_list, "emoji_test_path": short_list, key: str(tmp_path / "no")}
    with pytest.raises(UserError) as caught:
        open_dataset(DataConfig(name="emoji", data_dir=str(tmp_path), **paths))
    for word in (f"data.{key}", str(tmp_path / "no"), "fonts-noto-color-emoji", "unicode-data"):
        assert word in str(caught.value)


def test_files_of_another_kind_are_refused(tmp_path, short_list):
    (tmp_path / "notes.txt").write_text("# group: none\n")
    config = DataConfig(name="emoji", data_dir=str(tmp_path), font_path=short_list)
    with pytest.raises(UserError, match="data.emoji_test_path .* lists no emoji"):
        open_dataset(DataConfig(**{**vars(config), "emoji_test_path": str(tmp_path / "notes.txt")}))
    with pytest.raises(UserError, match="data.font_path .* not a colour emoji font"):
        open_dataset(DataConfig(**{**vars(config), "emoji_test_path": short_list}))


@pytest.mark.slow
@needs_font
def test_every_emoji_once_in_nine_groups_on_white(tmp_path):
    dataset = open_dataset(DataConfig(name="emoji", data_dir=str(tmp_path)))
    assert dataset.image_shape == (32, 32, 3)
    assert dataset.num_classes == 9
    assert dataset.class_names[0] == "Smileys & Emotion" and dataset.class_names[-1] == "Flags"
    images = np.concatenate([s.read(np.arange(len(s)))[0] for s in (dataset.train, dataset.test)])
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)
    corners = images[:, [0, 0, -1, -1], [0, -1, 0, -1]].reshape(len(images), -1)
    assert (np.median(corners, axis=0) == 255).all()
    assert 0.03 < len(dataset.test) / len(images) < 0.08
    if pathlib.Path(emoji.EMOJI_TEST).read_text(encoding="utf-8").find("Version: 15.0") > 0:
        assert len(images) == 3641
        labels = np.concatenate(
            [s.read(np.arange(len(s)))[1] for s in (dataset.train, dataset.test)]
        )
        assert np.bincount(labels).tolist() == [166, 2142, 152, 133, 218, 85, 261, 223, 261]


@needs_font
def test_names_are_kept_and_copies_and_broken_sequences_left_out(tmp_path, short_list):
    config = DataConfig(name="emoji", data_dir=str(tmp_path), emoji_test_path=short_list)
    builder = prepared.prepare(Emoji(data_config=config, data_dir=str(tmp_path)))
    kept = collections.Counter()
    for split in builder.info.splits:
        for record in builder.as_data_source(split):
            kept[record["name"].decode(), record["subgroup"].decode()] += 1
    assert kept == {
        ("grinning face", "face-smiling"): 1,
        ("smiling face", "face-smiling"): 1,
        ("waving hand", "hand-fingers-open"): 1,
        ("waving hand: light skin tone", "hand-fingers-open"): 1,
        ("flag: Norway", "country-flag"): 1,  # Bouvet Island's flag is the same picture
    }


@needs_font
def test_sizes_channels_and_lists_are_prepared_apart(tmp_path, short_list):
    def open_with(**kwargs):
        return open_dataset(
            DataConfig(
                name="emoji",
                data_dir=str(tmp_path),
                emoji_test_path=short_list,
                train_split="all",
                test_split="",
                **kwargs,
            )
        )

    assert open_with().image_shape == (32, 32, 3)
    large = open_with(image_size=100, channels=4)
    assert large.image_shape == (100, 100, 4)
    images, _ = large.train.read(np.arange(5))
    assert (images[:, 0, 0, 3] == 0).all() and (images[:, 50, 50, 3] == 255).all()
    assert len(open_with(skin_tones=False).train) == 4
    assert len(open_with().train) == 5
    assert open_with(channels=1).image_shape == (32, 32, 1)
    shorter = pathlib.Path(short_list).read_text(encoding="utf-8").replace("1F600 ", "1F648 ", 1)
    pathlib.Path(short_list).write_text(shorter, encoding="utf-8")
    before, after = images, open_with(image_size=100, channels=4).train.read(np.arange(5))[0]
    assert len({image.tobytes() for image in [*before, *after]}) == 6  # one of five has changed
