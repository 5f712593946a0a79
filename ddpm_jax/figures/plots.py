"""Figures of the diffusion process: pure functions from arrays to a Matplotlib Figure.

They do not use pyplot, so no figure stays open and no display is needed. `figure.savefig(path)`
draws with Agg, and a notebook shows the figure that a cell returns.
"""

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from ddpm_jax.figures.style import GREY, STYLE, line_style, marker, shades
from ddpm_jax.pixels import to_uint8

GAP = 0.08  # space between two pictures, as a fraction of a picture's width


def radial_power(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the power spectrum, averaged over images, channels and rings of equal frequency.

    The power at a frequency is |DFT|² / (H W), so white noise of variance 1 has power 1 everywhere.

    Args:
      images: [n, H, W, C] float, at least 2x2 pixels.

    Returns:
      frequencies: [K] int, 1 .. min(H, W) // 2, in cycles per shorter side of the image.
      power: [K] float64. Frequency 0, the mean of the image, is left out.
    """
    images = np.asarray(images, np.float64)
    height, width = images.shape[1:3]
    side = min(height, width)
    power = np.square(np.abs(np.fft.fft2(images, axes=(1, 2), norm="ortho"))).mean(axis=(0, 3))
    f_y, f_x = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :]  # cycles per pixel
    ring = np.round(side * np.hypot(f_y, f_x)).astype(np.int64)
    total, count = (np.bincount(ring.ravel(), w) for w in (power.ravel(), None))
    frequencies = np.arange(1, side // 2 + 1)
    return frequencies, total[frequencies] / count[frequencies]


@matplotlib.rc_context(STYLE)
def plot_schedules(
    alphas_cumprod: Mapping[str, np.ndarray], log_snr: Mapping[str, np.ndarray]
) -> Figure:
    """Draw ᾱ and the log-SNR ln(ᾱ / (1-ᾱ)) of schedules against t/T, side by side.

    Args:
      alphas_cumprod: name of a schedule -> ᾱ at t = 0..T, [T+1].
      log_snr: name of a schedule -> log-SNR at t = 0..T, [T+1]; infinities (t = 0) are left out.
    """
    figure = Figure(figsize=(9.5, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, name in enumerate(alphas_cumprod):
        line = line_style(i)
        left.plot(_unit(alphas_cumprod[name]), alphas_cumprod[name], label=name, **line)
        finite = np.isfinite(log_snr[name])
        right.plot(_unit(log_snr[name])[finite], np.asarray(log_snr[name])[finite], **line)
    left.set(xlabel=r"$t/T$", ylabel=r"$\bar\alpha_t$", xlim=(0, 1), ylim=(0, 1.02))
    left.set_title(r"Signal that is left, $\bar\alpha_t$")
    right.axhline(0, color=GREY, linewidth=0.9)
    right.annotate(
        "above: more signal than noise",
        (0.99, 0),
        (0, 3),
        textcoords="offset points",
        ha="right",
        color="0.35",
        fontsize=8,
    )
    right.set(xlabel=r"$t/T$", ylabel="log-SNR (nats)", xlim=(0, 1))
    right.set_title(r"Signal to noise, $\ln\,[\bar\alpha_t / (1-\bar\alpha_t)]$")
    figure.legend(loc="outside upper center", ncols=len(alphas_cumprod), handlelength=3)
    return figure


@matplotlib.rc_context(STYLE)
def plot_forward(
    x_t: Mapping[str, np.ndarray],
    alphas_cumprod: Mapping[str, np.ndarray],
    fractions: Sequence[float],
) -> Figure:
    """Draw the same images with the same noise at several t: a row per schedule, a column per t/T.

    Args:
      x_t: name of a schedule -> [columns, n, H, W, C] float; clipped to [-1, 1].
      alphas_cumprod: name of a schedule -> ᾱ of each column, [columns], printed below the pictures.
      fractions: t/T of each column, [columns].
    """
    rows, columns = len(x_t), len(fractions)
    figure = Figure(figsize=(max(1.25 * columns + 0.4, 5), 1.45 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for row, name in zip(axes, x_t, strict=True):
        for ax, images, alpha_bar in zip(row, x_t[name], alphas_cumprod[name], strict=True):
            side = math.ceil(math.sqrt(len(images)))
            _place(ax, images, [divmod(i, side) for i in range(len(images))])
            ax.set(xticks=[], yticks=[])
            ax.set_xlabel(rf"$\bar\alpha_t$ = {alpha_bar:.2g}", fontsize=7, labelpad=3)
        row[0].set_ylabel(name, fontsize=10)
    for ax, fraction in zip(axes[0], fractions, strict=True):
        ax.set_title(f"{fraction:.2g}" if fraction else r"$t/T$ = 0")
    figure.suptitle(
        r"Forward chain  $x_t=\sqrt{\bar\alpha_t}\,x_0+\sqrt{1-\bar\alpha_t}\,\epsilon$"
        ",  the same $\\epsilon$ everywhere"
    )
    return figure


@matplotlib.rc_context(STYLE)
def plot_reverse(x_t: np.ndarray, x_0_hat: np.ndarray, times: Sequence[int]) -> Figure:
    """Draw the reverse chain of samples, and below each x_t the x̂_0 of the step to this x_t.

    Args:
      x_t: [columns, n, H, W, C] float, from x_T to x_0; clipped to [-1, 1].
      x_0_hat: [columns, n, H, W, C] float, the network's prediction in the step to each x_t. If x_t
        begins with x_T, which has no prediction, x_0_hat has one column less.
      times: t of each column, [columns].
    """
    columns, n, height, width = np.shape(x_t)[:4]
    block = 2.25  # height per sample: a row of x_t, a row of x̂_0, and 0.25 of space
    figure = Figure(
        figsize=(max(0.85 * columns + 0.5, 5), 0.85 * block * n * height / width + 0.7),
        layout="constrained",
    )
    ax = figure.subplots()
    rows = [block * i for i in range(n)]
    for j in range(columns):
        _place(ax, x_t[j], [(row, j) for row in rows])
    for j in range(1, len(x_0_hat) + 1):
        _place(ax, x_0_hat[-j], [(row + 1, columns - j) for row in rows])
    step_x, step_y = 1 + GAP, height / width + GAP
    ax.set_xticks(
        [j * step_x + 0.5 for j in range(columns)],
        [f"$t$ = {times[0]}", *(f"{t}" for t in times[1:])],
    )
    ax.set_yticks(
        [(row + k) * step_y + height / width / 2 for row in rows for k in (0, 1)],
        ["$x_t$", r"$\hat x_0$"] * n,
    )
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    figure.suptitle(r"Reverse chain: $x_t$, and the $\hat x_0$ that it was drawn from")
    return figure


@matplotlib.rc_context(STYLE)
def plot_spectrum(
    frequencies: np.ndarray,
    data: np.ndarray,
    x_t: np.ndarray,
    fractions: Sequence[float],
    schedule: str,
    log_snr: Mapping[str, np.ndarray],
) -> Figure:
    """Draw the power spectrum of x_t at several t, and the t at which each frequency is lost.

    A frequency is lost at the first t where the noise exceeds the signal: ᾱ_t P < 1-ᾱ_t, with P the
    power of the data at this frequency (`first_lost`).

    Args:
      frequencies: [K], in cycles per image.
      data: [K], power of the data at each frequency.
      x_t: [times, K], power of x_t at each frequency.
      fractions: [times], t/T of each row of x_t.
      schedule: name of the schedule of x_t.
      log_snr: name of a schedule -> log-SNR at t = 0..T, [T+1].
    """
    figure = Figure(figsize=(10.0, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(frequencies, data, color="black", linewidth=3, label="data")
    for i, (power, colour) in enumerate(zip(x_t, shades(len(x_t)), strict=True)):
        left.plot(frequencies, power, color=colour, label=f"{fractions[i]:.2g}", **marker(i))
    left.axhline(1, color=GREY, linestyle="--", linewidth=1.2, label="noise")
    left.set(xscale="log", yscale="log", xlabel="frequency (cycles per image)")
    left.set(ylabel="power (white noise of variance 1 is 1)")
    left.set_title(f"Power spectrum of $x_t$, {schedule} schedule")
    left.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    left.yaxis.set_minor_formatter("{x:g}")
    left.yaxis.set_major_formatter("{x:g}")
    left.legend(title="$t/T$", loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    for i, (name, table) in enumerate(log_snr.items()):
        lost = first_lost(data, table) / (len(table) - 1)
        right.plot(frequencies, lost, label=name, **line_style(i), **marker(i))
    right.set(xscale="log", ylim=(0, 1), xlabel="frequency (cycles per image)")
    right.set(ylabel="$t/T$ at which noise exceeds signal")
    right.set_title("Low frequencies are the last to go")
    right.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, handlelength=3)
    ticks = [int(f) for f in 2.0 ** np.arange(np.log2(frequencies[-1]) + 1)]
    for ax in (left, right):
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
        ax.xaxis.set_minor_locator(NullLocator())
    return figure


def first_lost(power: np.ndarray, log_snr: np.ndarray) -> np.ndarray:
    """Return the first t at which the noise exceeds the signal, ᾱ_t P < 1-ᾱ_t; T if there is none.

    Args:
      power: [K] float, P, the power of the data at each frequency.
      log_snr: [T+1] float, ln(ᾱ_t / (1-ᾱ_t)), decreasing in t.

    Returns:
      [K] int in 0..T.
    """
    below = np.log(power)[:, None] + log_snr[None, :] < 0
    return np.where(below.any(axis=1), below.argmax(axis=1), len(log_snr) - 1)


def _unit(table: np.ndarray) -> np.ndarray:
    """Return t/T of each entry of a table over t = 0..T."""
    return np.linspace(0, 1, len(table))


def _place(ax: Axes, images: np.ndarray, cells: Sequence[tuple[float, float]]) -> None:
    """Draw images [n, H, W, C] at these (row, column) cells; a picture has width 1, no axes."""
    height = images.shape[1] / images.shape[2]
    for image, (row, column) in zip(to_uint8(images), cells, strict=True):
        left, top = column * (1 + GAP), row * (height + GAP)
        image = image[..., 0] if image.shape[-1] == 1 else image
        extent = (left, left + 1, top + height, top)
        ax.imshow(image, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation="nearest")
    ax.autoscale()  # to all pictures, because imshow sets the limits to the last picture
    ax.grid(False)
    ax.spines[:].set_visible(False)
