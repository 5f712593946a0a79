"""From a network to a sampling function: one compiled program for the whole chain."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ddpm_jax.denoise import check_threshold
from ddpm_jax.errors import UserError
from ddpm_jax.guidance import Guide, check, make_guided_denoise_fn
from ddpm_jax.predictions import check_kind
from ddpm_jax.process import GaussianProcess
from ddpm_jax.runtime import compiler
from ddpm_jax.samplers.base import Collect, Sampler, draw_x_T, sample_loop
from ddpm_jax.types import ApplyFn, Array, Conditioning, Params, PRNGKey


def make_sample(
    process: GaussianProcess,
    apply_fn: ApplyFn,
    *,
    shape: tuple[int, ...],
    sampler: Sampler,
    kind: str = "eps",
    clip_x_0: bool = True,
    guidance: float | Guide = 0.0,
    percentile: float = 0.0,
    timesteps: np.ndarray | None = None,
    collect: Collect | None = None,
    num_frames: int | None = None,
) -> Callable[..., Any]:
    """Build `sample(params, key, n, cond=None, *, start=0)`.

    It returns n images [n, *shape] float32; with `collect` the pair of them and what was kept,
    [num_frames, n, ...]. Image i is drawn from fold_in(key, start + i) alone: `sample(params, key,
    8)[:3]` equals `sample(params, key, 3)`, and `start` continues a series. All local devices
    share the images, and the number of devices changes nothing but the speed. It compiles once
    for each n (rounded up to a multiple of the devices).

    Args:
      process: the chain.
      apply_fn: the network.
      shape: of one image, (H, W, C).
      sampler: built on the same process, e.g. `samplers.ancestral(process)`.
      kind: what the network predicts: "eps", "x_0" or "v".
      clip_x_0: clip predicted x_0 to [-1, 1] at every step.
      guidance: the weight w of classifier-free guidance (`ddpm_jax.guidance`), 0 is off; or a
        function (denoiser, params, cond) -> DenoiseFn for any other guidance.
      percentile: clip by `dynamic_threshold` with this percentile instead, e.g. 0.995; 0 is off.
      timesteps: the grid to walk, strictly descending from T to 0 (`timesteps.uniform`); None is
        every timestep.
      collect: what to keep along the way (`samplers.sample_loop`); each array that it returns is
        a scalar or has the images as its first axis.
      num_frames: how many steps to keep; None is every one.

    Raises:
      UserError: unknown kind, eps at zero terminal SNR, a grid that does not descend from T to
        0, a guidance weight below -1; from `sample`: n < 1, conditioning whose first axis is
        not n, or none where guidance needs it.
    """
    check_kind(process, kind)
    check_threshold(clip_x_0, percentile)
    if not callable(guidance):
        check(guidance)
    T = process.num_timesteps
    grid = np.arange(T, -1, -1) if timesteps is None else np.asarray(timesteps)
    if grid.ndim != 1 or [*grid[:1], *grid[-1:]] != [T, 0] or np.any(np.diff(grid) >= 0):
        raise UserError(f"timesteps must descend strictly from T = {T} to 0, found {grid}")

    num_devices, replicated, sharded = local_devices()

    def run(params: Params, key: PRNGKey, index: Array, cond: Conditioning | None) -> Any:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
        x_T = draw_x_T(keys, tuple(shape))  # sharded as `index` is, and so is all that follows
        denoise_fn = make_guided_denoise_fn(
            process,
            apply_fn,
            params,
            cond,
            kind=kind,
            guidance=guidance,
            clip_x_0=clip_x_0,
            percentile=percentile,
        )
        return sample_loop(sampler, denoise_fn, keys, grid, x_T, collect, num_frames)

    @functools.cache
    def compiled(kind: str) -> Callable[..., Any]:
        return jax.jit(run, compiler_options=compiler.options(kind))

    def sample(
        params: Params, key: PRNGKey, n: int, cond: Conditioning | None = None, *, start: int = 0
    ) -> Any:
        if n < 1:
            raise UserError(f"n, the number of images, must be at least 1, found {n}")
        padded = math.ceil(n / num_devices) * num_devices
        index = np.arange(start, start + padded, dtype=np.uint32)
        params, key = jax.device_put((params, key), replicated)
        index, cond = jax.device_put((index, pad(check_cond(cond, n), padded)), sharded)
        result = compiled(compiler.of_network(params))(params, key, index, cond)
        if padded == n:
            return result
        if collect is None:
            return result[:n]
        x_0, frames = result
        return x_0[:n], jax.tree.map(lambda f: f[:, :n] if f.ndim > 1 else f, frames)

    return sample


def sample_in_chunks(
    sample: Callable[..., Array],
    params: Params,
    key: PRNGKey,
    n: int,
    chunk_size: int,
    cond: Conditioning | None = None,
) -> Iterator[np.ndarray]:
    """Draw the images of `sample(params, key, n, cond)` in chunks that fit on the device.

    The next chunk is computed while the last one is fetched, so at most two are on the device.
    All are of one size, so that nothing compiles twice; the last is cut. Several processes
    share the chunks, and each yields them all; then `params` are the process's own copy.

    Args:
      sample: from `make_sample`, without `collect`.
      params: the network's parameters.
      key: one key.
      n: number of images.
      chunk_size: the most images drawn at once, by each process.
      cond: None, or arrays with leading axis n.

    Yields:
      [<= chunk_size x processes, ...] float32 arrays on the host, in order.

    Raises:
      UserError: n < 1, chunk_size < 1, or conditioning whose first axis is not n.
    """
    if n < 1 or chunk_size < 1:
        raise UserError(f"n and chunk_size must be at least 1, found {n} and {chunk_size}")
    cond = check_cond(cond, n)
    count, index = jax.process_count(), jax.process_index()
    rounds = math.ceil(n / (count * chunk_size))
    size = math.ceil(n / (count * rounds))  # of the chunk that each process draws in a round

    def draw(start: int) -> Array:
        mine = start + index * size  # of several processes, the last may draw what nobody wants
        part = jax.tree.map(lambda leaf: leaf[min(mine, n - 1) : mine + size], cond)
        return sample(params, key, size, pad(part, size), start=mine)

    ahead = draw(0)
    for start in range(0, n, count * size):
        images = ahead
        ahead = draw(start + count * size) if start + count * size < n else None
        host = np.asarray(images)
        del images  # frees the device's copy while the caller holds the host's
        if count > 1:
            host = np.concatenate(multihost_utils.process_allgather(host))
        yield host[: n - start]


def local_devices() -> tuple[int, NamedSharding, NamedSharding]:
    """Return the number of local devices, and how to give them the same, or each its rows."""
    mesh = jax.make_mesh(
        (jax.local_device_count(),), ("data",), (AxisType.Auto,), devices=jax.local_devices()
    )
    return (
        mesh.size,
        NamedSharding(mesh, PartitionSpec()),
        NamedSharding(mesh, PartitionSpec("data")),
    )


def check_cond(cond: Conditioning | None, n: int) -> dict[str, np.ndarray] | None:
    """Check that the arrays of the conditioning have leading axis n; return them on the host."""
    if cond is None:
        return None
    if not isinstance(cond, Mapping):
        raise UserError(f"cond must be a mapping such as {{'label': labels}}, found {type(cond)}")
    for name, value in cond.items():
        if np.ndim(value) < 1 or len(value) != n:
            raise UserError(
                f"cond[{name!r}] must have one row for each of the n = {n} images, "
                f"found shape {np.shape(value)}"
            )
    return {name: np.asarray(value) for name, value in cond.items()}


def pad(cond: dict[str, np.ndarray] | None, size: int) -> dict[str, np.ndarray] | None:
    """Repeat the last row of each array until there are `size` rows."""
    return jax.tree.map(
        lambda leaf: np.concatenate([leaf, np.repeat(leaf[-1:], size - len(leaf), axis=0)]), cond
    )
