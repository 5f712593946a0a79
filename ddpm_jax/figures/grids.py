"""Pictures of many images: uint8 conversion, grids, PNG files."""

import math
import pathlib

import numpy as np
from PIL import Image


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Return images in [-1, 1] as uint8 {0..255}, rounded to the nearest and clipped."""
    return np.clip(np.round((np.asarray(images) + 1) * 127.5), 0, 255).astype(np.uint8)


def make_grid(images: np.ndarray, columns: int = 0, side: int = 0, gap: int = 2) -> np.ndarray:
    """Lay images out in rows.

    Args:
      images: [n, H, W, C] uint8, C of 1, 3 or 4.
      columns: images in a row; 0 makes the grid about square.
      side: enlarge the images, by repeating pixels, to at least this height; 0 leaves them.
      gap: pixels between the images, mid-grey.

    Returns:
      [rows * (H' + gap) + gap, columns * (W' + gap) + gap, C] uint8.
    """
    factor = max(1, side // images.shape[1])
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    n, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    canvas = np.full(
        (rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 128, np.uint8
    )
    for i, image in enumerate(images):
        top, left = (gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap))
        canvas[top : top + height, left : left + width] = image
    return canvas


def save_png(path: str | pathlib.Path, image: np.ndarray) -> None:
    """Write one image [H, W, C] uint8, C of 1, 3 or 4, as a PNG; make its directory if need be."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path)
