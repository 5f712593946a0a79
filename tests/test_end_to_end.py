"""The README's first command, from an empty directory to digits, and the bar on their quality.

The bar is a Fréchet distance in the features of a classifier (`benchmarks/digits_quality.py`, which
has a table of what is above and below it). It was set between two groups: the trained model's
samples lie at 1.7 to 2.9 (by seed and number of steps), a Gaussian fitted to the images at 5.9, and
what was broken at 7 and far above. That a broken sampler, schedule or EMA does not pass is tested
here too, each broken once.
"""

import json
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
from ddpm_jax import data, schedules, timesteps
from ddpm_jax.evaluation import references
from ddpm_jax.evaluation import table as rows
from ddpm_jax.evaluation.features import make_features
from ddpm_jax.pixels import to_uint8
from ddpm_jax.process import expand, q_posterior
from ddpm_jax.runs import open_run
from ddpm_jax.samplers.ancestral import AncestralState
from ddpm_jax.variance import fixed_small

pytestmark = [
    pytest.mark.slow,
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
]

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
    """The work directory of a whole run of the digits, and what it printed.

    The grid at its end is of fewer images than the README's, and 200 are two whole chunks.
    """
    root = tmp_path_factory.mktemp("runs") / "digits"
    start = time.perf_counter()
    output = run_main(
        "train",
        "--config=experiments/digits.py",
        f"--workdir={root}",
        "--config.train.num_samples=16",
        f"--config.sample.chunk_size={N // 2}",
    )
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

    def advance(process, denoise_fn, noise, key, state, t, s):
        prediction = denoise_fn(state.x, t)
        mean, _, _ = q_posterior(process, prediction.x_0, state.x, t, s)
        sigma = jnp.where(s == 0, 0.0, factor * jnp.exp(0.5 * fixed_small(process, t, s)))
        x_s = mean + expand(sigma, mean) * noise(key, t, mean.shape)
        return AncestralState(x_s), prediction

    return ddpm_jax.samplers.Sampler(process, AncestralState, advance)


def test_what_is_broken_ranks_below_what_is_not_and_does_not_pass_the_bar(digits):
    """By the bar's distance, and by those of `experiments.evaluate` that rank models."""
    root, _ = digits
    run = open_run(root)
    process, shape, half = run.process, run.facts.image_shape, run.process.num_timesteps // 2
    cosine = ddpm_jax.make_process(schedules.cosine(process.num_timesteps))
    half_T = ddpm_jax.make_process(schedules.linear(half))
    initial = run.model.init(jax.random.key(1))
    # What an EMA of decay 0.9999 without warm-up would hold after 1,200 steps: mostly the start.
    stale = jax.tree.map(lambda a, b: 0.89 * a + 0.11 * b, initial, run.params)

    def sampling(process, factor):
        return ddpm_jax.make_sample(
            process,
            run.model.apply,
            shape=shape,
            sampler=noise_times(process, factor),
            timesteps=timesteps.uniform(process.num_timesteps, FEW),
        )

    right = sampling(process, 1.0)
    cases = {
        "nothing broken": (right, run.params),
        "no noise": (sampling(process, 0.0), run.params),
        "twice the noise": (sampling(process, 2.0), run.params),
        "another schedule": (sampling(cosine, 1.0), run.params),
        "half the T": (sampling(half_T, 1.0), run.params),
        "stale EMA": (right, stale),
        "initial weights": (right, initial),
    }
    dataset = data.open_dataset(run.config.data)
    network, _ = references.classifier(run.config.data, dataset)
    reference = references.reference(run.config.data, dataset, "train", network)
    features = make_features(network)
    bar, metrics = {}, {}
    for name, (sample, params) in cases.items():
        images = np.asarray(sample(params, jax.random.key(0), N))
        bar[name] = quality(images)
        found = rows.compare(
            features(to_uint8(images)),
            reference.moments,
            reference.features,
            network=network.name,
            split="train",
        )
        metrics[name] = {metric: value.value for metric, value in found.items()}
        print(name, round(bar[name], 2), {k: round(v, 3) for k, v in metrics[name].items()})
    good, good_bar = metrics.pop("nothing broken"), bar.pop("nothing broken")
    assert good_bar < BAR
    for name, broken in metrics.items():
        assert broken[f"kd{N}_train"] > good[f"kd{N}_train"] + 0.2, name
        assert broken[f"fd{N}_train"] > good[f"fd{N}_train"], name
        assert broken[f"coverage{N}_train"] < good[f"coverage{N}_train"], name
    bar.pop("half the T")  # a t that is twice too late does little harm to this network
    assert all(value > BAR for value in bar.values()), bar


def test_the_command_judges_the_run(digits):
    root, _ = digits
    run_main(
        "evaluate",
        f"--workdir={root}",
        f"--n={N}",
        "--seeds=2",
        "--bound_images=16",
        "--bound_terms=20",
    )
    found = {r["name"]: r for r in json.loads((root / "evaluate.json").read_text())["rows"]}
    assert 0 < found[f"fd{N}_train"]["value"] < BAR
    assert found[f"memorised{N}"]["value"] < 0.1  # 0.01 is as many as of held-out images
