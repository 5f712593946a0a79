"""How many bits a run needs for images: the bound, rate and distortion, progressive decoding.

A receiver that knows x_t can estimate x_0.             (Ho et al. 2020, section 4.3 and figure 5)
  rate        L_T + Σ_{i>t} L_{i-1} bits/dim: the bits that it has received
  distortion  RMSE of x̂_0(x_t) on the scale {0..255}: the error of its estimate
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import build, data, pixels, timesteps
from ddpm_jax.config import Config
from ddpm_jax.data.cond import cond_of, rows_of
from ddpm_jax.denoise import make_denoise_fn
from ddpm_jax.errors import UserError, look_up
from ddpm_jax.evaluation import references
from ddpm_jax.evaluation.table import Row
from ddpm_jax.figures import grids
from ddpm_jax.likelihood import bound
from ddpm_jax.likelihood.bound import Part
from ddpm_jax.likelihood.ode import make_bits_per_dim
from ddpm_jax.process import q_sample
from ddpm_jax.runs import Run
from ddpm_jax.runtime.progress import Progress, silent
from ddpm_jax.runtime.rows import over_local_devices
from ddpm_jax.types import Array, Conditioning, Params
from ddpm_jax.variance import VARIANCES


class Coding(NamedTuple):
    """The result of `evaluate`.

    Attributes:
      rows: the bound and its parts, in bits/dim.
      curve: the rate-distortion curve, from t = T down to 1.
    """

    rows: list[Row]
    curve: list[Part]


def variance_of(config: Config) -> str:
    """Return the name of the variance of p(x_{t-1} | x_t) for the bound of a run.

    It is the learned variance if the network predicts it, otherwise `config.sample.variance`.
    """
    return "learned_range" if config.model.learn_variance else config.sample.variance


def check_pixels(run: Run) -> None:
    """Refuse a run on latents.

    Raises:
      UserError: the run has a codec.
    """
    if run.codec is not None:
        raise UserError(
            f"bits/dim are of pixels, but the run is on the latents of data.codec="
            f"{run.config.data.codec}; it has no likelihood of its images"
        )


def check_variance(run: Run, variance: str) -> None:
    """Check that a variance can be used for the bound of a run.

    Raises:
      UserError: an unknown name, or "learned_range" with a network that predicts no variance.
    """
    look_up(VARIANCES, "variance", variance)
    if variance == "learned_range" and not run.config.model.learn_variance:
        raise UserError(
            "the bound's variance learned_range needs a network that predicts its variance, but "
            "model.learn_variance is False; take fixed_small or fixed_large"
        )


def evaluate(
    run: Run,
    dataset: data.Dataset,
    split: str,
    *,
    variance: str,
    num_images: int,
    num_terms: int,
    progress: Progress = silent,
) -> Coding:
    """Estimate the variational bound of a split's images, in bits/dim.

    A conditional model receives the conditioning of each image, as in training. Errors are standard
    errors over the images. They include the variance from the draw of noise and of timesteps.

    Args:
      run: the run, from `runs.open_run`.
      dataset: the data that the run was trained on.
      split: "train" or "test".
      variance: name of the variance of p(x_{t-1} | x_t), such as `variance_of(run.config)`.
      num_images: maximum number of images. They are a random subset, the same at every call.
      num_terms: how many of the T terms are computed for each image (`likelihood.bound`). A number
        above T is T.
      progress: receives the number of images that are done.

    Raises:
      UserError: no such split, or a run on latents.
    """
    check_pixels(run)
    T = run.process.num_timesteps
    bound_fn = bound.make_bound(
        run.process,
        run.model.apply,
        kind=run.config.loss.kind,
        variance=variance,
        decoder=build.make_chain(run.config).decoder,
        clip_x_0=run.config.sample.clip_x_0,
        num_terms=min(num_terms, T),
    )
    found, what = [], f"variational bound, {split} images"
    for images, cond, start, n, total in _batches(run, dataset, split, num_images):
        progress(what, start, total)
        part = bound_fn(run.params, jax.random.key(0), images, cond, start=start)
        found.append(part._replace(**_first(part, n)))
        progress(what, start + n, total)
    whole = bound.concatenate(found)
    return Coding(_rows(whole, split), bound.rate_distortion(whole))


def _rows(whole: bound.Bound, split: str) -> list[Row]:
    """Return the bound, and its parts as in table 4 of Ho et al. 2020."""
    n, T = whole.prior.size, whole.edges[-1]
    computed = len(whole.edges) - 1
    note = "every term" if computed == T else f"{computed} of {T} terms, drawn for each image"
    total = bound.total(whole)
    rows = [Row(f"bits_per_dim_{split}", *bound.mean_and_error(total), n, note)]
    rows.append(Row(f"L_T_{split}", *bound.mean_and_error(whole.prior), n, "bits/dim"))
    if whole.edges[1] == 1:  # L_0 is a term of its own
        L_0 = whole.terms[0]
        rows += [
            Row(f"rate_{split}", *bound.mean_and_error(total - L_0), n, "bits/dim, all but L_0"),
            Row(f"L_0_{split}", *bound.mean_and_error(L_0), n, "bits/dim, the distortion"),
        ]
        rmse = pixels.SCALE * float(np.sqrt(whole.squared_error[0].mean()))
        rows.append(Row(f"rmse_{split}", rmse, None, n, "of x_0 from x_1, of 0..255"))
    return rows


def evaluate_by_ode(
    run: Run,
    dataset: data.Dataset,
    split: str,
    *,
    num_images: int,
    tolerance: float,
    progress: Progress = silent,
) -> Row:
    """Estimate the exact likelihood of a split's images, by the probability-flow ODE.

    `ddpm_jax.likelihood.ode` explains what is measured.

    Args:
      run: the run, from `runs.open_run`.
      dataset: the data that the run was trained on.
      split: "train" or "test".
      num_images: maximum number of images, as in `evaluate`.
      tolerance: relative and absolute tolerance of the solver.
      progress: receives the number of images that are done.

    Returns:
      A row of the table, in bits/dim.

    Raises:
      UserError: no such split, or a run that has no ODE likelihood (`by_ode`).
    """
    bits_per_dim = by_ode(run, tolerance)
    bits, evaluations, what = [], [], f"likelihood by the ODE, {split} images"
    for images, cond, start, n, total in _batches(run, dataset, split, num_images):
        progress(what, start, total)
        found = bits_per_dim(run.params, jax.random.key(0), images, cond, start=start)
        bits.append(found[0][:n].astype(np.float64))
        evaluations.append(found[1][:n])
        progress(what, start + n, total)
    values = np.concatenate(bits)
    note = f"tolerance {tolerance:g}, {np.concatenate(evaluations).mean():.0f} evaluations an image"
    return Row(f"bits_per_dim_ode_{split}", *bound.mean_and_error(values), values.size, note)


def by_ode(run: Run, tolerance: float) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Build `likelihood.ode.make_bits_per_dim` for a run.

    Args:
      run: the run, from `runs.open_run`.
      tolerance: relative and absolute tolerance of the solver.

    Raises:
      UserError: the run has no ODE likelihood.
    """
    check_pixels(run)
    return make_bits_per_dim(
        run.process, run.model.apply, kind=run.config.loss.kind, rtol=tolerance, atol=tolerance
    )


def progressive_decoding(
    run: Run, dataset: data.Dataset, split: str, *, num_images: int = 8, num_frames: int = 10
) -> np.ndarray:
    """Draw the receiver's estimate as bits arrive: x̂_0(x_t) for decreasing t.

    Each row belongs to one image: the estimates at `num_frames` timesteps from T to 1, then the
    image.

    Args:
      run: the run, from `runs.open_run`.
      dataset: the data that the run was trained on.
      split: "train" or "test".
      num_images: maximum number of images, as in `evaluate`.
      num_frames: number of timesteps. A number above T is T.

    Returns:
      [H, W, C] uint8, the picture.

    Raises:
      UserError: no such split.
    """
    count = min(num_images, len(references.source_of(dataset, split)))
    images, cond = _read(run, dataset, split, np.arange(count))
    T = run.process.num_timesteps
    ts = timesteps.quadratic(T, min(num_frames, T))[:-1]

    def decode(params: Params, each: tuple[Array, Array, Conditioning | None]) -> Array:
        x_0, eps, cond = each
        denoise_fn = make_denoise_fn(
            run.process, run.model.apply, params, cond, kind=run.config.loss.kind
        )

        def at(t: Array) -> Array:
            t = jnp.full(x_0.shape[0], t)
            return denoise_fn(q_sample(run.process, x_0, t, eps), t).x_0

        return jax.lax.map(at, ts)

    eps = jax.random.normal(jax.random.key(0), images.shape)  # the same noise at every t
    each = pixels.to_x_0(images), eps, cond
    frames = pixels.to_uint8(over_local_devices(decode, out_axes=1)(run.params, each))
    columns = np.concatenate([frames, images[None]]).swapaxes(0, 1)  # [n, frames + 1, H, W, C]
    labels = [f"t={t}" for t in ts.tolist()] + ["given"]
    return grids.make_grid(
        columns.reshape(-1, *images.shape[1:]),
        columns=len(labels),
        side=32,
        column_labels=labels,
    )


def _some(count: int, wanted: int) -> np.ndarray:
    """Return at most `wanted` of the indices 0..count-1: a random subset, the same at each call."""
    return np.sort(np.random.default_rng(0).permutation(count)[:wanted])


def _read(
    run: Run, dataset: data.Dataset, split: str, indices: np.ndarray
) -> tuple[np.ndarray, Conditioning | None]:
    """Return images of a split, [n, H, W, C] uint8, and their conditioning."""
    source = references.source_of(dataset, split)
    encoded = rows_of(run.config, dataset)[split == "test"]
    return source.read(indices)[0], cond_of(run.config, source, encoded, indices)


def _batches(
    run: Run, dataset: data.Dataset, split: str, num_images: int
) -> Iterator[tuple[np.ndarray, Conditioning | None, int, int, int]]:
    """Yield the images, their cond, the index of the first image, n and the total number.

    All batches have the same size, so that nothing recompiles. The last batch is padded: only its
    first n images count.
    """
    indices = _some(len(references.source_of(dataset, split)), num_images)
    size = min(run.config.sample.chunk_size, len(indices))
    for start in range(0, len(indices), size):
        wanted = indices[start : start + size]
        yield *_read(run, dataset, split, np.resize(wanted, size)), start, len(wanted), len(indices)


def _first(part: bound.Bound, n: int) -> dict[str, np.ndarray]:
    """Return the fields of a bound for its first n images."""
    return {name: getattr(part, name)[..., :n] for name in ("prior", "terms", "squared_error")}
