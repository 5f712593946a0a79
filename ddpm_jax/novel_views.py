"""Novel views by stochastic conditioning (Watson et al. 2022, section 3.1).

A network of novel views receives one view at a time (`models.xunet`). To draw an object from
several views, each denoising step conditions on one of them, chosen uniformly. Views are drawn one
after the other; each new one joins the views to choose from.

The conditioning of such a walk has, for each of n images,

    views    [n, K, H, W, C] float in [-1, 1]     the views so far, then padding
    count    [n] int32                            how many of them exist, in 1..K
    poses    [n, 1 + K, 4, 4]                     the cameras: of the image, then of the views
    focals   [n, 1 + K]
    centres  [n, 1 + K, 2]

    sample = make_sample(process, apply_fn, ..., cond_at=random_view)
"""

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.scenes.cameras import Camera
from ddpm_jax.types import Array, Conditioning, PRNGKey


def conditioning(views: Array, count: Array, target: Camera, given: Camera) -> dict[str, Array]:
    """Return the conditioning of n images that are drawn from several views.

    Args:
      views: [n, K, H, W, C] float in [-1, 1]; those from `count` on are never used.
      count: [n] int32, the number of views, in 1..K.
      target: [n], the cameras of the images.
      given: [n, K], the cameras of the views.
    """
    both = [
        np.concatenate([np.asarray(own)[:, None], np.asarray(others)], axis=1)
        for own, others in zip(target, given, strict=True)
    ]
    names = ("poses", "focals", "centres")
    return {"views": views, "count": count} | dict(zip(names, both, strict=True))


def random_view(cond: Conditioning, key: PRNGKey, t: Array) -> dict[str, Array]:
    """Return the conditioning of one step: a random one of the views. A `cond_at` of `make_sample`.

    Limit: with one view, every step has the same conditioning, so the sampler is the plain one.

    Args:
      cond: as `conditioning` returns it.
      key: [n] keys.
      t: the timestep; not used.

    Returns:
      "view" [n, H, W, C], "pose" [n, 2, 4, 4], "focal" [n, 2] and "centre" [n, 2, 2].
    """
    index = jax.vmap(lambda k, n: jax.random.randint(k, (), 0, n))(key, jnp.asarray(cond["count"]))
    rows = jnp.arange(index.shape[0])

    def pair(cameras: Array) -> Array:
        cameras = jnp.asarray(cameras)
        return jnp.stack([cameras[:, 0], cameras[rows, 1 + index]], axis=1)

    return {
        "view": jnp.asarray(cond["views"])[rows, index],
        "pose": pair(cond["poses"]),
        "focal": pair(cond["focals"]),
        "centre": pair(cond["centres"]),
    }
