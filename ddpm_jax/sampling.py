"""From a network to a sampling function: one compiled program for the whole chain."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from ddpm_jax.denoise import check_threshold
from ddpm_jax.errors import UserError
from ddpm_jax.guidance import Guide, check, make_guided_denoise_fn
from ddpm_jax.predictions import check_kind, check_kind_name
from ddpm_jax.process import GaussianProcess
from ddpm_jax.randomness import MAX_SEED, cond_keys, draw_x_T, image_keys, threefry
from ddpm_jax.runtime import rows
from ddpm_jax.samplers.base import Collect, Noise, Sampler, on_process, sample_loop
from ddpm_jax.timesteps import check_grid
from ddpm_jax.types import ApplyFn, Array, Conditioning, Params, Prediction, PRNGKey

# (cond, [n] keys, t) -> the conditioning at t
CondAt = Callable[[Conditioning, PRNGKey, Array], Conditioning]


def make_sample(
    process: GaussianProcess,
    apply_fn: ApplyFn,
    *,
    shape: tuple[int, ...],
    sampler: Sampler,
    kind: str = "eps",
    clip_x_0: bool | float = True,
    guidance: float | Guide = 0.0,
    percentile: float = 0.0,
    timesteps: np.ndarray | None = None,
    collect: Collect | None = None,
    num_frames: int | None = None,
    cond_at: CondAt | None = None,
) -> Callable[..., Any]:
    """Build `sample(params, key, n, cond=None, *, start=0, x_T=None, noise=None)`.

    `sample` returns n images [n, *shape] float32. With `collect` it returns a pair: the images, and
    the collected arrays [num_frames, n, ...]. The whole chain is one compiled program. There is one
    program for each n (rounded up to a multiple of the devices). All local devices share the
    images.

    Image i depends only on fold_in(key, start + i), for every implementation of the key. So
    `sample(params, key, 8)[:3]` equals `sample(params, key, 3)`, and `start` continues a series.

    docs/samplers.md finds these samplers and grids best for K = 10, 20 and 50 evaluations of the
    network, on 8x8 digits with T = 1000. Large images may need others. K = T is the whole chain.
      K = 10: sampler `samplers.dpm_solver_pp_2m(process)`,
        timesteps `timesteps.karras(process.log_snr, K)`
      K = 20, 50: sampler `samplers.dpm_solver_pp_2m(process, stochastic=True)`,
        timesteps `timesteps.karras(process.log_snr, K)`
      K = T: sampler `samplers.ancestral(process)`,
        timesteps `None`

    `sample` is a JAX function of params, key, cond and x_T: `jax.jit` (n is static), `jax.grad` and
    `jax.vmap` work. The program around it then chooses the devices.

    `sample` takes:
      params: the network's parameters.
      key: one key.
      n: number of images, at least 1.
      cond: None, or a mapping of arrays with leading axis n.
      start: index of the first image, at least 0.
      x_T: [n, *shape] float, the start of the chain; None draws x_T from the key.
      noise: the noise of the steps, a function (key: [n] keys, t, shape: (n, *shape)) -> array of
        this shape (`samplers.Noise`); None draws the noise from the keys. To replay a recording of
        another implementation, [T+1, n, *shape], pass `lambda key, t, shape: recording[t]`. A new
        function object compiles a new program.

    Args:
      process: the chain. The sampler must be built on the same one.
      apply_fn: the network, apply_fn(params, x_t, t, cond, *, train, key) -> its prediction, with
        the shape of x_t (`types.ApplyFn`). x_t is [B, *shape] float32. t is [B] int32 in 0..T-1,
        one less than the papers' t. Here train is False and key is None. params is a pytree of
        arrays only. docs/your_own_network.md has examples.
      shape: the shape of one image, (H, W, C).
      sampler: the sampler, for instance `samplers.ancestral(process)`.
      kind: the kind of the network's prediction: "eps", "x_0" or "v".
      clip_x_0: clip predicted x_0 to [-b, b] at every step. True is b = 1, False does not clip.
      guidance: the weight w >= -1 of classifier-free guidance (`ddpm_jax.guidance`), 0 is off; or a
        function (process, denoiser, params, cond) -> DenoiseFn for any other guidance.
      percentile: in [0, 1]. Clip by `dynamic_threshold` with this percentile, e.g. 0.995, instead
        of to [-1, 1]; 0 is off.
      timesteps: [num_steps + 1] int, the timesteps of the chain, strictly descending from T to 0
        (`timesteps.uniform`); None is every timestep.
      collect: the function that chooses what to keep of each step (`samplers.sample_loop`). Each
        array that it returns is a scalar or has the images as its first axis.
      num_frames: number of steps to keep; None is every step.
      cond_at: (cond, key: [n] keys, t) -> the conditioning that the network receives at t, an int32
        scalar. A function of random choices draws them from the keys, one per image, which no
        other draw receives. For instance `novel_views.random_view`. None is cond, unchanged.

    Raises:
      UserError: a sampler of another process, unknown kind, eps at zero terminal SNR, a grid that
        does not descend from T to 0, a guidance weight below -1, a percentile that does not work;
        from `sample`: n < 1, start < 0, x_T of another shape, conditioning with a first axis other
        than n, or no conditioning although guidance needs it.
    """
    T = process.num_timesteps
    grid = check_grid(np.arange(T, -1, -1) if timesteps is None else timesteps, T, whole=True)
    check_kind(process, kind)
    draw = make_chain_sample(
        apply_fn,
        shape=shape,
        sampler=on_process(sampler, process),
        kind=kind,
        clip_x_0=clip_x_0,
        guidance=guidance,
        percentile=percentile,
        collect=collect,
        num_frames=num_frames,
        cond_at=cond_at,
    )

    def sample(
        params: Params,
        key: PRNGKey,
        n: int,
        cond: Conditioning | None = None,
        *,
        start: int = 0,
        x_T: Array | None = None,
        noise: Noise | None = None,
    ) -> Any:
        """Return n images: [n, *shape] float32 (`ddpm_jax.make_sample` explains the arguments)."""
        return draw(process, grid, params, key, n, cond, start=start, x_T=x_T, noise=noise)

    return sample


def make_chain_sample(
    apply_fn: ApplyFn,
    *,
    shape: tuple[int, ...],
    sampler: Sampler,
    kind: str = "eps",
    clip_x_0: bool | float = True,
    guidance: float | Guide = 0.0,
    percentile: float = 0.0,
    collect: Collect | None = None,
    num_frames: int | None = None,
    cond_at: CondAt | None = None,
) -> Callable[..., Any]:
    """Build `draw(process, timesteps, params, key, n, cond, *, start, x_T, noise)`.

    This is `make_sample` for a chain that is known only later, such as a chain with a learned
    schedule. The process and the grid are arguments of the compiled program. So processes of the
    same T, with grids of the same length, share one program. The argument replaces the process of
    the sampler. The other arguments, the results and the errors are as in `make_sample`.
    """
    shape = tuple(shape)
    walk = make_walk(
        apply_fn,
        shape=shape,
        sampler=sampler,
        kind=kind,
        clip_x_0=clip_x_0,
        guidance=guidance,
        percentile=percentile,
        collect=collect,
        num_frames=num_frames,
        cond_at=cond_at,
    )

    def run(
        shared: tuple[GaussianProcess, Array, Params, PRNGKey],
        each: tuple[Array, Conditioning | None, Array | None],
        n: int,
        noise: Noise | None,
    ) -> Any:
        index, cond, x_T = each
        return walk(*shared, index, cond, x_T, None if noise is None else _of_first(noise, n))

    spread_run = rows.over_local_devices(run, out_axes=0 if collect is None else (0, 1))

    def draw(
        process: GaussianProcess,
        timesteps: Array,
        params: Params,
        key: PRNGKey,
        n: int,
        cond: Conditioning | None = None,
        *,
        start: int = 0,
        x_T: Array | None = None,
        noise: Noise | None = None,
    ) -> Any:
        if n < 1:
            raise UserError(f"n, the number of images, must be at least 1, found {n}")
        if x_T is not None and np.shape(x_T) != (n, *shape):
            raise UserError(f"x_T must have the shape {(n, *shape)}, found {np.shape(x_T)}")
        if not 0 <= start <= MAX_SEED + 1 - n:
            raise UserError(
                "start must be at least 0, and the number of the last image, start + n - 1, at "
                f"most {MAX_SEED}; found start = {start} and n = {n}"
            )
        x_T = None if x_T is None else jnp.asarray(x_T, jnp.float32)
        timesteps = check_grid(timesteps, process.num_timesteps, whole=True)
        index = np.arange(start, start + n, dtype=np.uint32)
        shared = process, timesteps, params, threefry(key)
        # n is part of the program only if the caller gives the noise, which depends on n
        static = 0 if noise is None else n, noise
        return spread_run(shared, (index, check_cond(cond, n), x_T), *static)

    return draw


def make_walk(
    apply_fn: ApplyFn,
    *,
    shape: tuple[int, ...],
    sampler: Sampler,
    kind: str = "eps",
    clip_x_0: bool | float = True,
    guidance: float | Guide = 0.0,
    percentile: float = 0.0,
    collect: Collect | None = None,
    num_frames: int | None = None,
    cond_at: CondAt | None = None,
) -> Callable[..., Any]:
    """Build `walk(process, timesteps, params, key, index, cond=None, x_T=None, noise=None)`.

    This is the function of `make_chain_sample` before it is compiled and spread over the devices.
    It draws the images of the numbers `index`: [n] int. n may be a symbolic dimension of
    `jax.export`. The other arguments are as in `make_chain_sample`, but nothing checks them.
    """
    check_kind_name(kind)
    check_threshold(clip_x_0, percentile)
    if not callable(guidance):
        check(guidance)

    def walk(
        process: GaussianProcess,
        timesteps: Array,
        params: Params,
        key: PRNGKey,
        index: Array,
        cond: Conditioning | None = None,
        x_T: Array | None = None,
        noise: Noise | None = None,
    ) -> Any:
        keys = image_keys(key, index)  # sharded like `index`, as are all later arrays
        walker = dataclasses.replace(sampler, process=process)
        if noise is not None:
            walker = dataclasses.replace(walker, noise=noise)
        denoiser = functools.partial(
            make_guided_denoise_fn,
            process,
            apply_fn,
            params,
            kind=kind,
            guidance=guidance,
            clip_x_0=clip_x_0,
            percentile=percentile,
        )

        def denoise_at(x_t: Array, t: Array) -> Prediction:
            assert cond_at is not None
            return denoiser(cond_at(cond or {}, cond_keys(keys, t), t))(x_t, t)

        denoise_fn = denoiser(cond) if cond_at is None else denoise_at
        x_T = draw_x_T(keys, tuple(shape)) if x_T is None else x_T
        return sample_loop(walker, denoise_fn, keys, timesteps, x_T, collect, num_frames)

    return walk


def _of_first(noise: Noise, n: int) -> Noise:
    """Return the noise of a batch in which the first n rows are images and the rest is padding."""

    def padded(key: PRNGKey, t: Array, shape: tuple[int, ...]) -> Array:
        found = jnp.asarray(noise(key[:n], t, (n, *shape[1:])), jnp.float32)
        if found.shape != (n, *shape[1:]):
            raise UserError(
                f"noise must return the shape {(n, *shape[1:])} that it is asked for, found "
                f"{found.shape}"
            )
        return rows.pad(found, shape[0])

    return padded


def sample_in_chunks(
    sample: Callable[..., Array],
    params: Params,
    key: PRNGKey,
    n: int,
    chunk_size: int,
    cond: Conditioning | None = None,
) -> Iterator[np.ndarray]:
    """Draw the images of `sample(params, key, n, cond)` in chunks that fit on the device.

    The device computes the next chunk while the host fetches the last chunk, so at most two chunks
    are on the device. All chunks have the same size, so that nothing recompiles; the last chunk is
    cut. Several processes share the chunks, and each process yields all images. Then each process
    needs its own copy of `params`.

    Args:
      sample: the function from `make_sample`, without `collect`.
      params: the network's parameters.
      key: one key.
      n: number of images, at least 1.
      chunk_size: maximum number of images that each process draws at once, at least 1.
      cond: None, or arrays with leading axis n.

    Yields:
      [<= chunk_size x processes, ...] float32 arrays on the host, in order.

    Raises:
      UserError: n < 1, chunk_size < 1, or conditioning with a first axis other than n.
    """
    if n < 1 or chunk_size < 1:
        raise UserError(f"n and chunk_size must be at least 1, found {n} and {chunk_size}")
    cond = check_cond(cond, n)
    count, index = jax.process_count(), jax.process_index()
    rounds = math.ceil(n / (count * chunk_size))
    size = math.ceil(n / (count * rounds))  # images that each process draws in a round

    def draw(start: int) -> Array:
        mine = start + index * size  # the last process may draw images beyond n, which are cut
        part = jax.tree.map(lambda leaf: leaf[min(mine, n - 1) : mine + size], cond)
        return sample(params, key, size, rows.pad(part, size), start=mine)

    ahead = draw(0)
    for start in range(0, n, count * size):
        images = ahead
        ahead = draw(start + count * size) if start + count * size < n else None
        host = np.asarray(images)
        del images  # frees the copy on the device while the caller uses the copy on the host
        if count > 1:
            host = np.concatenate(multihost_utils.process_allgather(host))
        yield host[: n - start]


def check_cond(cond: Conditioning | None, n: int) -> dict[str, Array | np.ndarray] | None:
    """Return the conditioning as a dict of arrays, after a check that their leading axis is n.

    Raises:
      UserError: conditioning that is not a mapping, or an array without the leading axis n.
    """
    if cond is None:
        return None
    if not isinstance(cond, Mapping):
        raise UserError(f"cond must be a mapping such as {{'label': labels}}, found {type(cond)}")
    arrays = {
        name: value if isinstance(value, jax.Array) else np.asarray(value)
        for name, value in cond.items()
    }
    for name, value in arrays.items():
        if value.ndim < 1 or len(value) != n:
            raise UserError(
                f"cond[{name!r}] must have one row for each of the n = {n} images, "
                f"found shape {np.shape(value)}"
            )
    return arrays
