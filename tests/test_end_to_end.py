"""The README's first command, from an empty directory to digits, and the bar on their quality.

The bar is a Fréchet distance in the features of a classifier (`benchmarks/digits_quality.py`, which
has a table of what is above and below it). It was set between two groups: the trained model's
samples lie at 1.7 to 2.9 (by seed and number of steps), a Gaussian fitted to the images at 5.9, and
what was broken at 7 and far above. That a broken sampler, schedule or EMA does not pass is tested
here too, each broken once.
"""

import os
import pathlib
import re
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax
from benchmarks.digits_quality import quality
from ddpm_jax import build, schedules, timesteps
from ddpm_jax.process import expand, q_posterior
from ddpm_jax.samplers.ancestral import AncestralState
from ddpm_jax.samplers.base import draw_noise
from ddpm_jax.training.workdir import open_for_reading, read_config, read_facts
from ddpm_jax.variance import fixed_small

pytestmark = pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks")

ROOT = pathlib.Path(__file__).parents[1]
BAR = 4.0
N = 200  # the distance depends on it
FEW = 50  # steps, where the whole chain would take minutes


def run_main(name: str, *flags: str) -> str:
    """Run a main as a user would, on one device; return what it printed."""
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *flags],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The work directory of a whole run of the digits, and what it printed."""
    root = tmp_path_factory.mktemp("runs") / "digits"
    start = time.perf_counter()
    output = run_main("train", "--config=experiments/digits.py", f"--workdir={root}")
    print(f"trained in {time.perf_counter() - start:.0f} s")
    return root, output


def test_the_run_ends_by_saying_where_everything_is(digits):
    root, output = digits
    paths = dict(re.findall(r"^(samples|metrics|checkpoint): (\S+)", output, re.M))
    assert paths.keys() == {"samples", "metrics", "checkpoint"}
    for path in paths.values():
        assert pathlib.Path(path).exists() and pathlib.Path(path).is_relative_to(root)
    assert output.index("done: ") < output.index("samples: ")


def test_samples_of_the_trained_model_pass_the_bar(digits, tmp_path):
    """As a user draws them: all 1,000 steps, EMA weights, the command line."""
    root, _ = digits
    run_main("sample", f"--workdir={root}", f"--n={N}", f"--out={tmp_path / 'digits'}")
    with np.load(tmp_path / "digits.npz") as file:
        images = file["images"]
    assert images.shape == (N, 8, 8, 1) and images.dtype == np.uint8
    distance = quality(images / 127.5 - 1.0)
    print(f"Fréchet distance of {N} samples: {distance:.2f}")
    assert distance < BAR


def noise_times(process, factor):
    """Ancestral sampling (fixed_small) with the wrong amount of noise."""

    def step(denoise_fn, key, state, t, s):
        prediction = denoise_fn(state.x, t)
        mean, _, _ = q_posterior(process, prediction.x_0, state.x, t, s)
        sigma = jnp.where(s == 0, 0.0, factor * jnp.exp(0.5 * fixed_small(process, t, s)))
        x_s = mean + expand(sigma, mean) * draw_noise(key, mean.shape[1:])
        return AncestralState(x_s), prediction

    return ddpm_jax.samplers.Sampler(AncestralState, step)


def test_a_broken_sampler_schedule_or_ema_does_not_pass_the_bar(digits):
    root, _ = digits
    workdir = open_for_reading(root)
    config, facts = read_config(workdir), read_facts(workdir)
    model = build.model(config.model, facts.image_shape, facts.num_classes)
    process = build.process(config.process)
    cosine = ddpm_jax.make_process(schedules.cosine(process.num_timesteps))
    _, params = ddpm_jax.load(root)
    initial = model.init(jax.random.key(1))
    # What an EMA of decay 0.9999 without warm-up would hold after 1,200 steps: mostly the start.
    stale = jax.tree.map(lambda a, b: 0.89 * a + 0.11 * b, initial, params)

    def distance(process, sampler, params):
        grid = timesteps.uniform(process.num_timesteps, FEW)
        sample = ddpm_jax.make_sample(
            process, model.apply, shape=facts.image_shape, sampler=sampler, timesteps=grid
        )
        return quality(np.asarray(sample(params, jax.random.key(0), N)))

    found = {
        "nothing broken": distance(process, noise_times(process, 1.0), params),
        "no noise": distance(process, noise_times(process, 0.0), params),
        "twice the noise": distance(process, noise_times(process, 2.0), params),
        "another schedule": distance(cosine, noise_times(cosine, 1.0), params),
        "stale EMA": distance(process, noise_times(process, 1.0), stale),
    }
    print("Fréchet distances:", {name: round(value, 2) for name, value in found.items()})
    assert found.pop("nothing broken") < BAR
    assert all(value > BAR for value in found.values()), found
