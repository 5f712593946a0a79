"""From any image that Pillow opens to a uint8 array of one fixed shape.

The conversions, in order:

1. An animation gives its first frame. (`folder.py` applies the EXIF orientation before. Records
   written by TFDS are used as they are stored.)
2. 16-bit grey is divided by 257, so 65535 becomes 255. Palettes, CMYK and the other colour modes
   become RGB (embedded ICC profiles are not applied). Colour becomes grey by the ITU-R 601 luma.
3. `channels` 1 or 3: transparent pixels are composited over white. `channels` 4: opaque images
   get an alpha of 255.
4. `crop` "center" scales the shorter side to `size` and cuts out the middle of the longer side.
   "stretch" scales both sides to `size`. The filter is Pillow's antialiased Lanczos filter. "pad"
   does not scale: it centers the image on a black canvas, which is transparent for 4 channels. An
   image that already has the size keeps its pixels.
"""

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from PIL import Image

from ddpm_jax.errors import UserError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
CROPS = ("center", "stretch", "pad")
# By what Pillow multiplies the pixels of a PNG file as it reads them, by its name of their layout.
FACTORS = {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}


def open_image(file: str | os.PathLike | IO[bytes]) -> Image.Image:
    """Open an image file as Pillow does, with a transparent colour on the scale of the pixels.

    A PNG file can name one colour as transparent. Pillow scales the pixels to 8 bits, but not this
    colour, so it would match other pixels or none.
    """
    image = Image.open(file)
    colour, factor = image.info.get("transparency"), FACTORS.get(layout(image))
    if factor and colour is not None:
        scaled = tuple(int(value * factor) for value in np.atleast_1d(colour))
        image.info["transparency"] = scaled if isinstance(colour, tuple) else scaled[0]
    return image


@contextlib.contextmanager
def at_most(max_pixels: int) -> Iterator[None]:
    """Refuse images with more pixels than this, in all threads, while inside `with`.

    Opening one raises `PIL.Image.DecompressionBombError`.
    """
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2  # Pillow refuses more than twice this number
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # above its half
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def layout(image: Image.Image) -> str:
    """Return Pillow's name for the layout of the pixels in the file, such as "RGB;16B", or ""."""
    tiles: Any = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def convert(image: Image.Image, channels: int) -> Image.Image:
    """Return the first frame as 8-bit grey, RGB or RGBA (`channels` 1, 3 or 4).

    Raises:
      ValueError: the pixels have no fixed range (floating point, or integers outside 0..65535).
    """
    mode = MODES[channels]
    if image.mode == mode and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    if image.mode.startswith("I"):
        pixels = np.asarray(image).astype(np.int64)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError("integer pixels outside 0..65535 have no fixed range")
        colour = image.info.get("transparency")
        image = Image.fromarray(np.round(pixels / 257).astype(np.uint8))
        if colour is not None:
            image.putalpha(Image.fromarray(np.where(pixels == colour, 0, 255).astype(np.uint8)))
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBa", "RGBA"):
        image = image.convert("RGBA")
        if channels != 4:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    return image.convert(mode)


def brightness(image: Image.Image) -> float | None:
    """Return the largest value of a 16-bit image over 65535; None for other images.

    Call it before the pixels are read: Pillow then forgets how many bits the file has.
    """
    in_file = layout(image)
    if image.mode.startswith("I;16"):
        extrema: Any = image.getextrema()
        return extrema[1] / 65535
    if ";16" in in_file and image.mode in ("RGB", "RGBA"):  # Pillow keeps 8 of the 16 bits
        extrema = image.getextrema()
        return max(high for _, high in extrema[:3]) / 255
    return None


def resize(image: Image.Image, size: int, crop: str = "center") -> Image.Image:
    """Return the image as size x size pixels.

    Args:
      image: grey, RGB or RGBA.
      size: the side in pixels.
      crop: "center", "stretch" or "pad", see the module.

    Raises:
      UserError: "pad", and the image is larger than `size`.
    """
    width, height = image.size
    if (width, height) == (size, size):
        return image
    if crop == "pad":
        if max(width, height) > size:
            raise UserError(
                f"an image of {width} x {height} pixels does not fit into data.image_size={size}, "
                "and data.crop='pad' does not scale; raise data.image_size, or set data.crop to "
                "center or stretch"
            )
        canvas = Image.new(image.mode, (size, size))
        canvas.paste(image, ((size - width) // 2, (size - height) // 2))
        return canvas
    box = (0.0, 0.0, float(width), float(height))
    if crop == "center":  # the filter also uses the pixels just outside of the square
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.LANCZOS, box=box)


def to_array(image: Image.Image) -> np.ndarray:
    """Return the pixels, uint8 [H, W, C]."""
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def encode_png(image: Image.Image) -> bytes:
    """Return the image as the bytes of a PNG file (lossless).

    zlib's level 1 is five times faster than Pillow's default of 6, for a sixth more bytes.
    """
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def decode(data: bytes, size: int, channels: int, crop: str = "center") -> np.ndarray:
    """Return an encoded image as uint8 [H, W, C].

    Args:
      data: the bytes of an image file.
      size: H = W = size; 0 keeps the image's own height and width.
      channels: C, one of 1, 3 and 4.
      crop: "center", "stretch" or "pad", see the module.

    Raises:
      ValueError: the pixels have no fixed range (`convert`).
      UserError: "pad", and the image is larger than `size`.
    """
    with open_image(io.BytesIO(data)) as image:
        image = convert(image, channels)
        return to_array(resize(image, size, crop) if size else image)
