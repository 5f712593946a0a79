"""Grids of images and moving pictures: layout, PNG and GIF files."""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ddpm_jax.runtime.files import replacing

TEXT_SIZE = 10  # pixels
MAX_MARGIN = 200  # pixels of a label of a row
MAX_COLUMNS = 20  # of a grid with a label for each column


def make_grid(
    images: np.ndarray,
    columns: int = 0,
    side: int = 0,
    gap: int = 2,
    column_labels: Sequence[str] = (),
    row_labels: Sequence[str] = (),
) -> np.ndarray:
    """Arrange images in a grid, row by row.

    Args:
      images: [n, H, W, C] uint8, C = 1, 3 or 4.
      columns: images per row; 0 makes the grid about square.
      side: images are enlarged by max(1, side // H), by repeating pixels; 0 keeps their size.
      gap: pixels between the images, and around them, in mid-grey.
      column_labels: texts above the columns, cut to their width; () is none.
      row_labels: texts at the left of the rows, cut to `MAX_MARGIN`; () is none.

    Returns:
      [rows * (H' + gap) + gap, columns * (W' + gap) + gap, C] uint8. The enlarged images have
      H' x W' pixels. Labels come in a white margin at the top and at the left.
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
    if column_labels or row_labels:
        canvas = _labelled(canvas, (height + gap, width + gap), gap, column_labels, row_labels)
    return canvas


def grid_of_labelled(images: np.ndarray, labels: Sequence[str], side: int = 0) -> np.ndarray:
    """Arrange images in a grid that says what each image is labelled.

    Labels that come in turn, such as a b c a b c, are above their columns. Otherwise each row says
    its first and its last label. If all labels are alike, the grid has no labels.

    Args:
      images: [n, H, W, C] uint8, C = 1, 3 or 4.
      labels: [n], the label of each image.
      side: as for `make_grid`.
    """
    turn, root = list(dict.fromkeys(labels)), math.sqrt(len(labels))
    if len(turn) == 1:
        return make_grid(images, side=side)
    in_turn = all(label == turn[i % len(turn)] for i, label in enumerate(labels))
    if in_turn and len(turn) <= MAX_COLUMNS:
        turns = max(1, round(root / len(turn)))  # in a row
        return make_grid(images, len(turn) * turns, side, column_labels=turn * turns)
    columns = math.ceil(root)
    rows = [labels[i : i + columns] for i in range(0, len(labels), columns)]
    ends = [dict.fromkeys([row[0], row[-1]]) for row in rows]
    return make_grid(images, columns, side, row_labels=[" .. ".join(each) for each in ends])


def _labelled(
    grid: np.ndarray,
    step: tuple[int, int],
    gap: int,
    column_labels: Sequence[str],
    row_labels: Sequence[str],
) -> np.ndarray:
    """Return a grid with labels in a white margin; `step` is from one image to the next."""
    font = ImageFont.load_default(size=TEXT_SIZE)
    top = TEXT_SIZE + 6 if column_labels else 0
    row_labels = [_cut(label, font, MAX_MARGIN) for label in row_labels]
    left = max((math.ceil(font.getlength(label)) + 6 for label in row_labels), default=0)
    size = left + grid.shape[1], top + grid.shape[0]
    margin = Image.new("L", size, 255)
    draw = ImageDraw.Draw(margin)
    for i, label in enumerate(column_labels):
        middle = left + gap + i * step[1] + (step[1] - gap) / 2
        draw.text((middle, top / 2), _cut(label, font, step[1]), fill=0, font=font, anchor="mm")
    for i, label in enumerate(row_labels):
        middle = top + gap + i * step[0] + (step[0] - gap) / 2
        draw.text((left - 3, middle), label, fill=0, font=font, anchor="rm")
    canvas = np.repeat(np.asarray(margin)[..., None], grid.shape[-1], axis=-1)
    if grid.shape[-1] == 4:
        canvas[..., 3] = 255
    canvas[top:, left:] = grid
    return canvas


def _cut(label: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Return as much of a label as fits."""
    while label and font.getlength(label) > width:
        label = label[:-1]
    return label


def save_gif(path: str | pathlib.Path, images: np.ndarray, seconds: float, side: int = 0) -> None:
    """Write images as an endless GIF; create the directory if missing.

    Args:
      path: the file.
      images: [n, H, W, C] uint8, C = 1 or 3.
      seconds: the time of one image.
      side: images are enlarged by max(1, side // H), by repeating pixels.
    """
    factor = max(1, side // images.shape[1])
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    frames = [Image.fromarray(x[..., 0] if x.shape[-1] == 1 else x) for x in images]
    options: dict[str, Any] = dict(duration=int(1000 * seconds), loop=0, append_images=frames[1:])
    with replacing(path) as part:
        frames[0].save(part, format="GIF", save_all=True, **options)


def save_png(path: str | pathlib.Path, image: np.ndarray) -> None:
    """Write an image [H, W, C] uint8, C = 1, 3 or 4, as PNG; create the directory if missing."""
    with replacing(path) as part:
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(part)
