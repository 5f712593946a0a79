"""Rate-distortion curves (Ho et al. 2020, figure 5)."""

from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure

from ddpm_jax.figures.plots import COLOURS, DASHES, STYLE


def rate_distortion(curves: Mapping[str, Sequence[tuple[float, float, float]]], T: int) -> Figure:
    """Draw distortion and rate against reverse steps, and distortion against rate.

    Args:
      curves: name -> points (t, rate in bits/dim, distortion as RMSE of 0..255), t from T down.
      T: number of timesteps of the chain.

    Returns:
      A figure of three panels, one line per name.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 3), layout="constrained")
        panels = figure.subplots(1, 3)
        for (name, points), colour, dash in zip(curves.items(), COLOURS, DASHES, strict=False):
            t, rate, distortion = zip(*points, strict=True)
            steps = [T - i for i in t]
            for axes, x, y in zip(
                panels, (steps, steps, rate), (distortion, rate, distortion), strict=True
            ):
                axes.plot(x, y, color=colour, linestyle=dash, label=name)
        for axes, x, y in zip(
            panels,
            ("reverse steps (T - t)", "reverse steps (T - t)", "rate (bits/dim)"),
            ("distortion (RMSE of 0..255)", "rate (bits/dim)", "distortion (RMSE of 0..255)"),
            strict=True,
        ):
            axes.set(xlabel=x, ylabel=y)
        panels[0].legend()
    return figure
