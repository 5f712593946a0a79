"""Side by side with diffusers' schedulers, where the `peers` extra is installed: whole chains with
the same network, the same noise and the same grid.

Their t counts 0..T-1 where ours counts 1..T. Their tables are float32 and cancel near t = 1
(`test_peers`), so they are given ours in float64; their sigmas are float32 again.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampler_cases import SAMPLERS

import ddpm_jax
from ddpm_jax import samplers, schedules, timesteps
from ddpm_jax.denoise import make_denoise_fn
from ddpm_jax.randomness import draw_noise

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

# They call np.array on torch's tensors
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

T, NUM_STEPS, SHAPE = 1000, 10, (2, 3, 4)
GRID = timesteps.trailing(T, NUM_STEPS)
X_T = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
DPM = dict(solver_type="midpoint", lower_order_final=False)
CHAINS = {
    "ddim": ("DDIMScheduler", dict(clip_sample=False)),
    "ddim eta 1": ("DDIMScheduler", dict(clip_sample=False)),
    "dpm_solver_pp_2m": ("DPMSolverMultistepScheduler", DPM),
    "dpm_solver_pp_2m sde": (
        "DPMSolverMultistepScheduler",
        DPM | dict(algorithm_type="sde-dpmsolver++"),
    ),
    "unipc 2": ("UniPCMultistepScheduler", dict(solver_order=2)),
    "unipc 3": ("UniPCMultistepScheduler", dict(solver_order=3)),
    "euler": ("EulerDiscreteScheduler", dict(interpolation_type="linear")),
    "heun": ("HeunDiscreteScheduler", {}),
}


def network(params, x_t, t, cond, *, train, key):
    """Predicts v."""
    wave = 0.3 * jnp.sin(t.astype(jnp.float32) / 100.0)
    return 0.8 * jnp.tanh(x_t) + wave[:, None, None]


def their_network(x_t, t):
    return 0.8 * torch.tanh(x_t) + 0.3 * float(np.sin(float(t) / 100.0))


@functools.cache
def process():
    return ddpm_jax.make_process(schedules.linear(T))


def our_chain(name):
    """x_s: [K, *SHAPE] and x_0-hat: [K, *SHAPE] of each step."""
    keys = jax.random.split(jax.random.key(0), SHAPE[0])
    _, kept = samplers.sample_loop(
        SAMPLERS[name](process()),
        make_denoise_fn(process(), network, None, kind="v", clip_x_0=False),
        keys,
        GRID,
        X_T,
        lambda t, s, state, prediction: (state.x, prediction.x_0),
    )
    return [np.asarray(x) for x in kept]


def their_scheduler(monkeypatch, name, options):
    scheduler = getattr(diffusers, name)(
        num_train_timesteps=T,
        beta_schedule="linear",
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        **options,
    )
    scheduler.alphas_cumprod = torch.cumprod(1 - torch.tensor(schedules.linear(T)), dim=0)
    scheduler.set_timesteps(NUM_STEPS)
    return scheduler


def their_chain(monkeypatch, name, eta):
    scheduler_name, options = CHAINS[name]
    scheduler = their_scheduler(monkeypatch, scheduler_name, options)
    assert set(scheduler.timesteps.long().tolist()) == set((GRID[:-1] - 1).tolist())
    now = {}

    def our_noise(*args, **kwargs):
        keys = jax.random.split(jax.random.key(0), SHAPE[0])
        folded = jax.vmap(jax.random.fold_in, (0, None))(keys, now["t"] + 1)
        return torch.tensor(np.asarray(draw_noise(folded, SHAPE[1:])))

    module = type(scheduler).__module__
    if eta or "sde" in name:
        monkeypatch.setattr(f"{module}.randn_tensor", our_noise)
    in_sigma = name in ("euler", "heun")  # their sample is x_t / alpha_t
    x = torch.tensor(X_T)
    if in_sigma:
        x = x * (scheduler.sigmas[0] ** 2 + 1) ** 0.5
    path = []
    for t in scheduler.timesteps:
        now["t"] = int(t)
        seen = scheduler.scale_model_input(x, t)
        output = their_network(seen.float(), t)
        kwargs = dict(eta=eta) if "ddim" in name else {}
        x = scheduler.step(output, t, x, **kwargs).prev_sample
        sigma = scheduler.sigmas[scheduler.step_index] if in_sigma else 0.0
        path.append((x / (sigma**2 + 1) ** 0.5).numpy())
    if name == "heun":  # after Euler's half of a step and after the whole; the last has one half
        path = [*path[1::2], path[-1]]
    return np.stack(path)


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.loose_promotion(reason="diffusers' own arithmetic is torch's; ours runs strict below")
def test_a_whole_chain_agrees(monkeypatch, name):
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        ours, _ = our_chain(name)
    theirs = their_chain(monkeypatch, name, eta=1.0 if name == "ddim eta 1" else 0.0)
    assert len(theirs) == NUM_STEPS
    if name == "unipc 3":
        # They lower the order of the last steps, counting what is left: 2, then 1. Ours sees no
        # further than s: the step to clean data has order 1, all before it the full one.
        ours, theirs = ours[:-2], theirs[:-2]
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_3m_differs_from_theirs_by_half_the_second_derivative_and_by_nothing_else(monkeypatch):
    """They weigh D_2 = h² x̂_0''/2 as if it were h² x̂_0'', with φ_3 instead of 2 φ_3; measured by
    halving its steps, that leaves order 2 (`test_samplers_orders` measures 3 for ours)."""
    x_s, x_0 = our_chain("dpm_solver_pp_3m")
    options = DPM | dict(solver_order=3)
    scheduler = their_scheduler(monkeypatch, "DPMSolverMultistepScheduler", options)
    alphas_cumprod = np.append(1.0, np.cumprod(1.0 - schedules.linear(T)))
    half_log_snr = 0.5 * (np.log(alphas_cumprod[1:]) - np.log1p(-alphas_cumprod[1:]))
    largest = 0.0
    for i in range(2, NUM_STEPS - 1):
        scheduler._step_index = i
        history = [torch.tensor(x) for x in x_0[i - 2 : i + 1]]
        theirs = scheduler.multistep_dpm_solver_third_order_update(
            history, sample=torch.tensor(x_s[i - 1])
        )
        at = half_log_snr[GRID[i - 2 : i + 2] - 1]  # λ of the past two, of t and of s
        h_2, h_1, h = np.diff(at)
        first, second = (x_0[i] - x_0[i - 1]) / h_1, (x_0[i - 1] - x_0[i - 2]) / h_2
        d_2 = h**2 * (first - second) / (h_1 + h_2)
        phi_3 = ((np.expm1(-h) / h + 1.0) / h - 0.5) / -h
        missing = np.sqrt(alphas_cumprod[GRID[i + 1]]) * h * phi_3 * d_2
        largest = max(largest, np.abs(missing).max())
        np.testing.assert_allclose(x_s[i], theirs.numpy() + missing, atol=1e-4)
    assert largest > 1e-2
