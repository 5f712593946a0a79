"""Curves of what was measured: rate and distortion, and the quality of samplers."""

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from ddpm_jax.figures.style import STYLE, line_style, marker


def rate_distortion(curves: Mapping[str, Sequence[tuple[float, float, float]]], T: int) -> Figure:
    """Draw distortion and rate against reverse steps, and distortion against rate.

    As in Ho et al. 2020, figures 5 and 10.

    Args:
      curves: name -> points (t, rate in bits/dim, distortion as RMSE of 0..255), t from T down.
      T: number of timesteps of the chain.

    Returns:
      A figure of three panels, one line per name.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 3), layout="constrained")
        panels = figure.subplots(1, 3)
        for i, (name, points) in enumerate(curves.items()):
            t, rate, distortion = zip(*points, strict=True)
            steps = [T - each for each in t]
            for axes, x, y in zip(
                panels, (steps, steps, rate), (distortion, rate, distortion), strict=True
            ):
                axes.plot(x, y, label=name, **line_style(i))
        for axes, x, y in zip(
            panels,
            ("reverse steps (T - t)", "reverse steps (T - t)", "rate (bits/dim)"),
            ("distortion (RMSE of 0..255)", "rate (bits/dim)", "distortion (RMSE of 0..255)"),
            strict=True,
        ):
            axes.set(xlabel=x, ylabel=y)
        panels[0].legend()
    return figure


@matplotlib.rc_context(STYLE)
def quality(
    panels: Mapping[str, Mapping[str, Mapping[int, float]]],
    ylabel: str,
    band: tuple[str, float, float] | None = None,
) -> Figure:
    """Draw a distance against the number of network evaluations, both logarithmic.

    A sampler has the same line in all panels. All panels have the same scales; a panel without any
    measurement is left out.

    Args:
      panels: title -> name of a sampler -> number of evaluations -> distance.
      ylabel: name of the distance.
      band: a name and the two ends of a range to compare with, or None.
    """
    panels = {title: lines for title, lines in panels.items() if any(lines.values())}
    samplers = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    ticks = [sorted({e for points in lines.values() for e in points}) for lines in panels.values()]
    edge = 1.15  # factor between the outer points and the frame
    widths = [math.log(edge**2 * each[-1] / each[0]) for each in ticks]
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False, width_ratios=widths)[0]
    handles = {}
    for axes, (title, lines), numbers in zip(all_axes, panels.items(), ticks, strict=True):
        if band:
            handles[band[0]] = axes.axhspan(*band[1:], color="0.85")
        for name, points in lines.items():
            i = samplers.index(name)
            x, y = zip(*sorted(points.items()), strict=True)
            handles[name] = axes.plot(x, y, label=name, **line_style(i), **marker(i))[0]
        axes.set(xscale="log", yscale="log", title=title, xlabel="network evaluations")
        axes.set(xlim=(numbers[0] / edge, numbers[-1] * edge))
        axes.set_xticks(numbers, [str(each) for each in numbers])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    all_axes[0].set_ylabel(ylabel)
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=4, fontsize=8, handlelength=4
    )
    return figure


@matplotlib.rc_context(STYLE)
def recall_by_class(
    lines: Mapping[str, Sequence[tuple[float, float]]], names: Sequence[str], counts: Sequence[int]
) -> Figure:
    """Draw the recall of each arm and class in %, from the most frequent class to the rarest.

    Args:
      lines: name of an arm -> (recall, standard error) of each class.
      names: the names of the classes.
      counts: how many real images each class has in training.
    """
    order = sorted(range(len(counts)), key=lambda c: -counts[c])
    recall, error = np.moveaxis(100 * np.array(list(lines.values()))[:, order], -1, 0)
    figure = Figure(figsize=(2 + 0.75 * len(order), 1.4 + 0.3 * len(lines)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(recall, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    for (row, column), value in np.ndenumerate(recall):
        of_cell = error[row, column]
        text = f"{value:.0f}" + ("" if np.isnan(of_cell) else f" ± {of_cell:.0f}")
        colour = "white" if value < 60 else "black"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    ticks = [f"{names[c]}\n{counts[c]:,}" for c in order]
    axes.set_xticks(range(len(order)), ticks, rotation=30 if max(map(len, names)) > 8 else 0)
    axes.set_yticks(range(len(lines)), list(lines))
    axes.grid(False)
    axes.set(xlabel="class and its real training images")
    return figure
