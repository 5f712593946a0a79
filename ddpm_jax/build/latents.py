"""What changes if a run is on latents (`config.data.codec`) instead of pixels."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.codec import Codec
from ddpm_jax.config import Config
from ddpm_jax.errors import UserError
from ddpm_jax.runtime import rows
from ddpm_jax.types import Array


def check(config: Config) -> None:
    """Refuse what needs pixels in a run on latents, and options of latents in a run on pixels.

    Raises:
      UserError: the message names the option.
    """
    if not config.data.codec:
        if config.sample.clip_latents:
            raise UserError(
                f"sample.clip_latents is {config.sample.clip_latents}, but data.codec is empty, so "
                "the run has no latents; set it to 0"
            )
        return
    for wrong, what, why in (
        (
            config.loss.objective != "simple",
            f"loss.objective is {config.loss.objective}",
            "the bound is of pixels; set loss.objective=simple",
        ),
        (
            config.process.schedule == "learned",
            "process.schedule is learned",
            "it is trained on the bound, which is of pixels; set another schedule",
        ),
        (
            config.model.super_resolution > 0,
            f"model.super_resolution is {config.model.super_resolution}",
            "it needs images; set model.super_resolution=0",
        ),
        (
            config.model.name == "xunet",
            "model.name is xunet",
            "its views are images; set data.codec=''",
        ),
        (
            config.sample.dynamic_threshold and not config.sample.clip_latents,
            f"sample.dynamic_threshold is {config.sample.dynamic_threshold}",
            "latents are only clipped if sample.clip_latents is above 0; set one of them",
        ),
    ):
        if wrong:
            raise UserError(f"{what}, but data.codec makes the run one on latents: {why}")


def clip(config: Config) -> bool | float:
    """Return the bound of |x_0| for `ddpm_jax.make_sample`; False does not clip."""
    return config.sample.clip_latents if config.data.codec else config.sample.clip_x_0


def decoded(sample: Callable[..., Any], codec: Codec | None) -> Callable[..., Any]:
    """Return a sampling function that decodes what `sample` draws; without a codec, `sample`.

    Its arguments are those of `sample`. What `sample` collects of each step is decoded too, if it
    has the shape of latents.

    Args:
      sample: (params, ...) -> latents [n, h, w, c]; or a pair, if it collects: the latents and a
        pytree of arrays.
      codec: the codec.
    """
    if codec is None:
        return sample

    def frames(collected: Array) -> Array:
        if collected.shape[2:] != codec.latent_shape:
            return collected
        images = decode(codec, collected.reshape(-1, *codec.latent_shape))
        return images.reshape(*collected.shape[:2], *images.shape[1:])

    def sample_images(*args: Any, **options: Any) -> Any:
        found = sample(*args, **options)
        if not isinstance(found, tuple):
            return decode(codec, found)
        drawn, collected = found
        return decode(codec, drawn), jax.tree.map(frames, collected)

    return sample_images


def decode(codec: Codec | None, x_0: Any) -> Any:
    """Return the images of x_0 [n, h, w, c], clipped to [-1, 1]; without a codec, x_0 itself."""
    return x_0 if codec is None else _decode(codec, x_0)


def encode(codec: Codec | None, images: Any) -> Any:
    """Return the x_0 of images [n, H, W, C] in [-1, 1]: their mean latents, or the images."""
    return images if codec is None else _encode(codec, images)


def grid_mask(codec: Codec | None, mask: np.ndarray) -> np.ndarray:
    """Return the mask of x_0: a latent is kept if all pixels that it covers are kept.

    Args:
      codec: the codec, or None.
      mask: bool [..., H, W, 1], True where a pixel is kept.

    Returns:
      bool [..., h, w, 1].
    """
    if codec is None:
        return mask
    (height, width, _), (h, w, _) = codec.image_shape, codec.latent_shape
    blocks = mask.reshape(*mask.shape[:-3], h, height // h, w, width // w)
    return np.all(blocks, axis=(-3, -1))[..., None]


_decode = rows.over_local_devices(lambda codec, x_0: jnp.clip(codec.decode(x_0), -1.0, 1.0))
_encode = rows.over_local_devices(lambda codec, images: codec.encode(images))
