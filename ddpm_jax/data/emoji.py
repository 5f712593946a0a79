"""Colour emoji: Unicode's list, rendered with the Noto colour emoji font.

The labels are Unicode's nine groups ("Smileys & Emotion" .. "Flags"). Each record also keeps the
`name` ("grinning face") and the `subgroup` ("face-smiling").

Each fully qualified emoji that the font draws as one glyph is rendered at the font's own size
(136x128), centred on a transparent square. Then `images.py` resamples it: on white for RGB and
grey, transparent for RGBA. If several names have the same picture (the flags of Norway and Bouvet
Island), only the first in the list is kept. Noto 2.042 and Unicode 15.0 give 3,641 pictures, or
1,861 without skin tones.

About one emoji in twenty is in the split "test". A hash of the emoji without its skin tone decides,
so all skin tones of one emoji are in the same split.

The font and the list come from the Debian packages fonts-noto-color-emoji (SIL Open Font License
1.1) and unicode-data.
"""

import hashlib
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageDraw, ImageFont, features

from ddpm_jax.config import DataConfig
from ddpm_jax.data import images
from ddpm_jax.data.prepared import Builder
from ddpm_jax.errors import UserError

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
EMOJI_TEST = "/usr/share/unicode/emoji/emoji-test.txt"
STRIKE = 109  # the only size of the font's bitmaps, in pixels per em
SKIN_TONES = frozenset(chr(code) for code in range(0x1F3FB, 0x1F400))
EMOJI_STYLE = "\N{VARIATION SELECTOR-16}"  # selects the coloured form; a skin tone replaces it
HOLDOUT = 20  # about one in HOLDOUT emoji is held out


class Glyph(NamedTuple):
    """One line of Unicode's list: the characters, their name, group and subgroup."""

    text: str
    name: str
    group: str
    subgroup: str


class Emoji(Builder, skip_registration=True):
    """Builder of the set `emoji`; each font, list and size has its own prepared directory.

    Raises:
      UserError: the font or the list is missing or of another kind.
    """

    name = "emoji"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, data_config: DataConfig, **kwargs: Any):
        self.font_path = _existing("data.font_path", data_config.font_path, FONT)
        list_path = _existing("data.emoji_test_path", data_config.emoji_test_path, EMOJI_TEST)
        self.size = data_config.image_size or 32
        self.channels = data_config.channels or 3
        self.glyphs = read_list(list_path, data_config.skin_tones)
        key = hashlib.sha256()
        for part in (self.font_path, list_path):
            key.update(part.read_bytes())
        key.update(repr((self.size, self.channels, data_config.skin_tones)).encode())
        variant = f"{self.size}x{self.channels}_{key.hexdigest()[:16]}"
        super().__init__(data_config=data_config, variant=variant, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        groups = list(dict.fromkeys(glyph.group for glyph in self.glyphs))
        return tfds.core.DatasetInfo(
            builder=self,
            description="Colour emoji rendered from a font, in Unicode's groups.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(self.size, self.size, self.channels)),
                    "label": tfds.features.ClassLabel(names=groups),
                    "name": tfds.features.Text(),
                    "subgroup": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        draw = Renderer(self.font_path)
        pictures = {}
        seen = set()
        for glyph in self.glyphs:
            picture = draw(glyph.text)
            if picture is not None and (pixels := picture.tobytes()) not in seen:
                seen.add(pixels)
                picture = images.convert(picture, self.channels)
                pictures[glyph] = images.encode_png(images.resize(picture, self.size))
        return {
            "train": self._generate_examples(
                {g: p for g, p in pictures.items() if not held_out(g)}
            ),
            "test": self._generate_examples({g: p for g, p in pictures.items() if held_out(g)}),
        }

    def _generate_examples(
        self, pictures: dict[Glyph, bytes]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for glyph, picture in pictures.items():
            record = {
                "image": picture,
                "label": glyph.group,
                "name": glyph.name,
                "subgroup": glyph.subgroup,
            }
            yield glyph.text, record


class Renderer:
    """Draws emoji at the font's own size.

    Args:
      font_path: a colour emoji font with bitmaps, such as NotoColorEmoji.ttf.

    Raises:
      UserError: Pillow was built without raqm, or the file is not such a font.
    """

    def __init__(self, font_path: pathlib.Path):
        if not features.check("raqm"):
            raise UserError(
                "data.name='emoji' needs Pillow with raqm, but this Pillow was built without it; "
                "install Pillow's wheel: pip install --force-reinstall pillow"
            )
        try:
            self.font = ImageFont.truetype(
                str(font_path), STRIKE, layout_engine=ImageFont.Layout.RAQM
            )
        except OSError as error:
            raise UserError(
                f"data.font_path {font_path} is not a colour emoji font with bitmaps of {STRIKE} "
                f"pixels ({error}); set data.font_path to a file such as NotoColorEmoji.ttf"
            ) from error
        self.box = self.font.getbbox("\N{GRINNING FACE}")
        face = self("\N{GRINNING FACE}")
        if face is None or not np.ptp(np.asarray(face)[:, :, :3], axis=2).any():  # blank or grey
            raise UserError(
                f"data.font_path {font_path} draws no coloured bitmaps; set data.font_path to a "
                "file such as NotoColorEmoji.ttf"
            )

    def __call__(self, text: str) -> Image.Image | None:
        """Return the emoji as RGBA on a transparent square; None if the font has no single glyph.

        The side of the square is the longer side of the font's bitmaps (136 for Noto).
        """
        if self.font.getbbox(text) != self.box:  # no glyph, or a sequence drawn as several glyphs
            return None
        left, top, right, bottom = map(int, self.box)
        width, height = right - left, bottom - top
        side = max(width, height)
        picture = Image.new("RGBA", (side, side))
        place = ((side - width) // 2 - left, (side - height) // 2 - top)
        ImageDraw.Draw(picture).text(place, text, font=self.font, embedded_color=True)
        return picture


def read_list(path: pathlib.Path, skin_tones: bool) -> list[Glyph]:
    """Return the fully qualified emoji of Unicode's emoji-test.txt, in the order of the file.

    Args:
      path: the file emoji-test.txt.
      skin_tones: whether to keep the emoji with a skin tone.

    Raises:
      UserError: the file lists no emoji.
    """
    glyphs = []
    group = subgroup = ""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("# group:"):
            group = line.partition(":")[2].strip()
        elif line.startswith("# subgroup:"):
            subgroup = line.partition(":")[2].strip()
        elif "; fully-qualified" in line:
            codes, _, comment = line.partition(";")
            text = "".join(chr(int(code, 16)) for code in codes.split())
            name = comment.partition("#")[2].split(maxsplit=2)[2]  # "😀 E1.0 grinning face"
            if skin_tones or SKIN_TONES.isdisjoint(text):
                glyphs.append(Glyph(text, name, group, subgroup))
    if not glyphs:
        raise UserError(
            f"data.emoji_test_path {path} lists no emoji; set it to Unicode's emoji-test.txt"
        )
    return glyphs


def held_out(glyph: Glyph) -> bool:
    """Return whether the emoji is in the split "test"; the same for all of its skin tones."""
    base = "".join(c for c in glyph.text if c not in SKIN_TONES and c != EMOJI_STYLE)
    return hashlib.sha256(base.encode()).digest()[0] % HOLDOUT == 0


def _existing(key: str, path: str, default: str) -> pathlib.Path:
    """Return the config's path, or the Debian path if the config has none.

    Raises:
      UserError: there is no such file.
    """
    found = pathlib.Path(path or default).expanduser()
    if not found.is_file():
        raise UserError(
            f"{key}: there is no file {found}; install the Debian packages fonts-noto-color-emoji "
            f"and unicode-data, or set data.font_path and data.emoji_test_path"
        )
    return found
