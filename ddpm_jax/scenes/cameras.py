"""Pinhole cameras and their rays, in one convention.

World:   right-handed, z points up.
Camera:  x points right, y down and z forward, in the picture (as in OpenCV and the SRN data).
Pose:    [4, 4], camera to world: X_world = R X_camera + c.
Pixel:   row i, column j; its centre is at (u, v) = (j + 1/2, i + 1/2).

    (u, v) = f (x/z, y/z) + (c_u, c_v),   ray: o = c,  d ∝ R ((u - c_u)/f, (v - c_v)/f, 1)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ddpm_jax.types import Array


class Camera(NamedTuple):
    """One or several cameras; the leading axes of all fields are the same.

    Attributes:
      pose: [..., 4, 4] float, camera to world.
      focal: [...] float, f in pixels.
      centre: [..., 2] float, (c_u, c_v) in pixels.
    """

    pose: Array | np.ndarray
    focal: Array | np.ndarray
    centre: Array | np.ndarray


def look_at(position: Array, target: Array | None = None) -> Array:
    """Return the pose of a camera at a position that looks at a target: [..., 4, 4].

    The picture is upright: the world's z points up in it. Straight up and straight down have no
    such picture; there the x axis of the world points up or down.

    Args:
      position: [..., 3] float, c.
      target: [..., 3] float; None is the origin.
    """
    position = jnp.asarray(position, jnp.float32)
    target = jnp.zeros_like(position) if target is None else jnp.asarray(target, jnp.float32)
    forward = _unit(target - position)
    up = jnp.broadcast_to(jnp.array([0.0, 0.0, 1.0]), forward.shape)
    steep = jnp.abs(forward[..., 2:]) > 1.0 - 1e-6
    up = jnp.where(steep, jnp.broadcast_to(jnp.array([1.0, 0.0, 0.0]), up.shape), up)
    right = _unit(jnp.cross(forward, up))
    down = jnp.cross(forward, right)
    upper = jnp.stack([right, down, forward, position], axis=-1)  #                [..., 3, 4]
    last = jnp.broadcast_to(jnp.array([0.0, 0.0, 0.0, 1.0]), (*upper.shape[:-2], 1, 4))
    return jnp.concatenate([upper, last], axis=-2)


def orbit(
    azimuth: ArrayLike,
    elevation: ArrayLike,
    radius: ArrayLike,
    field_of_view: float,
    side: int,
) -> Camera:
    """Return cameras on a sphere around the origin, which they look at.

    The position is r (cos e cos a, cos e sin a, sin e). Azimuth 0 is the front, on the x axis.

    Args:
      azimuth: [...] float, a in radians.
      elevation: [...] float, e in radians, in [-π/2, π/2].
      radius: [...] float, r.
      field_of_view: the angle of the whole picture, in radians.
      side: height and width of the picture in pixels.
    """
    azimuth, elevation, radius = jnp.broadcast_arrays(
        *(jnp.asarray(x, jnp.float32) for x in (azimuth, elevation, radius))
    )
    position = radius[..., None] * jnp.stack(
        [
            jnp.cos(elevation) * jnp.cos(azimuth),
            jnp.cos(elevation) * jnp.sin(azimuth),
            jnp.sin(elevation),
        ],
        axis=-1,
    )
    focal = 0.5 * side / np.tan(0.5 * field_of_view)
    return Camera(
        look_at(position),
        jnp.full(azimuth.shape, focal, jnp.float32),
        jnp.full((*azimuth.shape, 2), 0.5 * side, jnp.float32),
    )


def turned(pose: Array, angle: ArrayLike) -> Array:
    """Return the poses of cameras that are moved around the world's z axis, as on a turntable.

    Args:
      pose: [..., 4, 4] float.
      angle: [...] float in radians; a camera on the x axis moves towards the y axis.
    """
    angle = jnp.asarray(angle, jnp.float32)
    cos, sin, zero = jnp.cos(angle), jnp.sin(angle), jnp.zeros_like(angle)
    rows = ((cos, -sin, zero, zero), (sin, cos, zero, zero))
    rows += ((zero, zero, zero + 1.0, zero), (zero, zero, zero, zero + 1.0))
    rotation = jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
    return rotation @ pose


def rays(camera: Camera, height: int, width: int) -> tuple[Array, Array]:
    """Return the origins and the unit directions of all pixels' rays, in the world.

    Args:
      camera: one or several cameras.
      height, width: of the picture in pixels.

    Returns:
      origins [..., H, W, 3] and directions [..., H, W, 3], float32.
    """
    v, u = jnp.meshgrid(
        jnp.arange(height, dtype=jnp.float32) + 0.5,
        jnp.arange(width, dtype=jnp.float32) + 0.5,
        indexing="ij",
    )
    leading = (1,) * camera.focal.ndim
    pixel = jnp.stack([u, v], axis=-1).reshape(*leading, height, width, 2)
    focal = jnp.asarray(camera.focal)[..., None, None, None]
    flat = (pixel - camera.centre[..., None, None, :]) / focal  #              [..., H, W, 2]
    local = jnp.concatenate([flat, jnp.ones_like(flat[..., :1])], axis=-1)
    pose = jnp.asarray(camera.pose)
    directions = jnp.einsum(
        "...ij,...hwj->...hwi", pose[..., :3, :3], local, precision=jax.lax.Precision.HIGHEST
    )
    origins = jnp.broadcast_to(pose[..., None, None, :3, 3], directions.shape)
    return origins, _unit(directions)


def project(camera: Camera, points: Array) -> tuple[Array, Array]:
    """Return where points of the world are in the picture, the inverse of `rays`.

    Args:
      camera: one camera, or several with the leading axes of the points.
      points: [..., N, 3] float.

    Returns:
      (u, v) in pixels [..., N, 2], and the depth z along the camera's axis [..., N]. A point is in
      front of the camera if its depth is above 0.
    """
    pose, focal = jnp.asarray(camera.pose), jnp.asarray(camera.focal)
    moved = points - pose[..., None, :3, 3]
    local = jnp.einsum("...ji,...nj->...ni", pose[..., :3, :3], moved)
    depth = local[..., 2]
    flat = focal[..., None, None] * local[..., :2] / depth[..., None]
    return flat + camera.centre[..., None, :], depth


def _unit(x: Array) -> Array:
    return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True))
