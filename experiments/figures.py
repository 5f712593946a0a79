"""Draw figures of a diffusion process.

    python -m experiments.figures --config=experiments/digits.py --workdir=runs/digits

  schedules.png  ᾱ and log-SNR of every schedule
  forward.png    images of the config's data set on their way to noise, under every schedule
  spectrum.png   the power spectrum of x_t, as noise covers it
  reverse.png    samples on their way from noise, with the network's x̂_0; needs --workdir

The schedules have the length and the ends of `config.process`. If its schedule is learned, it is
drawn too: as it is before training, or with the --workdir of such a training as it is after it.
Schedules that cannot have this length are left out, and the program says so.
reverse.png shows samples of --workdir, by the config of that run.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from ddpm_jax import build, data
from ddpm_jax.build.processes import with_schedule
from ddpm_jax.config import Config, from_dict
from ddpm_jax.errors import UserError
from ddpm_jax.figures import plots
from ddpm_jax.pixels import to_x_0
from ddpm_jax.process import GaussianProcess, q_sample
from ddpm_jax.randomness import MAX_SEED, draw_x_T, image_keys
from ddpm_jax.runs import Run, open_run
from ddpm_jax.runtime.files import absolute
from experiments import command, config_flag, outputs
from experiments.progress import ProgressLine

CONFIG = config_flag.define("The experiment's config file.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Work directory of a trained run, for reverse.png. Default: no reverse.png."
)
OUT = flags.DEFINE_string(
    "out",
    None,
    "Directory to which the PNG files are written. Default: <workdir>/figures, or figures in the "
    "current directory if there is no --workdir.",
)
SEED = flags.DEFINE_integer(
    "seed",
    0,
    "Random seed of the noise and of the samples.",
    lower_bound=0,
    upper_bound=MAX_SEED,
)

FORWARD_TIMES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # t/T
SPECTRUM_TIMES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
FORWARD_IMAGES = 4
SPECTRUM_IMAGES = 1024
REVERSE_IMAGES = 4
REVERSE_FRAMES = 10


def main() -> None:
    config = from_dict(CONFIG.value)
    run = open_run(WORKDIR.value) if WORKDIR.value is not None else None
    out = _directory()
    processes, left_out = _processes(config, run)
    images = _images(config)
    figures = {
        "schedules": lambda: draw_schedules(processes),
        "forward": lambda: draw_forward(processes, images[:FORWARD_IMAGES]),
        "spectrum": lambda: draw_spectrum(processes, config.process.schedule, images),
    }
    if run is not None:
        figures["reverse"] = lambda: draw_reverse(run)
    with ProgressLine() as progress:
        for done, (name, draw) in enumerate(figures.items()):
            progress("drawing figures", done, len(figures))
            outputs.save_figure(out / f"{name}.png", draw(), OUT.value)
        progress("drawing figures", len(figures), len(figures))
    for name in figures:
        print(f"{name}: {out / f'{name}.png'}")
    for name, reason in left_out.items():
        print(f"the schedule {name} is left out: {reason}")
    if run is None:
        print("reverse.png is not drawn: it needs a trained run; pass --workdir")


def _directory() -> pathlib.Path:
    """Return the directory of the figures; refuse one that cannot be written."""
    default = "figures" if WORKDIR.value is None else absolute(WORKDIR.value) / "figures"
    out = absolute(OUT.value or default)
    outputs.check_writable(out, OUT.value)
    return out


def draw_schedules(processes: dict[str, GaussianProcess]) -> Figure:
    """Draw ᾱ and log-SNR of the processes."""
    return plots.plot_schedules(
        {name: np.asarray(p.alphas_cumprod) for name, p in processes.items()},
        {name: np.asarray(p.log_snr) for name, p in processes.items()},
    )


def draw_forward(processes: dict[str, GaussianProcess], x_0: np.ndarray) -> Figure:
    """Draw the images x_0: [n, H, W, C] on their way to noise."""
    x_t, alphas_cumprod, fractions = {}, {}, np.empty(0)
    for name, process in processes.items():
        t, fractions = _times(process, FORWARD_TIMES)
        x_t[name] = _noised(process, x_0, t)
        alphas_cumprod[name] = np.asarray(process.alphas_cumprod)[t]
    return plots.plot_forward(x_t, alphas_cumprod, fractions.tolist())


def draw_spectrum(processes: dict[str, GaussianProcess], schedule: str, x_0: np.ndarray) -> Figure:
    """Draw the power spectrum of x_0: [n, H, W, C] and of its x_t under one schedule."""
    frequencies, power = plots.radial_power(x_0)
    t, fractions = _times(processes[schedule], SPECTRUM_TIMES)
    x_t = _noised(processes[schedule], x_0, t)
    powers = np.stack([plots.radial_power(x)[1] for x in x_t])
    log_snr = {name: np.asarray(p.log_snr) for name, p in processes.items()}
    return plots.plot_spectrum(frequencies, power, powers, fractions.tolist(), schedule, log_snr)


def draw_reverse(run: Run) -> Figure:
    """Draw samples of a run on their way from x_T, with the run's own sampler."""
    T = run.process.num_timesteps
    sample = run.sample_fn(
        collect=lambda t, s, state, prediction: (s, state.x, prediction.x_0),
        num_frames=min(REVERSE_FRAMES, run.config.sample.num_steps or T),
    )
    n, key, cond = REVERSE_IMAGES, jax.random.key(SEED.value), None
    if run.config.model.class_conditional:
        cond = {"label": np.arange(n, dtype=np.int32) % run.facts.num_classes}
    _, (s, x_s, x_0_hat) = jax.device_get(sample(run.params, key, n, cond))
    # Frames show where steps arrive. The first step starts at x_T, each image's first draw.
    x_T = run.decode(draw_x_T(image_keys(key, np.arange(n)), run.shape))
    x_t = np.concatenate([np.asarray(x_T)[None], x_s])
    return plots.plot_reverse(x_t, x_0_hat, [T, *s.tolist()])


def _processes(
    config: Config, run: Run | None
) -> tuple[dict[str, GaussianProcess], dict[str, str]]:
    """Return the process of the config with every schedule, and why a schedule has none.

    Raises:
      UserError: the config's own schedule is impossible.
    """
    own = config.process.schedule
    found: dict[str, GaussianProcess] = {}
    left_out: dict[str, str] = {}
    for name in build.SCHEDULES:
        try:
            found[name] = build.process(with_schedule(config.process, name))
        except UserError as error:  # such as a beta of 1 or more, if T is at most 20
            if name == own:
                raise
            left_out[name] = str(error)
    if own not in build.SCHEDULES:  # it is learned
        if run is not None and run.config.process.schedule == own:
            found[own] = run.process
        else:
            found[own] = build.make_chain(config).initial()
    return found, left_out


def _images(config: Config) -> np.ndarray:
    """Return images spread evenly over the training set: [n, H, W, C] float32 in [-1, 1].

    The first images are one of each class.
    """
    source = data.open_dataset(config.data).train
    n = min(SPECTRUM_IMAGES, len(source))
    images, labels = source.read(np.arange(n) * len(source) // n)
    first = np.unique(labels, return_index=True)[1]
    order = np.append(first, np.setdiff1d(np.arange(n), first))
    return np.asarray(to_x_0(jnp.asarray(images[order])))


def _times(process: GaussianProcess, fractions: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the timesteps nearest to fractions of T, and their t/T; a short chain has fewer."""
    t = np.unique([max(round(f * process.num_timesteps), int(f > 0)) for f in fractions])
    return t.astype(np.int32), t / process.num_timesteps


def _noised(process: GaussianProcess, x_0: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Return x_t: [times, n, H, W, C] with one ε for all times t: [times]."""
    eps = jax.random.normal(jax.random.key(SEED.value), x_0.shape)
    x_t = jax.jit(jax.vmap(q_sample, (None, None, 0, None)))(process, x_0, t, eps)
    return np.asarray(x_t)


if __name__ == "__main__":
    command.run(main)
