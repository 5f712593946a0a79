"""Renderings of simple solids from all around: eight classes, with the camera of every image.

Each object has a random size, colours and texture (`scenes.solids.draw`), and a random light from
above. Each of its views has a random camera on an orbit. "train" and "test" hold different objects.

Each record also keeps a `name`, such as "a red and blue striped chair seen from the left, slightly
back, high", the `object` (an index over both splits) and the camera: `pose`, `focal` and `centre`
as in `scenes.cameras`.

With data.view_labels, the labels are those of `scenes.sides`: "chair", "chair, front 0-45 low" and
so on. The view of a quarter of the images, chosen at random, is hidden: their label is "chair", and
their name ends with the class.
"""

import colorsys
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from ddpm_jax.config import DataConfig
from ddpm_jax.data import images
from ddpm_jax.data.prepared import Builder
from ddpm_jax.pixels import to_uint8
from ddpm_jax.scenes import cameras, sides, solids
from ddpm_jax.types import Array

SIDE = 32  # of the images, if data.image_size is 0
RADIUS = 3.5  # of the orbits
FIELD_OF_VIEW = np.deg2rad(40.0)
ELEVATIONS = np.deg2rad(-10.0), np.deg2rad(70.0)
HIDDEN_SHARE = 0.25  # of the images: their label and their name do not name the view
FINER = 2  # a pixel is the mean of FINER x FINER rendered ones
CLASSES = tuple(solids.SOLIDS)
HUES = ("red", "yellow", "green", "turquoise", "blue", "purple")  # 60 degrees each
SPLITS = ("train", "test")


class Solids(Builder, skip_registration=True):
    """Builder of the set `solids`; each setting has its own prepared directory."""

    name = "solids"
    VERSION = tfds.core.Version("4.0.0")  # names have colours and one of 24 views

    def __init__(self, *, data_config: DataConfig, **kwargs: Any):
        self.side = data_config.image_size or SIDE
        self.num_views = data_config.views_per_object
        train = data_config.objects_per_class
        self.num_objects = {"train": train, "test": max(4, train // 10)}  # of each class
        self.view_labels = data_config.view_labels
        variant = f"{self.side}_{train}x{self.num_views}{'_views' * self.view_labels}"
        super().__init__(data_config=data_config, variant=variant, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        labels = sides.names(CLASSES) if self.view_labels else CLASSES
        return tfds.core.DatasetInfo(
            builder=self,
            description="Solids with drawn sizes, colours and textures, from drawn cameras.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(self.side, self.side, 3)),
                    "label": tfds.features.ClassLabel(names=labels),
                    "name": tfds.features.Text(),
                    "object": tfds.features.Scalar(np.int64),
                    "pose": tfds.features.Tensor(shape=(4, 4), dtype=np.float32),
                    "focal": tfds.features.Scalar(np.float32),
                    "centre": tfds.features.Tensor(shape=(2,), dtype=np.float32),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        first = len(CLASSES) * self.num_objects["train"] if split == "test" else 0
        for label in range(len(CLASSES)):
            for i in range(self.num_objects[split]):
                index = first + label * self.num_objects[split] + i
                for view, record in enumerate(self._views(split, label, i)):
                    yield index * self.num_views + view, record | {"object": index}

    def _views(self, split: str, label: int, i: int) -> Iterator[dict[str, Any]]:
        """Yield the records of the i-th object of a class."""
        rng = np.random.default_rng([SPLITS.index(split), label, i])
        words = rng.integers(2**32, size=2, dtype=np.uint32)
        light = rng.normal(size=3).astype(np.float32)
        light[2] = np.abs(light[2])
        azimuth, elevation = (
            rng.uniform(low, high, self.num_views).astype(np.float32)
            for low, high in ((-np.pi, np.pi), ELEVATIONS)
        )
        hidden = rng.random(self.num_views) < HIDDEN_SHARE
        drawn = _draw(words, label, azimuth, elevation, light, self.side)
        pictures, camera, seen, colours, striped = jax.device_get(drawn)
        pixels = to_uint8(pictures)
        named = np.where(hidden, sides.HIDDEN, seen)
        labels = sides.label_of(label, named) if self.view_labels else np.full_like(named, label)
        text = describe(CLASSES[label], colours, striped)
        for j in range(self.num_views):
            yield {
                "image": images.encode_png(Image.fromarray(pixels[j])),
                "label": int(labels[j]),
                "name": sides.caption(text, int(named[j])),
                "pose": camera.pose[j],
                "focal": camera.focal[j],
                "centre": camera.centre[j],
            }


def describe(name: str, colours: np.ndarray, striped: bool) -> str:
    """Return a text for a solid: "a red chair", or "a red and blue striped chair".

    Args:
      name: its class.
      colours: [2, 3] in [0, 1]; a solid without stripes has the first colour.
      striped: whether it has stripes.
    """
    first, second = (colour_name(colour) for colour in colours)
    if not striped:
        return f"a {first} {name}"
    return f"a {first if first == second else f'{first} and {second}'} striped {name}"


def colour_name(rgb: np.ndarray) -> str:
    """Return the name of a colour [3] in [0, 1]: one of `HUES`, or black, grey or white."""
    hue, saturation, value = colorsys.rgb_to_hsv(*map(float, rgb))
    if value < 0.2:
        return "black"
    if saturation < 0.3:
        return "black" if value < 0.3 else "grey" if value < 0.75 else "white"
    return HUES[round(len(HUES) * hue) % len(HUES)]


@functools.partial(jax.jit, static_argnames="side")
def _draw(
    words: Array, label: Array, azimuth: Array, elevation: Array, light: Array, side: int
) -> tuple[Array, cameras.Camera, Array, Array, Array]:
    """Return the views of one object.

    The label is that of all views: with an axis of views, `lax.switch` would compute all solids.

    Args:
      words: uint32 [2], the key of the solid; so it does not depend on JAX's default generator.
      label: int scalar, the class.
      azimuth, elevation: [V] float, of the cameras.
      light: [3] float, the direction towards the light.
      side: of the pictures, in pixels.

    Returns:
      The pictures [V, side, side, 3] in [-1, 1], their cameras, the views that they see
      (`sides.view_of`) [V], the colours of the solid [2, 3], and whether it has stripes.
    """
    solid = solids.draw(jax.random.wrap_key_data(words, impl="threefry2x32"), label)
    fine, camera = (
        cameras.orbit(azimuth, elevation, RADIUS, FIELD_OF_VIEW, s) for s in (FINER * side, side)
    )
    pictures = solids.render(solid, fine, light, FINER * side)
    blocks = pictures.reshape(len(pictures), side, FINER, side, FINER, 3)
    seen = sides.view_of(azimuth, elevation)
    return blocks.mean(axis=(2, 4)), camera, seen, solid.colours, jnp.any(solid.stripes > 0)
