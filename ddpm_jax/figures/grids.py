"""Grids of images: layout, PNG files."""

import math
import pathlib

import numpy as np
from PIL import Image

from ddpm_jax.runtime.files import replacing


def make_grid(images: np.ndarray, columns: int = 0, side: int = 0, gap: int = 2) -> np.ndarray:
    """Arrange images in a grid, row by row.

    Args:
      images: [n, H, W, C] uint8, C = 1, 3 or 4.
      columns: images per row; 0 makes the grid about square.
      side: images are enlarged by max(1, side // H), by repeating pixels; 0 keeps their size.
      gap: pixels between the images, and around them, in mid-grey.

    Returns:
      [rows * (H' + gap) + gap, columns * (W' + gap) + gap, C] uint8. The enlarged images have
      H' x W' pixels.
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
    """Write an image [H, W, C] uint8, C = 1, 3 or 4, as PNG; create the directory if missing."""
    with replacing(path) as part:
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(part)
