"""`sample` as a JAX function, the noise that the caller gives, and the process named once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from sampler_cases import SAMPLERS

import ddpm_jax
from ddpm_jax import editing, samplers, timesteps
from ddpm_jax.errors import UserError
from ddpm_jax.process import alpha_sigma
from ddpm_jax.randomness import draw_x_T, image_keys
from ddpm_jax.sampling import make_chain_sample

pytestmark = pytest.mark.quick_to_compile

T, SHAPE, N = 8, (2, 1), 3
PROCESS = ddpm_jax.make_process(oracles.betas("linear", T))
COSINE = ddpm_jax.make_process(oracles.betas("cosine", T))
KEY = jax.random.key(4)
PARAMS = {"a": jnp.float32(0.6), "b": jnp.float32(0.1)}
LABELS = np.array([0, 1, 3], np.int32)

traces = []


def network(params, x_t, t, cond, *, train, key):
    """Predict x_0, smoothly in everything."""
    traces.append(x_t.shape)
    label = 0.0 if cond is None else 0.1 * cond["label"].astype(jnp.float32)[:, None, None]
    t = t.astype(jnp.float32)[:, None, None] / T
    return jnp.tanh(params["a"] * x_t + params["b"] * (1.0 + t) + label)


def make(sampler=None, process=PROCESS, **options):
    return ddpm_jax.make_sample(
        process,
        network,
        shape=SHAPE,
        sampler=sampler or samplers.ancestral(process),
        kind="x_0",
        clip_x_0=False,
        **options,
    )


SAMPLE = make()


def test_jit_of_sample_is_sample():
    cond = {"label": LABELS}
    jitted = jax.jit(SAMPLE, static_argnums=2)
    np.testing.assert_allclose(jitted(PARAMS, KEY, N), SAMPLE(PARAMS, KEY, N), atol=1e-6)
    expected = SAMPLE(PARAMS, KEY, N, cond)
    np.testing.assert_allclose(jitted(PARAMS, KEY, N, cond), expected, atol=1e-6)
    assert np.abs(expected - SAMPLE(PARAMS, KEY, N)).max() > 0.05
    # only the outer program is traced: all arguments are constants
    constant = jax.jit(lambda: SAMPLE(PARAMS, KEY, N, cond, start=2))()
    np.testing.assert_allclose(constant, SAMPLE(PARAMS, KEY, N, cond, start=2), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_gradients_through_the_chain_are_those_of_finite_differences(name):
    """At zero terminal SNR: there the first step is infinitely long, like the last one."""
    process = ddpm_jax.make_process(oracles.betas("linear_zero_snr", T))
    sample = make(SAMPLERS[name](process), process, timesteps=timesteps.trailing(T, 6))

    @jax.jit
    def loss_and_gradient(params):
        return jax.value_and_grad(lambda p: jnp.square(sample(p, KEY, N) - 0.3).sum())(params)

    _, gradient = loss_and_gradient(PARAMS)
    for leaf in PARAMS:
        step = 1e-2
        low, high = (
            float(loss_and_gradient(PARAMS | {leaf: PARAMS[leaf] + change})[0])
            for change in (-step, step)
        )
        expected = (high - low) / (2 * step)
        assert float(gradient[leaf]) == pytest.approx(expected, rel=5e-3, abs=2e-3), leaf


def test_gradients_work_without_jit_around():
    gradient = jax.grad(lambda p: SAMPLE(p, KEY, N).sum())(PARAMS)
    jitted = jax.jit(jax.grad(lambda p: SAMPLE(p, KEY, N).sum()))(PARAMS)
    jax.tree.map(lambda g, j: np.testing.assert_allclose(g, j, rtol=1e-5), gradient, jitted)
    assert all(np.abs(leaf) > 0.1 for leaf in gradient.values())


def test_vmap_over_keys_params_and_conditioning_is_a_loop():
    keys = jax.random.split(KEY, 2)
    found = jax.vmap(lambda key: SAMPLE(PARAMS, key, N))(keys)
    np.testing.assert_allclose(found, [SAMPLE(PARAMS, k, N) for k in keys], atol=1e-6)
    params = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 0.2]), PARAMS)
    found = jax.vmap(lambda params: SAMPLE(params, KEY, N))(params)
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in (0, 1)]
    np.testing.assert_allclose(found, [SAMPLE(p, KEY, N) for p in each], atol=1e-6)
    labels = np.stack([LABELS, LABELS[::-1]])
    found = jax.vmap(lambda label: SAMPLE(PARAMS, KEY, N, {"label": label}))(labels)
    each = [SAMPLE(PARAMS, KEY, N, {"label": label}) for label in labels]
    np.testing.assert_allclose(found, each, atol=1e-6)


@pytest.mark.parametrize("implementation", ["rbg", "unsafe_rbg"])
def test_chunks_are_one_call_for_any_implementation_of_the_key(implementation):
    key = jax.random.key(1, impl=implementation)
    whole = np.asarray(SAMPLE(PARAMS, key, 8))
    chunks = list(ddpm_jax.sample_in_chunks(SAMPLE, PARAMS, key, 8, 4))
    np.testing.assert_array_equal(np.concatenate(chunks), whole)
    np.testing.assert_array_equal(SAMPLE(PARAMS, key, 3, start=5), whole[5:])


# The caller's noise


def test_an_ancestral_chain_follows_the_noise_that_it_is_given():
    """The same chain by hand, in float64, from only the betas (Ho et al. 2020, algorithm 2)."""
    rng = np.random.default_rng(0)
    x_T, recorded = rng.normal(size=(N, *SHAPE)), rng.normal(size=(T + 1, N, *SHAPE))
    table = jnp.asarray(recorded, jnp.float32)
    images, (t, x_s) = make(
        samplers.ancestral(PROCESS, "fixed_small"),
        collect=lambda t, s, state, prediction: (t, state.x),
    )(PARAMS, KEY, N, x_T=x_T, noise=lambda key, t, shape: table[t])

    betas = oracles.betas("linear", T)
    bar = np.append(1.0, np.cumprod(1.0 - betas))
    x, walked = x_T, []
    for step in range(T, 0, -1):
        x_0 = np.tanh(0.6 * x + 0.1 * (1.0 + (step - 1) / T))
        beta, before, now = betas[step - 1], bar[step - 1], bar[step]
        x = (np.sqrt(before) * beta * x_0 + np.sqrt(1 - beta) * (1 - before) * x) / (1 - now)
        x = x + np.sqrt(beta * (1 - before) / (1 - now)) * recorded[step]
        walked.append(x)
    np.testing.assert_array_equal(t, np.arange(T, 0, -1))
    np.testing.assert_allclose(x_s, walked, atol=1e-5)
    np.testing.assert_allclose(images, x, atol=1e-5)


def test_noise_is_called_for_the_batch_with_one_key_an_image():
    calls = []

    def noise(key, t, shape):
        calls.append((key.shape, t.shape, t.dtype, shape))
        return samplers.normal(key, t, shape)

    images = SAMPLE(PARAMS, KEY, N, noise=noise)
    assert calls == [((N,), (), jnp.int32, (N, *SHAPE))]  # 3 rows, though 8 devices share them
    np.testing.assert_allclose(images, SAMPLE(PARAMS, KEY, N), atol=1e-6)


def test_the_noise_reaches_every_sampler_that_draws_and_the_walk_of_inpainting():
    keys, x_T = image_keys(KEY, np.arange(N)), jnp.ones((N, *SHAPE))
    denoise_fn = ddpm_jax.make_denoise_fn(PROCESS, network, PARAMS, kind="x_0", clip_x_0=False)
    grid, asked = timesteps.trailing(T, 5), set()

    def silence(name):
        def noise(key, t, shape):
            asked.add(name)
            return jnp.zeros(shape)

        return noise

    def walk(x, name):
        sampler = dataclasses.replace(SAMPLERS[name](PROCESS), noise=silence(name))
        return samplers.sample_loop(sampler, denoise_fn, keys, grid, x)

    for name in SAMPLERS:
        jax.eval_shape(functools.partial(walk, name=name), x_T)
    sampler = dataclasses.replace(samplers.ddim(PROCESS), noise=silence("inpaint"))
    jax.eval_shape(
        lambda x: editing.inpaint(PROCESS, sampler, denoise_fn, keys, x, x > 0, grid), x_T
    )
    draws = ("ancestral", "eta", "churn", "sde", "predictor_corrector", "inpaint")
    assert asked == {n for n in [*SAMPLERS, "inpaint"] if any(part in n for part in draws)}


def test_given_noise_and_x_T_of_another_shape_are_errors():
    with pytest.raises(UserError, match=r"x_T must have the shape \(3, 2, 1\), found \(2, 2, 1"):
        SAMPLE(PARAMS, KEY, N, x_T=np.zeros((2, 2, 1)))
    with pytest.raises(UserError, match=r"noise must return the shape \(3, 2, 1\) that it is"):
        SAMPLE(PARAMS, KEY, N, noise=lambda key, t, shape: jnp.zeros(shape[1:]))


def test_x_T_from_the_key_is_the_one_that_is_drawn_by_default():
    x_T = draw_x_T(image_keys(KEY, np.arange(N)), SHAPE)
    np.testing.assert_allclose(SAMPLE(PARAMS, KEY, N, x_T=x_T), SAMPLE(PARAMS, KEY, N), atol=1e-6)


# The process


def test_processes_of_one_T_share_a_compiled_program():
    draw = make_chain_sample(
        network, shape=SHAPE, sampler=samplers.ancestral(PROCESS), kind="x_0", clip_x_0=False
    )
    grid = np.arange(T, -1, -1)
    traces.clear()
    for process in (PROCESS, COSINE):
        found = np.asarray(draw(process, grid, PARAMS, KEY, N))
        assert len(traces) == 1
        np.testing.assert_allclose(found, make(process=process)(PARAMS, KEY, N), atol=1e-6)
        traces[:] = traces[:1]
    assert np.abs(found - SAMPLE(PARAMS, KEY, N)).max() > 0.05


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_with_the_same_options_share_a_compiled_program(name):
    count = []

    @jax.jit
    def init(sampler, x_T):
        count.append(sampler.advance)
        return sampler.init(x_T).x * sampler.process.betas[T]

    first, x_T = SAMPLERS[name](PROCESS), jnp.ones((N, *SHAPE))
    for sampler in (first, dataclasses.replace(first, process=COSINE), SAMPLERS[name](COSINE)):
        np.testing.assert_array_equal(init(sampler, x_T), x_T * sampler.process.betas[T])
    assert len(count) == 1


def test_a_process_on_the_host_serves_as_well():
    host = jax.device_get(PROCESS)
    assert type(host.betas) is np.ndarray
    x, t = jnp.ones((2, *SHAPE)), jnp.array([1, T])
    found = ddpm_jax.q_sample(host, x, t, 2 * x)
    np.testing.assert_array_equal(found, ddpm_jax.q_sample(PROCESS, x, t, 2 * x))
    found = make(samplers.ancestral(host), process=host)(PARAMS, KEY, N)
    np.testing.assert_array_equal(found, SAMPLE(PARAMS, KEY, N))
    keys = image_keys(KEY, np.arange(2))

    def denoise_fn(x_t, t):  # inside the trace: its tables are read there
        alpha_t, sigma_t = alpha_sigma(host, t, x_t)
        return ddpm_jax.Prediction(alpha_t * x_t, sigma_t * x_t)

    for build in SAMPLERS.values():
        sampler = build(host)
        step = jax.make_jaxpr(
            lambda t, s, k=sampler: k.step(denoise_fn, keys, k.init(x), t, s)[0].x
        )
        assert step(5, 3).out_avals[0].shape == x.shape


OTHER_T = samplers.ancestral(ddpm_jax.make_process(oracles.betas("linear", T + 1)))
GRID = np.arange(T, -1, -1)


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (OTHER_T, "built on a process of T = 9, but is used with one of T = 8; build the "),
        (samplers.ancestral(COSINE), "another process: alphas_cumprod differs from t = 1 on"),
    ],
)
def test_a_sampler_of_another_process_is_refused(sampler, message):
    keys, x = image_keys(KEY, np.arange(N)), jnp.ones((N, *SHAPE))
    for call in (
        lambda: make(sampler),
        lambda: editing.sdedit(PROCESS, sampler, None, keys, x, GRID),
        lambda: editing.interpolate(PROCESS, sampler, None, keys, x, x, 0.5, GRID),
        lambda: editing.inpaint(PROCESS, sampler, None, keys, x, x, GRID),
    ):
        with pytest.raises(UserError, match=message):
            call()


def test_an_equal_process_is_the_same_process():
    equal = ddpm_jax.make_process(oracles.betas("linear", T))
    found = make(samplers.ancestral(equal))(PARAMS, KEY, N)
    np.testing.assert_array_equal(found, SAMPLE(PARAMS, KEY, N))


# Grids


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([8, 3.6, 0], r"timesteps must be whole numbers in 0..8 \(T\), found 3.6"),
        ([np.inf, 3, 0], "must be whole numbers in 0..8 .T., found inf"),
        ([8, np.nan, 0], "must be whole numbers in 0..8 .T., found nan"),
        ([True, False], "must be whole numbers in 0..8 .T., found bool"),
        ([0, 3, 8], r"list of at least 2 that descend strictly, found \[0 3 8\]"),
        ([8, 3, 3, 0], r"list of at least 2 that descend strictly, found \[8 3 3 0\]"),
        ([8], r"list of at least 2 that descend strictly, found \[8\]"),
        (8, "list of at least 2 that descend strictly, found 8"),
        ([9, 3, 0], r"must be in 0..8 \(T\), found \[9 3 0\]"),
        ([8, 3, -1], r"must be in 0..8 \(T\), found \[ 8  3 -1\]"),
        (np.arange(9.0), r"found \[0. 1. 2. ... 6. 7. 8.\]$"),
    ],
)
def test_a_wrong_grid_is_refused_in_one_line_wherever_it_enters(grid, message):
    keys, x = image_keys(KEY, np.arange(N)), jnp.ones((N, *SHAPE))
    sampler = samplers.ddim(PROCESS)
    for call in (
        lambda: samplers.sample_loop(sampler, None, keys, grid, x),
        lambda: samplers.encode(PROCESS, None, grid, x),
        lambda: editing.sdedit(PROCESS, sampler, None, keys, x, grid),
        lambda: editing.interpolate(PROCESS, sampler, None, keys, x, x, 0.5, grid),
    ):
        with pytest.raises(UserError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


def test_grids_from_T_to_0_are_refused_where_all_of_the_chain_is_walked():
    keys, x = image_keys(KEY, np.arange(N)), jnp.ones((N, *SHAPE))
    sampler = samplers.ancestral(PROCESS)
    for call in (
        lambda grid: make(timesteps=grid),
        lambda grid: editing.inpaint(PROCESS, sampler, None, keys, x, x, grid),
    ):
        for grid in ([7, 3, 0], [8, 3, 1], [0, 8]):
            with pytest.raises(UserError, match="must descend strictly from T = 8 to 0, found"):
                call(grid)


def test_inversion_walks_up_only():
    keys, x = image_keys(KEY, np.arange(N)), jnp.ones((N, *SHAPE))
    sampler = samplers.ddim_inversion(PROCESS)
    with pytest.raises(UserError, match=r"that ascend strictly, found \[8 3 0\]"):
        samplers.sample_loop(sampler, None, keys, [8, 3, 0], x)


def test_whole_numbers_of_any_type_are_a_grid():
    found = make(timesteps=[8.0, 3.0, 0.0])(PARAMS, KEY, N)
    np.testing.assert_array_equal(found, make(timesteps=np.array([8, 3, 0]))(PARAMS, KEY, N))
