"""Figures: the data of their lines and pictures, and the command that draws them."""

import dataclasses
import functools
import pathlib

import jax
import numpy as np
import pytest
from mains import Finished, run
from matplotlib.figure import Figure
from PIL import Image
from tiny import make_config

from ddpm_jax import build
from ddpm_jax.build.chain import make_chain
from ddpm_jax.figures import grids, plots
from ddpm_jax.models.noise_schedule import make_gamma
from ddpm_jax.pixels import to_uint8
from ddpm_jax.runs import workdir
from ddpm_jax.runs.checkpoint import Checkpoints
from ddpm_jax.training.optimizer import make_optimizer
from ddpm_jax.training.step import init_state

pytestmark = pytest.mark.quick_to_compile

TABLES = {
    "a": np.array([1.0, 0.75, 0.5, 0.25, 0.0]),
    "b": np.array([1.0, 0.5, 0.2, 0.1, 0.01]),
}
with np.errstate(divide="ignore"):
    LOG_SNR = {name: np.log(table) - np.log(1 - table) for name, table in TABLES.items()}


def test_white_noise_has_a_flat_spectrum_of_its_variance():
    n, variance = 4000, 2.5
    noise = np.random.default_rng(0).normal(size=(n, 8, 8, 1)) * variance**0.5
    frequencies, power = plots.radial_power(noise)
    np.testing.assert_array_equal(frequencies, [1, 2, 3, 4])
    # A ring has at least 4 frequencies. The power of a real one has mean 1 and variance 2.
    np.testing.assert_allclose(power, variance, atol=5 * variance * np.sqrt(2 / (4 * n)))


@pytest.mark.parametrize(
    "shape, axis, cycles, peak",
    [
        ((16, 16), 0, 1, 1),
        ((16, 16), 1, 5, 5),
        ((16, 16), 1, 8, 8),
        ((16, 24), 0, 3, 3),
        ((16, 24), 1, 3, 2),  # 3 cycles in 24 pixels are 2 in 16, the shorter side
    ],
)
def test_a_cosine_has_all_its_power_at_its_frequency(shape, axis, cycles, peak):
    pixel = np.indices(shape)[axis]
    wave = np.cos(2 * np.pi * cycles * pixel / shape[axis])[None, :, :, None]
    frequencies, power = plots.radial_power(0.3 + np.tile(wave, (2, 1, 1, 3)))
    assert frequencies[power.argmax()] == peak
    assert np.delete(power, peak - 1).max() < 1e-20
    # Parseval: the power of the ring times its size is the sum of squares of the wave.
    radii = [
        np.hypot(y / shape[0], x / shape[1]) * min(shape)
        for y in range(-shape[0] // 2, shape[0] // 2)
        for x in range(-shape[1] // 2, shape[1] // 2)
    ]
    size = sum(round(radius) == peak for radius in radii)
    np.testing.assert_allclose(power[peak - 1] * size, np.sum(wave**2), rtol=1e-12)


def test_a_frequency_is_lost_at_the_first_t_where_noise_exceeds_signal():
    log_snr = np.array([np.inf, 2.0, 0.0, -2.0, -4.0])
    power = np.exp([9.0, 3.0, 1.0, -1.0, -3.0])  # never lost; then 3-4, 1-2, -1+0, -3+2 < 0
    np.testing.assert_array_equal(plots.first_lost(power, log_snr), [4, 4, 3, 2, 1])


def test_schedules_are_drawn_whole_but_for_infinities():
    left, right = plots.plot_schedules(TABLES, LOG_SNR).axes
    styles = set()
    for name, alpha_bar, log_snr in zip(TABLES, left.lines, right.lines, strict=False):
        assert alpha_bar.get_label() == name
        np.testing.assert_array_equal(alpha_bar.get_xdata(), [0, 0.25, 0.5, 0.75, 1])
        np.testing.assert_array_equal(alpha_bar.get_ydata(), TABLES[name])
        finite = slice(1, 4 if name == "a" else 5)  # "a" ends with ᾱ_T = 0
        np.testing.assert_array_equal(log_snr.get_xdata(), [0, 0.25, 0.5, 0.75, 1][finite])
        np.testing.assert_array_equal(log_snr.get_ydata(), LOG_SNR[name][finite])
        assert alpha_bar.get_color() == log_snr.get_color()
        styles.add((alpha_bar.get_color(), str(alpha_bar.get_linestyle())))
    assert len(styles) == 2


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_forward_panel_has_a_row_a_schedule_and_a_column_a_time(channels):
    fractions = (0.0, 0.25, 1.0)
    rng = np.random.default_rng(0)
    x_t = {name: rng.uniform(-2, 2, (3, 4, 6, 5, channels)) for name in TABLES}
    alphas = {name: table[[0, 1, 4]] for name, table in TABLES.items()}
    figure = plots.plot_forward(x_t, alphas, fractions)
    assert len(figure.axes) == 2 * 3
    for i, name in enumerate(TABLES):
        row = figure.axes[3 * i : 3 * i + 3]
        assert row[0].get_ylabel() == name
        for j, ax in enumerate(row):
            assert ax.get_xlabel().endswith(f"= {alphas[name][j]:g}")
            _assert_shown(ax.images, x_t[name][j])
            corners = {
                tuple(image.get_extent()[:1] + image.get_extent()[3:]) for image in ax.images
            }
            assert len(corners) == 4  # no two pictures at the same place
    assert [ax.get_title() for ax in figure.axes[:3]] == ["$t/T$ = 0", "0.25", "1"]


def test_the_reverse_chain_shows_x_t_over_its_x_0_hat():
    rng = np.random.default_rng(0)
    x_t = rng.uniform(-2, 2, (4, 2, 8, 8, 1))
    x_0_hat = rng.uniform(-1, 1, (3, 2, 8, 8, 1))
    (ax,) = plots.plot_reverse(x_t, x_0_hat, [30, 20, 10, 0]).axes
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["$t$ = 30", "20", "10", "0"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["$x_t$", r"$\hat x_0$"] * 2
    cells = {}
    for image in ax.images:
        left, right, bottom, top = image.get_extent()
        column = np.flatnonzero((left < ax.get_xticks()) & (ax.get_xticks() < right)).item()
        row = np.flatnonzero((top < ax.get_yticks()) & (ax.get_yticks() < bottom)).item()
        cells[row, column] = image
    assert len(cells) == len(ax.images)
    for i in range(2):
        _assert_shown([cells[2 * i, j] for j in range(4)], x_t[:, i])
        _assert_shown([cells[2 * i + 1, j] for j in range(1, 4)], x_0_hat[:, i])
        assert (2 * i + 1, 0) not in cells  # no prediction belongs to x_T


def test_the_spectrum_shows_x_t_and_when_each_frequency_is_lost():
    frequencies, data = np.arange(1, 5), np.array([9.0, 2.0, 0.5, 0.1])
    x_t = np.array([[5.0, 1.5, 0.8, 0.6], [1.0, 1.0, 1.0, 1.0]])
    left, right = plots.plot_spectrum(frequencies, data, x_t, (0.5, 1.0), "a", LOG_SNR).axes
    for line, expected in zip(left.lines, [data, *x_t], strict=False):
        np.testing.assert_array_equal(line.get_xdata(), frequencies)
        np.testing.assert_array_equal(line.get_ydata(), expected)
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert labels == ["data", "0.5", "1", "noise"]
    assert "a schedule" in left.get_title()
    for (name, table), line in zip(LOG_SNR.items(), right.lines, strict=True):
        assert line.get_label() == name
        np.testing.assert_array_equal(line.get_ydata(), plots.first_lost(data, table) / 4)


def test_figures_leave_the_global_style_alone(tmp_path):
    before = dict(plots.matplotlib.rcParams)
    figure = plots.plot_schedules(TABLES, LOG_SNR)
    assert isinstance(figure, Figure)
    figure.savefig(tmp_path / "figure.png")
    assert dict(plots.matplotlib.rcParams) == before


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("data"))


def _run(data_dir: str, *arguments: str, config: str = "digits") -> Finished:
    """Draw the figures of a config in this process."""
    settings = [f"--config=experiments/{config}.py", f"--config.data.data_dir={data_dir}"]
    return run("figures", *settings, *arguments)


@pytest.mark.slow
@pytest.mark.loose_promotion(reason="Linen's initialisers mix types")
def test_the_command_draws_every_figure_and_says_where(data_dir, tmp_path):
    _save_run_of_zeros(tmp_path / "run")
    out = tmp_path / "deep" / "figures"
    result = _run(data_dir, f"--workdir={tmp_path / 'run'}", f"--out={out}")
    assert result.returncode == 0, result.stderr
    names = ["schedules", "forward", "spectrum", "reverse"]
    assert result.stdout.splitlines() == [f"{name}: {out / name}.png" for name in names]
    assert sorted(path.name for path in out.iterdir()) == sorted(f"{name}.png" for name in names)
    for path in out.iterdir():
        with Image.open(path) as image:
            assert image.format == "PNG" and min(image.size) > 300
            grey = np.asarray(image.convert("L"))
        assert grey[0, 0] == 255 and len(np.unique(grey)) > 50  # drawn on white


@pytest.mark.slow
@pytest.mark.loose_promotion(reason="Linen's initialisers mix types")
def test_the_figures_of_a_run_are_written_into_its_directory(data_dir, tmp_path):
    _save_run_of_zeros(tmp_path / "run")
    result = _run(data_dir, f"--workdir={tmp_path / 'run'}")
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if ": " in line]
    assert lines[0] == f"schedules: {tmp_path / 'run' / 'figures' / 'schedules.png'}"
    assert (tmp_path / "run" / "figures" / "reverse.png").exists()


def test_a_workdir_that_is_no_run_is_one_line_and_exit_2(data_dir, tmp_path):
    result = _run(data_dir, f"--workdir={tmp_path}", f"--out={tmp_path / 'figures'}")
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(f"error: {tmp_path} is not the work directory of a run")
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize("T", [1, 4, 20])
def test_a_short_chain_is_drawn_without_the_schedules_that_it_cannot_have(data_dir, tmp_path, T):
    schedule = "--config.process.schedule="
    length = f"--config.process.num_timesteps={T}"
    result = _run(data_dir, length, schedule + "cosine", f"--out={tmp_path}")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    for name in ("linear", "quadratic", "sigmoid", "constant"):
        (line,) = (line for line in lines if line.startswith(f"the schedule {name} is left out: "))
        assert f"with T = {T}: take T > 20" in line
    assert {path.stem for path in tmp_path.iterdir()} == {"schedules", "forward", "spectrum"}
    with Image.open(tmp_path / "forward.png") as image:  # columns of 1.25 inches
        assert image.width == int(150 * max(1.25 * min(T + 1, 8) + 0.4, 5))
    impossible = _run(data_dir, length, schedule + "linear", f"--out={tmp_path}")
    assert impossible.returncode == 2 and "take T > 20" in impossible.stderr


@pytest.mark.slow
def test_without_a_workdir_the_command_says_what_is_left_out(data_dir, tmp_path):
    result = _run(data_dir, f"--out={tmp_path}")
    assert result.returncode == 0, result.stderr
    names = [path.stem for path in sorted(tmp_path.glob("*.png"))]
    assert names == ["forward", "schedules", "spectrum"]
    assert "reverse.png is not drawn: it needs a trained run; pass --workdir" in result.stdout


@pytest.mark.slow
@pytest.mark.loose_promotion(reason="Linen's initialisers mix types")
def test_a_learned_schedule_is_drawn_beside_the_others_before_and_after_training(
    data_dir, tmp_path
):
    process = {"schedule": "learned", "num_timesteps": 30}
    _save_run_of_zeros(tmp_path / "run", process, ends=(-9.0, 1.0))
    length, pictures = "--config.process.num_timesteps=30", []
    for name, flags in {"before": [], "after": [f"--workdir={tmp_path / 'run'}"]}.items():
        out = tmp_path / name
        result = _run(data_dir, length, f"--out={out}", *flags, config="digits_vdm")
        assert result.returncode == 0, result.stderr
        found = sorted(path.stem for path in out.iterdir())
        assert found == ["forward", *["reverse"] * len(flags), "schedules", "spectrum"]
        with Image.open(out / "schedules.png") as image:
            pictures.append(np.asarray(image.convert("RGB")).astype(int))
        with Image.open(out / "forward.png") as image:  # a row for each of the six
            assert image.size[1] > 6 * 1.3 * 150
    before, after = pictures
    changed = (before - after).any(axis=2).mean()
    assert 0 < changed < 0.1  # the learned line, in one panel and the other


def _save_run_of_zeros(
    root: pathlib.Path, process: dict | None = None, ends: tuple[float, float] | None = None
) -> None:
    """Write the work directory of a class-conditional run with weights that are all 0.

    If the schedule is learned, its averaged parameters are the initial ones, with these ends.
    """
    config = make_config(
        process=process or {"schedule": "cosine", "num_timesteps": 30},
        model__channels=4,
        model__num_groups=2,
        model__class_conditional=True,
        sample__num_steps=12,
    )
    paths = workdir.open_for_training(root, config)
    facts = workdir.DatasetFacts((8, 8, 1), 10, tuple("0123456789"))
    workdir.write_facts(paths, facts)
    model = build.model(config.model, facts.image_shape, facts.num_classes)
    model = make_chain(config).joint(model)
    optimizer = make_optimizer(config.optim, 1)
    init = functools.partial(init_state, model.init, optimizer)
    shapes = jax.eval_shape(init, jax.random.key(0))
    state = jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), shapes)
    if ends is not None:
        schedule = make_gamma(*ends).init(jax.random.key(0))
        state = dataclasses.replace(state, ema_params=state.ema_params | {"schedule": schedule})
    checkpoints = Checkpoints(paths.checkpoints, keep_last=1, keep_every=0)
    checkpoints.save(state, wait=True)
    checkpoints.close()


def _assert_shown(pictures: list, images: np.ndarray) -> None:
    """Check that the pictures of an axes are these images [n, H, W, C], clipped to [-1, 1]."""
    for picture, image in zip(pictures, images, strict=True):
        shown = np.asarray(picture.get_array())
        expected = to_uint8(image)
        np.testing.assert_array_equal(shown.reshape(expected.shape), expected)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_labels_of_a_grid_are_in_a_margin_and_change_no_image(channels):
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4, channels)).astype(np.uint8)
    plain = grids.make_grid(images, columns=3, side=32)
    labels = ["given", "a name that is far too long for its column", "t=8"]
    whole = grids.make_grid(images, columns=3, side=32, column_labels=labels)
    top = whole.shape[0] - plain.shape[0]
    assert whole.shape[1:] == plain.shape[1:] and top > 0
    np.testing.assert_array_equal(whole[top:], plain)
    for column in np.split(whole[:top, 2:-2, 0], [32, 66], axis=1):
        assert column.max() == 255 and column.min() < 100  # a dark text on white
    both = grids.make_grid(images, 3, 32, column_labels=labels, row_labels=["one", "two"])
    left = both.shape[1] - plain.shape[1]
    np.testing.assert_array_equal(both[top:, left:], plain)
    for row in np.split(both[top + 2 : -2, :left, 0], [33], axis=0):
        assert row.max() == 255 and row.min() < 100
    if channels == 4:
        assert np.all(both[:top, :, 3] == 255)


def _as_labelled(images: np.ndarray, labels: list[str]) -> tuple[int, bool, bool]:
    """The columns of the grid of labelled images, and whether it has labels above and at the left.

    The images are as large as the cells.
    """
    grid = grids.grid_of_labelled(images, labels)
    for columns in range(1, len(images) + 1):
        plain = grids.make_grid(images, columns)
        top, left = np.subtract(grid.shape[:2], plain.shape[:2])
        if min(top, left) >= 0 and np.array_equal(grid[top:, left:], plain):
            return columns, top > 0, left > 0
    raise AssertionError("the images are not in the grid")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["a"] * 9, (3, False, False)),  # all alike
        (["a"], (1, False, False)),
        (list("abc" * 3), (3, True, False)),  # in turn
        (list("abcd"), (4, True, False)),  # fewer images than classes
        (list("ab" * 18), (6, True, False)),  # the turn several times in a row
        ([str(i) for i in range(25)], (5, False, True)),  # too many columns
        (list("aaabbbccc"), (3, False, True)),  # not in turn
    ],
)
def test_a_grid_of_labelled_images_shows_labels_that_vary(labels, expected):
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 40, 40, 1), np.uint8)
    assert _as_labelled(images, labels) == expected


def test_a_row_says_its_first_and_its_last_label(monkeypatch):
    rows = []
    monkeypatch.setattr(grids, "make_grid", lambda *a, row_labels, **k: rows.extend(row_labels))
    images = np.zeros((6, 4, 4, 1), np.uint8)
    grids.grid_of_labelled(images, ["x", "x", "y", "z", "z", "z"])
    assert rows == ["x .. y", "z"]


def test_a_long_label_of_a_row_is_cut():
    images = np.zeros((2, 8, 8, 1), np.uint8)
    plain = grids.make_grid(images, 1)
    grid = grids.make_grid(images, 1, row_labels=["n" * 1000, "b"])
    assert 150 < grid.shape[1] - plain.shape[1] <= grids.MAX_MARGIN + 6


def test_a_moving_picture_has_its_frames_and_repeats(tmp_path):
    frames = np.zeros((3, 4, 5, 3), np.uint8)
    frames[1], frames[2, ..., 0] = 255, 255
    grids.save_gif(tmp_path / "new" / "a.gif", frames, 0.08)
    with Image.open(tmp_path / "new" / "a.gif") as picture:
        assert (picture.n_frames, picture.size) == (3, (5, 4))
        assert (picture.info["duration"], picture.info["loop"]) == (80, 0)
        for i, frame in enumerate(frames):
            picture.seek(i)
            np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), frame)
