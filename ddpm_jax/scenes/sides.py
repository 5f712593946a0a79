"""The views of an object: 24, each of one of 5 sides; their labels and their captions.

Poole et al. 2022 ("DreamFusion", section 3.2) append "front view", "side view", "back view" or
"overhead view" to the prompt. Here "left" and "right" are two sides, because their pictures are not
alike: a chair has its back at opposite ends. The pictures of one side still differ a lot. So a
label names a view: 45 degrees of azimuth and one of three levels of elevation.

The label of a class and a view is another class. A network that learns these labels, and the plain
class where the view is hidden, learns p(x | class) and p(x | class, view). So does a network that
receives captions: a caption without the view takes the place of the plain class.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ddpm_jax.types import Array

SIDES = ("front", "left", "back", "right", "top")  # of the object; its left is at azimuth π/2
SECTORS = 8  # of the azimuth; sector i is from i to i + 1 times 45 degrees
AROUND = (  # the words for each sector in a caption
    "front, slightly left",
    "left, slightly front",
    "left, slightly back",
    "back, slightly left",
    "back, slightly right",
    "right, slightly back",
    "right, slightly front",
    "front, slightly right",
)
LEVELS = np.deg2rad([20.0, 50.0])  # elevations between the levels
LEVEL_NAMES = ("low", "high", "top")
SIDE_OF_VIEW = np.array(2 * [0, 1, 1, 2, 2, 3, 3, 0] + SECTORS * [4])  # view -> index in SIDES
NUM_VIEWS = len(SIDE_OF_VIEW)
HIDDEN = -1  # in place of a view: the label of the plain class


def view_of(azimuth: ArrayLike, elevation: ArrayLike) -> Array:
    """Return the index of the view that a camera on an orbit sees: int32 [...].

    The index is level * SECTORS + sector.

    Args:
      azimuth: [...] float in radians, of any number of turns; 0 is the middle of the front.
      elevation: [...] float in radians.
    """
    sector = jnp.floor(jnp.asarray(azimuth) * (SECTORS / (2 * np.pi))).astype(jnp.int32) % SECTORS
    high, top = ((jnp.asarray(elevation) >= edge).astype(jnp.int32) for edge in LEVELS)
    return (high + top) * SECTORS + sector


def label_of(label: Any, view: Any) -> Any:
    """Return the label of a class in a view; the order is that of `names`.

    Args:
      label: [...] int, the class.
      view: [...] int, from `view_of`, or HIDDEN for the plain class.
    """
    return label * (NUM_VIEWS + 1) + 1 + view


def names(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of all labels: "chair", "chair, front 0-45 low" and so on.

    The numbers are degrees of azimuth.
    """
    views = []
    for view, side in enumerate(SIDE_OF_VIEW):
        level, sector = divmod(view, SECTORS)
        degrees = f"{45 * sector}-{45 * (sector + 1)}"
        height = "" if SIDES[side] == "top" else f" {LEVEL_NAMES[level]}"
        views.append(f", {SIDES[side]} {degrees}{height}")
    return tuple(name + end for name in classes for end in ("", *views))


def caption(what: str, view: int) -> str:
    """Return a text for a picture: "a red chair seen from the front, slightly left, high".

    Args:
      what: a text for the object, such as "a red chair".
      view: from `view_of`, or HIDDEN: then the caption is `what`.
    """
    if view == HIDDEN:
        return what
    level, sector = divmod(view, SECTORS)
    return f"{what} seen from the {AROUND[sector]}, {LEVEL_NAMES[level]}"
