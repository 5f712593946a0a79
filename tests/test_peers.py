"""Side by side with diffusers' DDPMScheduler, where the `peers` extra is installed.

Its t counts 0..T-1 where ours counts 1..T, and its step back to clean data is to -1 where ours is
to 0.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax import samplers, schedules, timesteps
from ddpm_jax.denoise import make_denoise_fn
from ddpm_jax.predictions import KINDS, training_target
from ddpm_jax.randomness import draw_noise

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.slow

# The name in diffusers -> our schedule; diffusers has no name for `constant`
OURS = {
    "linear": schedules.linear,
    "scaled_linear": schedules.quadratic,
    "sigmoid": schedules.sigmoid,
    "squaredcos_cap_v2": lambda T, *ends: schedules.cosine(T),
}
THEIR_KIND = {"eps": "epsilon", "x_0": "sample", "v": "v_prediction"}
SHAPE = (2, 3, 4, 4)
CASES = [
    (kind, variance, clip)
    for kind in KINDS
    for variance in ("fixed_small", "fixed_large")
    for clip in (True, False)
]


def scheduler_of(schedule, T=1000, ends=(1e-4, 0.02), **options):
    """Their scheduler; its own default ends do not scale with T, so they are always given."""
    return diffusers.DDPMScheduler(
        num_train_timesteps=T,
        beta_schedule=schedule,
        beta_start=ends[0],
        beta_end=ends[1],
        **options,
    )


def arrays(seed, n):
    return np.random.default_rng(seed).normal(size=(n, *SHAPE)).astype(np.float32)


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize(
    ("T", "ends"), [(1000, (1e-4, 0.02)), (700, (2e-4, 0.03)), (10, (0.01, 0.9))]
)
@pytest.mark.parametrize("schedule", list(OURS))
def test_tables_agree(schedule, T, ends, zero_snr):
    theirs = scheduler_of(schedule, T, ends, rescale_betas_zero_snr=zero_snr)
    betas = OURS[schedule](T, *ends)
    process = ddpm_jax.make_process(schedules.zero_terminal_snr(betas) if zero_snr else betas)
    np.testing.assert_allclose(process.betas[1:], theirs.betas, atol=1e-5)
    np.testing.assert_allclose(process.alphas_cumprod[1:], theirs.alphas_cumprod, atol=1e-5)
    if not zero_snr:
        # Their rescaled alpha_bar is a float32 difference near T, only accurate to 1e-5 absolute
        np.testing.assert_allclose(process.betas[1:], theirs.betas, rtol=1e-5)
        np.testing.assert_allclose(process.alphas_cumprod[1:], theirs.alphas_cumprod, rtol=1e-4)


@pytest.mark.parametrize("schedule", list(OURS))
def test_noising_and_velocity_agree(schedule):
    theirs, process = scheduler_of(schedule), ddpm_jax.make_process(OURS[schedule](1000))
    x_0, eps = arrays(0, 2)
    for t in (1, 2, 500, 999, 1000):
        their_t = torch.tensor([t - 1, t - 1])
        ours = ddpm_jax.q_sample(process, x_0, t, eps), training_target(process, x_0, eps, t, "v")
        for our, their in zip(ours, (theirs.add_noise, theirs.get_velocity), strict=True):
            expected = their(torch.tensor(x_0), torch.tensor(eps), their_t)
            np.testing.assert_allclose(our, expected, atol=1e-5)


@jax.jit
def our_steps(process, x_t, output, key, t, s):
    """x_s and x_0-hat of every case, from the sampler's own step."""
    results = []
    for kind, variance, clip in CASES:
        denoise_fn = make_denoise_fn(
            process, lambda *args, **kwargs: output, None, kind=kind, clip_x_0=clip
        )
        sampler = samplers.ancestral(process, variance)
        state, prediction = sampler.step(denoise_fn, key, sampler.init(x_t), t, s)
        results.append((state.x, prediction.x_0))
    return results


def compare_steps(monkeypatch, schedule, spacing, grid, float64_tables=True):
    """Compare steps of the grid with diffusers: same x_t, same network output, same noise.

    Their tables are float32. They compute 1 - alpha_bar from them, which cancels near t = 1: with
    alpha_bar_1 = 0.9999 only four digits of 1e-4 are left. On float64 tables their formulas must
    agree to 1e-5. On their own tables they must agree to what the cancellation leaves.
    """
    process = ddpm_jax.make_process(OURS[schedule](1000))
    key = jax.random.split(jax.random.key(0), SHAPE[0])
    noise = np.asarray(draw_noise(key, SHAPE[1:]))
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: torch.tensor(noise)
    )
    x_t, output = arrays(1, 2)
    last = len(grid) - 2
    ours = {
        i: our_steps(process, x_t, output, key, int(grid[i]), int(grid[i + 1]))
        for i in {0, 1, last // 2, last - 1, last}
    }
    for n, (kind, variance, clip) in enumerate(CASES):
        theirs = scheduler_of(
            schedule,
            variance_type=variance,
            clip_sample=clip,
            prediction_type=THEIR_KIND[kind],
            timestep_spacing=spacing or "leading",
        )
        if float64_tables:
            theirs.alphas_cumprod = torch.cumprod(1 - torch.tensor(OURS[schedule](1000)), dim=0)
        if spacing is not None:
            theirs.set_timesteps(len(grid) - 1)
            assert (theirs.timesteps.numpy() == grid[:-1] - 1).all()
        for i, results in ours.items():
            t = int(grid[i])
            step = theirs.step(torch.tensor(output), t - 1, torch.tensor(x_t))
            x_s, x_0 = step.prev_sample.numpy(), step.pred_original_sample.numpy()
            variance_t = 1 - float(theirs.alphas_cumprod[t - 1])
            if i == last and t > 1:
                # They leave out the noise of the last step only where t is 1 (their 0); a grid that
                # ends in a longer jump gets it: with fixed_large all of 1 - alpha_bar_t, onto the
                # finished image. We never do.
                x_s = x_s - noise * (variance_t**0.5 if variance == "fixed_large" else 1e-10)
            limit = 1e-5 if float64_tables else 1e-5 + 2e-7 / variance_t
            for our, their in zip(results[n], (x_s, x_0), strict=True):
                scale = max(1.0, np.abs(their).max())  # unclipped, eps / alpha_T is large
                assert np.abs(our - their).max() < limit * scale, (kind, variance, clip, t)


@pytest.mark.parametrize("float64_tables", [True, False])
@pytest.mark.parametrize("schedule", list(OURS))
def test_steps_of_the_full_chain_agree(monkeypatch, schedule, float64_tables):
    compare_steps(monkeypatch, schedule, None, np.arange(1000, -1, -1), float64_tables)


@pytest.mark.parametrize("num_steps", [2, 10, 50])
@pytest.mark.parametrize(
    ("spacing", "grid"),
    [
        ("linspace", timesteps.uniform),
        ("trailing", timesteps.trailing),
        ("leading", timesteps.leading),
    ],
)
def test_steps_of_a_sub_sampled_grid_agree(monkeypatch, spacing, grid, num_steps):
    compare_steps(monkeypatch, "linear", spacing, grid(1000, num_steps))


def test_a_whole_chain_agrees(monkeypatch):
    """All 1000 steps with our noise, so that no step and no index is left out."""
    process = ddpm_jax.make_process(schedules.linear(1000))
    theirs = scheduler_of("linear", variance_type="fixed_large")
    key = jax.random.split(jax.random.key(0), SHAPE[0])

    def network(params, x_t, t, cond, *, train, key):
        return 0.9 * x_t + 0.1 * (t.astype(jnp.float32) / 1000)[:, None, None, None]

    x_T = arrays(2, 1)[0]
    denoise_fn = make_denoise_fn(process, network, None)
    ours = samplers.sample_loop(
        samplers.ancestral(process), denoise_fn, key, np.arange(1000, -1, -1), x_T
    )

    noise = jax.vmap(
        lambda t: draw_noise(jax.vmap(jax.random.fold_in, (0, None))(key, t), SHAPE[1:])
    )(jnp.arange(1001))
    noise, now = torch.tensor(np.asarray(noise)), {}
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: noise[now["t"]]
    )
    x = torch.tensor(x_T)
    for t in range(1000, 0, -1):
        now["t"] = t
        x = theirs.step(0.9 * x + 0.1 * (t - 1) / 1000, t - 1, x).prev_sample
    np.testing.assert_allclose(ours, x, atol=1e-4)
