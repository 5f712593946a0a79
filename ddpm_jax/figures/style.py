"""The style of all plots: colours, dashes and markers that everyone can distinguish.

The colours are those of Okabe and Ito without their yellow, which is too pale on white. They differ
for every common kind of colour blindness. Dashes and markers distinguish the lines in grey too.
"""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.rcsetup import cycler

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
DASHES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
MARKERS = ("^", "v", "o", "s", "D")
GREY = "0.45"  # of lines that are no curve of data, such as the level of noise
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "figure.titlesize": 12,
    "figure.dpi": 150,
    "mathtext.fontset": "dejavusans",
}


def line_style(i: int) -> dict[str, Any]:
    """Return the colour and the dash of line i; the first 42 lines differ."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)]}


def marker(i: int) -> dict[str, Any]:
    """Return the marker of line i: for lines through few points."""
    return {"marker": MARKERS[i % len(MARKERS)], "markersize": 5}


def shades(n: int) -> np.ndarray:
    """Return n colours [n, 4] from light to dark, for lines that are in an order, such as times.

    They are a part of viridis. Its yellow end, too pale on white, is left out.
    """
    return matplotlib.colormaps["viridis"](np.linspace(0.72, 0.0, n))
