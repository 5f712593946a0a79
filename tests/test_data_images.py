"""Conversions of images against arithmetic on pixels: modes, alpha, crop, stretch, pad."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import images
from ddpm_jax.errors import UserError


def pixels(image: Image.Image) -> np.ndarray:
    return images.to_array(image).astype(int)


@pytest.fixture
def colours() -> Image.Image:
    """A 6x4 RGB image; each pixel has another colour."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "I;16", "I"]
)
def test_every_mode_becomes_eight_bits_of_the_channels(mode, channels, colours):
    image = colours.convert("L").convert(mode) if mode[0] == "I" else colours.convert("RGBA")
    image = image if image.mode == mode else image.convert("RGB").convert(mode)
    converted = images.convert(image, channels)
    assert converted.mode == {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    assert images.to_array(converted).shape == (4, 6, channels)
    assert images.to_array(converted).dtype == np.uint8


def test_grey_is_the_luma_of_itu_601(colours):
    luma = pixels(colours) @ np.array([0.299, 0.587, 0.114])
    assert np.abs(pixels(images.convert(colours, 1))[:, :, 0] - luma).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_alpha_is_composited_over_white(channels):
    for alpha in (0, 64, 128, 255):
        image = Image.new("RGBA", (2, 2), (40, 40, 40, alpha))
        expected = (40 * alpha + 255 * (255 - alpha)) / 255
        assert np.abs(pixels(images.convert(image, channels)) - expected).max() <= 1


def test_alpha_is_kept_in_four_channels_and_255_where_there_is_none(colours):
    transparent = Image.new("RGBA", (2, 2), (1, 2, 3, 77))
    np.testing.assert_array_equal(pixels(images.convert(transparent, 4))[0, 0], [1, 2, 3, 77])
    opaque = pixels(images.convert(colours, 4))
    np.testing.assert_array_equal(opaque[:, :, 3], 255)
    np.testing.assert_array_equal(opaque[:, :, :3], pixels(colours))


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_colour_in_the_header_is_transparent(mode):
    image = Image.new("RGB", (4, 4), (10, 10, 10)).convert(mode)
    image.putpixel((0, 0), {"P": 1, "L": 99, "RGB": (99, 99, 99)}[mode])
    if mode == "P":
        image.putpalette([10, 10, 10, 99, 99, 99])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency={"P": b"\xff\x00", "L": 99, "RGB": (99, 99, 99)}[mode])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = images.decode(buffer.getvalue(), 0, 3)
    assert decoded[0, 0].tolist() == [255] * 3  # white shows through
    assert decoded[1, 1].tolist() == [10] * 3


def png(bits: int, values: np.ndarray, transparent: int) -> bytes:
    """Return a PNG file with samples of `bits` bits, written by the format's own description.

    Args:
      bits: bits of a sample.
      values: [H, W] for grey or [H, W, 3] for RGB.
      transparent: all samples of the colour that is transparent.
    """
    height, width, *rgb = values.shape
    samples = values.reshape(height, -1, 1).astype(">u2").view(np.uint8)
    rows = np.packbits(np.unpackbits(samples, axis=-1)[..., -bits:].reshape(height, -1), axis=-1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, bits, 2 if rgb else 0, 0, 0, 0)
    colour = struct.pack(">H", transparent) * (3 if rgb else 1)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = [(b"IHDR", header), (b"tRNS", colour), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize(
    ("bits", "rgb"), [(1, False), (2, False), (4, False), (8, False), (16, False), (16, True)]
)
def test_a_transparent_colour_of_any_depth_is_transparent(bits, rgb):
    top = 2**bits - 1
    values = np.zeros((4, 8, 3) if rgb else (4, 8), int)
    values[0, 0] = seen_through = top - top // 4
    white = images.decode(png(bits, values, seen_through), 0, 3)
    assert white[0, 0].tolist() == [255] * 3 and white[1, 1].tolist() == [0] * 3
    alpha = images.decode(png(bits, values, seen_through), 0, 4)[..., 3]
    assert alpha[0, 0] == 0 and np.delete(alpha, 0).tolist() == [255] * 31


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_sixteen_bits_are_divided_by_257(dtype):
    values = np.array([[0, 128, 129, 257, 32768, 65278, 65279, 65535]], dtype)
    converted = pixels(images.convert(Image.fromarray(values), 1))[0, :, 0]
    np.testing.assert_array_equal(converted, [0, 0, 1, 1, 128, 254, 254, 255])


@pytest.mark.parametrize(
    "values",
    [np.ones((2, 2), np.float32), np.full((2, 2), 70000, np.int32), -np.eye(2, dtype="i4")],
)
def test_pixels_without_a_fixed_range_are_refused(values):
    with pytest.raises(ValueError, match="fixed range"):
        images.convert(Image.fromarray(values), 3)


@pytest.mark.parametrize("upright", [False, True])
def test_center_takes_the_middle_square_and_stretch_the_whole(upright):
    stripes = np.zeros((40, 120, 3), np.uint8)
    stripes[:, :40, 0], stripes[:, 40:80, 1], stripes[:, 80:, 2] = 255, 255, 255
    picture = Image.fromarray(stripes.transpose(1, 0, 2) if upright else stripes)
    middle = pixels(images.resize(picture, 20, "center"))
    assert middle.shape == (20, 20, 3)
    assert np.abs(middle - [0, 255, 0]).max() < 20  # the filter sees a little of red and blue
    assert np.abs(middle[3:-3, 3:-3] - [0, 255, 0]).max() == 0
    whole = pixels(images.resize(picture, 30, "stretch"))
    assert whole.shape == (30, 30, 3)
    along = whole[:, 15] if upright else whole[15]
    assert along[[4, 15, 25]].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("upright", [False, True])
def test_pad_keeps_the_pixels_in_the_middle_of_a_black_canvas(colours, channels, upright):
    picture = images.convert(colours, channels)  # 6 x 4
    picture = picture.transpose(Image.Transpose.ROTATE_90) if upright else picture
    padded = pixels(images.resize(picture, 9, "pad"))
    rows, columns = (slice(1, 7), slice(2, 6)) if upright else (slice(2, 6), slice(1, 7))
    np.testing.assert_array_equal(padded[rows, columns], pixels(picture))
    assert padded.shape == (9, 9, channels)
    padded[rows, columns] = 0
    assert not padded.any()


@pytest.mark.parametrize("size", [(33, 20), (20, 33)])
def test_pad_refuses_an_image_that_is_larger(size):
    with pytest.raises(UserError, match=f"{size[0]} x {size[1]} pixels.*data.image_size=32"):
        images.resize(Image.new("L", size), 32, "pad")


def test_the_size_itself_keeps_the_bytes(colours):
    square = colours.crop((0, 0, 4, 4))
    np.testing.assert_array_equal(pixels(images.resize(square, 4)), pixels(square))
    data = images.encode_png(square)
    np.testing.assert_array_equal(images.decode(data, 4, 3), images.decode(data, 0, 3))
    np.testing.assert_array_equal(images.decode(data, 0, 3), pixels(square))


def test_shrinking_averages_instead_of_picking_pixels():
    checkers = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    small = pixels(images.resize(Image.fromarray(checkers), 8))
    assert np.abs(small[1:-1, 1:-1] - 127.5).max() < 4


def test_a_constant_picture_stays_constant_at_any_size():
    for size in (1, 7, 32, 100):
        resized = pixels(images.resize(Image.new("RGB", (33, 21), (7, 130, 255)), size))
        np.testing.assert_array_equal(resized, np.broadcast_to([7, 130, 255], (size, size, 3)))
