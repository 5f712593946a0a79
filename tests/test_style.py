"""The style of the plots: colours that everyone can distinguish, and every plot uses them."""

import itertools
import pathlib
import re

import numpy as np
import pytest
from mains import run
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from PIL import Image

import ddpm_jax
from ddpm_jax.figures import curves, plots, style

ROOT = pathlib.Path(__file__).parents[1]
VIENOT = {  # linear RGB as a dichromat sees it: Viénot, Brettel and Mollon 1999
    "normal": np.eye(3),
    "protanopia": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
    "deuteranopia": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
}
TO_XYZ = np.array(  # of linear sRGB, IEC 61966-2-1
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)


def linear(colour) -> np.ndarray:
    """The linear RGB of a colour."""
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast_with_white(colour) -> float:
    """The contrast ratio of WCAG 2: 1 is white, 21 is black."""
    return 1.05 / (TO_XYZ[1] @ linear(colour) + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of linear RGB; a distance of about 2 is just visible."""
    x, y, z = np.cbrt(TO_XYZ @ np.clip(rgb, 1e-6, 1) / TO_XYZ.sum(axis=1))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def nearest(colours, sight: str) -> float:
    """The smallest CIELAB distance between two of the colours."""
    seen = [lab(np.array(VIENOT[sight]) @ linear(colour)) for colour in colours]
    return min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2))


def test_the_measures_of_colours_know_good_from_bad():
    np.testing.assert_allclose([contrast_with_white(c) for c in "wk"], [1, 21])
    assert contrast_with_white("#F0E442") < 1.5  # the yellow of Okabe and Ito
    np.testing.assert_allclose(lab(linear("w")), [100, 0, 0], atol=1e-9)
    red_and_green = "#B04040", "#607820"
    assert nearest(red_and_green, "normal") > 50 > 15 > nearest(red_and_green, "deuteranopia")


@pytest.mark.parametrize("sight", VIENOT)
def test_the_colours_differ_for_everyone(sight):
    assert nearest(style.COLOURS, sight) > 15


def test_every_colour_is_dark_enough_on_white():
    for colour in (*style.COLOURS, *style.shades(7), style.GREY):
        assert contrast_with_white(colour) > 2, to_hex(colour)
    lightness = [lab(linear(colour))[0] for colour in style.shades(7)]
    assert min(-np.diff(lightness)) > 4  # an order that a grey print shows too


def test_lines_also_differ_by_dash_and_marker():
    n = len(style.COLOURS) * len(style.DASHES)
    looks = [style.line_style(i) | style.marker(i) for i in range(n)]
    assert len({(each["color"], str(each["linestyle"])) for each in looks}) == n
    for a, b in itertools.combinations(looks[:14], 2):  # of one colour: another dash and marker
        if a["color"] == b["color"]:
            assert a["linestyle"] != b["linestyle"] and a["marker"] != b["marker"]


T = np.linspace(1, 0.01, 5)
TABLES = {name: T ** (i + 1) for i, name in enumerate("abcdefgh")}
POINTS = {name: {10: i + 1.0, 20: i + 0.5} for i, name in enumerate("abcdefghijkl")}
FIGURES = {
    "schedules": lambda: plots.plot_schedules(TABLES, TABLES),
    "spectrum": lambda: plots.plot_spectrum(
        np.arange(1, 5), T[:4], np.outer(T[:4], T[:4]), T[:4], "a", TABLES
    ),
    "rate_distortion": lambda: curves.rate_distortion(
        {name: [(4, 0.1, 9.0), (1, 1.0, 2.0)] for name in "abcdefgh"}, 5
    ),
    "quality": lambda: curves.quality({"one": POINTS}, "distance", ("whole", 0.5, 1.0)),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_plot_uses_the_palette_and_no_two_of_its_lines_look_alike(name):
    figure = FIGURES[name]()
    allowed = {to_hex(c) for c in (*style.COLOURS, *style.shades(4), style.GREY)}
    for axes in figure.axes:
        looks = [
            (to_hex(line.get_color()), line.get_linestyle(), line._dash_pattern, line.get_marker())
            for line in axes.lines
        ]
        assert looks and {look[0] for look in looks} <= allowed
        assert len(set(map(str, looks))) == len(looks)
        assert not axes.spines["top"].get_visible()  # STYLE


def test_colours_and_styles_are_defined_in_one_place():
    of_its_own = re.compile(r"import pyplot|get_cmap|colormaps|rcParams|#[0-9A-Fa-f]{6}\b")
    package = pathlib.Path(ddpm_jax.__file__).parent  # in tests of the wheel, not below ROOT
    found = {
        path.relative_to(folder.parent).as_posix()
        for folder in (package, ROOT / "experiments", ROOT / "benchmarks")
        for path in folder.rglob("*.py")
        if of_its_own.search(path.read_text())
    }
    assert found == {"ddpm_jax/figures/style.py"}


def test_quality_shows_each_measurement_and_leaves_out_empty_panels():
    panels = {
        "long": {"a": {50: 3.0, 10: 1.0}, "b": {20: 2.0}},
        "empty": {"a": {}},
        "short": {"b": {10: 4.0, 20: 5.0}},
    }
    figure = curves.quality(panels, "distance")
    assert isinstance(figure, Figure)
    long, short = figure.axes
    assert (long.get_title(), short.get_title()) == ("long", "short")
    np.testing.assert_array_equal(long.lines[0].get_xydata(), [[10, 1], [50, 3]])
    np.testing.assert_array_equal(short.lines[0].get_xydata(), [[10, 4], [20, 5]])
    assert short.get_xlim()[1] < 30  # no empty room up to 50
    assert long.lines[1].get_color() == short.lines[0].get_color()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]


def test_the_plot_of_the_samplers_is_drawn_from_the_table_of_its_page(tmp_path):
    out = tmp_path / "deep" / "samplers.png"
    samplers = ("samplers", f"--out={out}", "--table=docs/samplers.md")
    drawn = run(*samplers, package="benchmarks")
    assert (drawn.returncode, drawn.stdout) == (0, f"plot: {out}\n"), drawn.stderr
    with Image.open(out) as picture:
        colours = {to_hex(np.array(c[:3]) / 255) for _, c in picture.getcolors(2**20)}
    assert colours >= {to_hex(colour) for colour in style.COLOURS}
    for flag, message in (
        (f"--table={ROOT / 'README.md'}", "has no table with the columns sampler, grid"),
        ("--n=10", "error: --workdir is missing; only --table needs no run"),
    ):
        refused = run("samplers", flag, package="benchmarks")
        assert refused.returncode == 2 and message in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
