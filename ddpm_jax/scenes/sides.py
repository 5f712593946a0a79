"""The side of an object that a camera sees, and labels that name it.

Poole et al. 2022 ("DreamFusion", section 3.2) append "front view", "side view", "back view" or
"overhead view" to the prompt. Here "left" and "right" are two sides, because their pictures are not
alike: a chair has its back at opposite ends. The label of a class and a side is another class. A
network that learns these labels, and the plain class where the side is hidden, learns p(x | class)
and p(x | class, side).
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ddpm_jax.types import Array

SIDES = ("front", "left", "back", "right", "top")  # of the object; its left is at azimuth π/2
FRONT = np.pi / 4  # |azimuth| below it is the front
BACK = 3 * np.pi / 4  # |azimuth| above it is the back
TOP = np.deg2rad(50.0)  # an elevation above it is the top, at every azimuth
HIDDEN = -1  # in place of a side: the label of the plain class


def side_of(azimuth: ArrayLike, elevation: ArrayLike) -> Array:
    """Return the index in SIDES of what a camera on an orbit sees: int32 [...].

    Args:
      azimuth: [...] float in radians, of any number of turns; 0 is the front.
      elevation: [...] float in radians.
    """
    turned = (jnp.asarray(azimuth) + jnp.pi) % (2 * jnp.pi) - jnp.pi
    beside = jnp.where(turned > 0, 1, 3)
    around = jnp.where(jnp.abs(turned) > BACK, 2, beside)
    around = jnp.where(jnp.abs(turned) < FRONT, 0, around)
    return jnp.where(jnp.asarray(elevation) > TOP, 4, around).astype(jnp.int32)


def label_of(label: Any, side: Any) -> Any:
    """Return the label of a class seen from a side; the order is that of `names`.

    Args:
      label: [...] int, the class.
      side: [...] int, index in SIDES, or HIDDEN for the plain class.
    """
    return label * (len(SIDES) + 1) + 1 + side


def names(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of all labels: "chair", "chair, front", "chair, left" and so on."""
    return tuple(name + end for name in classes for end in ("", *(f", {s}" for s in SIDES)))
