import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import ddpm_jax
from ddpm_jax import samplers, timesteps
from ddpm_jax.errors import UserError
from ddpm_jax.randomness import draw_x_T
from ddpm_jax.samplers.base import sample_loop

SHAPE = (2, 3, 1)
PROCESS = ddpm_jax.make_process(oracles.betas("linear", 1000))
GRID = timesteps.uniform(1000, 4)

seen = []


def network(params, x_t, t, cond, *, train, key):
    seen.append(dict(x_t=x_t, t=t, cond=cond, train=train, key=key))
    label = 0.0 if cond is None else cond["label"].astype(jnp.float32)[:, None, None, None]
    return 0.5 * x_t + 0.2 * label


def make(**options):
    options = dict(timesteps=GRID, shape=SHAPE, sampler=samplers.ancestral(PROCESS)) | options
    return ddpm_jax.make_sample(options.pop("process", PROCESS), network, **options)


SAMPLE = make()
COLLECTING = make(
    collect=lambda t, s, state, prediction: dict(s=s, x=state.x, x_0=prediction.x_0), num_frames=2
)
KEY = jax.random.key(0)


def test_sample_is_the_loop_with_one_key_per_image():
    index = jnp.arange(8)
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(index)
    denoise_fn = ddpm_jax.make_denoise_fn(PROCESS, network, None)
    x_T = draw_x_T(keys, SHAPE)
    by_hand = sample_loop(samplers.ancestral(PROCESS), denoise_fn, keys, GRID, x_T)
    images = SAMPLE(None, KEY, 8)
    assert images.shape == (8, *SHAPE) and images.dtype == jnp.float32
    np.testing.assert_allclose(images, by_hand, atol=1e-6)


def test_start_continues_the_series():
    whole = SAMPLE(None, KEY, 8)
    seen.clear()
    np.testing.assert_array_equal(SAMPLE(None, KEY, 5, start=3), whole[3:])
    assert seen == []  # another start, and another n of the same padded size, trace nothing


def test_all_devices_share_the_images():
    images = SAMPLE(None, KEY, 16)
    assert [shard.data.shape[0] for shard in images.addressable_shards] == [2] * 8


def test_a_raw_uint32_key_is_a_key():
    np.testing.assert_array_equal(SAMPLE(None, jax.random.PRNGKey(0), 8), SAMPLE(None, KEY, 8))


def test_another_key_gives_other_images():
    assert np.abs(SAMPLE(None, KEY, 8) - SAMPLE(None, jax.random.key(1), 8)).mean() > 0.1


def test_the_network_is_called_for_inference_on_the_whole_batch():
    seen.clear()
    make()(None, KEY, 8)
    [call] = seen
    assert call["x_t"].shape == (8, *SHAPE) and call["x_t"].dtype == jnp.float32
    assert call["t"].shape == (8,) and call["t"].dtype == jnp.int32
    assert call["cond"] is None and call["train"] is False and call["key"] is None


def test_the_default_grid_is_every_timestep():
    process = ddpm_jax.make_process(oracles.betas("linear", 10))
    sampler = samplers.ancestral(process)
    visited = make(
        process=process,
        sampler=sampler,
        timesteps=None,
        collect=lambda t, s, state, prediction: (t, s),
    )
    _, (t, s) = visited(None, KEY, 8)
    np.testing.assert_array_equal(t, np.arange(10, 0, -1))
    np.testing.assert_array_equal(s, np.arange(9, -1, -1))


def test_images_are_clipped_by_default_and_not_when_told():
    assert np.abs(SAMPLE(None, KEY, 8)).max() <= 1
    assert np.abs(make(clip_x_0=False)(None, KEY, 8)).max() > 1


@pytest.mark.parametrize("n", [3, 8])
def test_what_is_collected_has_frames_first_and_the_images_that_were_asked_for(n):
    x_0, frames = COLLECTING(None, KEY, n)
    assert x_0.shape == (n, *SHAPE)
    assert frames["x"].shape == frames["x_0"].shape == (2, n, *SHAPE)
    np.testing.assert_array_equal(frames["s"], GRID[[2, 4]])
    np.testing.assert_array_equal(frames["x"][-1], x_0)
    np.testing.assert_allclose(x_0, SAMPLE(None, KEY, n), atol=1e-6)


def test_conditioning_reaches_its_own_image():
    labels = np.arange(5, dtype=np.int32) % 2
    images = SAMPLE(None, KEY, 5, {"label": labels})
    off = SAMPLE(None, KEY, 5, {"label": np.zeros(5, np.int32)})
    same = np.all(images == off, axis=(1, 2, 3))
    np.testing.assert_array_equal(same, labels == 0)


@pytest.mark.parametrize(("n", "chunk_size"), [(20, 8), (5, 8)])
def test_chunks_are_the_whole_on_the_host(n, chunk_size):
    cond = {"label": np.arange(n, dtype=np.int32) % 3}
    chunks = list(ddpm_jax.sample_in_chunks(SAMPLE, None, KEY, n, chunk_size, cond))
    assert all(type(chunk) is np.ndarray and len(chunk) <= chunk_size for chunk in chunks)
    assert len(chunks) == -(-n // chunk_size)
    np.testing.assert_array_equal(np.concatenate(chunks), SAMPLE(None, KEY, n, cond))


@pytest.mark.parametrize(
    ("n", "chunk_size", "draws"), [(20, 8, [7, 7, 7]), (16, 8, [8, 8]), (9, 8, [5, 5]), (5, 8, [5])]
)
def test_chunks_are_all_drawn_at_one_size_and_at_no_more_than_n(n, chunk_size, draws):
    sizes = []

    def sample(params, key, n, cond, start):
        sizes.append(n)
        assert cond["label"].shape == (n,)
        return np.zeros((n, 1), np.float32)

    cond = {"label": np.arange(n)}
    chunks = ddpm_jax.sample_in_chunks(sample, None, KEY, n, chunk_size, cond)
    assert sum(map(len, chunks)) == n
    assert sizes == draws


def test_a_chunk_is_fetched_while_the_next_is_computed_and_no_more_are_held():
    events = []

    class OnDevice:
        def __init__(self, start):
            self.start = start
            events.append(f"dispatch {start}")

        def __array__(self, dtype=None, copy=None):
            events.append(f"fetch {self.start}")
            return np.zeros((2, 1), np.float32)

        def __del__(self):
            events.append(f"free {self.start}")

    chunks = ddpm_jax.sample_in_chunks(
        lambda params, key, n, cond, start: OnDevice(start), None, KEY, 6, 2
    )
    for _ in chunks:
        events.append("caller")
    assert events == [
        *("dispatch 0", "dispatch 2", "fetch 0", "free 0", "caller"),
        *("dispatch 4", "fetch 2", "free 2", "caller"),
        *("fetch 4", "free 4", "caller"),
    ]


@pytest.mark.parametrize("n", [0, -1])
def test_fewer_than_one_image_is_an_error(n):
    with pytest.raises(UserError, match="n, the number of images, must be at least 1"):
        SAMPLE(None, KEY, n)
    with pytest.raises(UserError, match="n and chunk_size must be at least 1"):
        next(ddpm_jax.sample_in_chunks(SAMPLE, None, KEY, n, 4))
    with pytest.raises(UserError, match="n and chunk_size must be at least 1"):
        next(ddpm_jax.sample_in_chunks(SAMPLE, None, KEY, 4, n))


@pytest.mark.parametrize("start", [-1, 2**32 - 3])
def test_a_series_of_images_has_numbers_of_32_bits(start):
    with pytest.raises(UserError, match=f"start must be .* found start = {start} and n = 4"):
        SAMPLE(None, KEY, 4, start=start)


@pytest.mark.parametrize("label", [np.zeros(4), np.zeros(6), np.zeros((1, 5)), 3])
def test_conditioning_of_another_length_is_an_error_that_names_it(label):
    for call in (
        lambda: SAMPLE(None, KEY, 5, {"label": label}),
        lambda: next(ddpm_jax.sample_in_chunks(SAMPLE, None, KEY, 5, 2, {"label": label})),
    ):
        with pytest.raises(UserError, match=r"cond\['label'\] must have one row for each of"):
            call()


def test_conditioning_that_is_not_a_mapping_is_an_error():
    with pytest.raises(UserError, match="cond must be a mapping such as"):
        SAMPLE(None, KEY, 5, np.zeros(5))


@pytest.mark.parametrize(
    "grid", [[], [1000], [0], [999, 0], [1000, 5], [1000, 5, 5, 0], [[1000, 0]]]
)
def test_a_grid_that_does_not_descend_from_T_to_0_is_an_error(grid):
    with pytest.raises(UserError, match="timesteps must descend strictly from T = 1000 to 0"):
        make(timesteps=grid)


def test_kinds_are_checked_when_the_sampler_is_made():
    with pytest.raises(UserError, match="unknown kind 'x0'; did you mean 'x_0'"):
        make(kind="x0")
    process = ddpm_jax.make_process(oracles.betas("linear_zero_snr", 10))
    with pytest.raises(UserError, match="'eps' cannot be used with zero_terminal_snr"):
        make(process=process, timesteps=None)


def test_params_may_come_from_anywhere():
    on_one = jax.device_put(jnp.float32(1), jax.devices()[5])
    for params in (np.float32(1), on_one):
        np.testing.assert_array_equal(SAMPLE(params, KEY, 8), SAMPLE(None, KEY, 8))


def test_importing_the_library_imports_none_of_the_heavy_ones():
    code = """
import sys, ddpm_jax
heavy = {"flax", "optax", "orbax", "tensorflow_datasets", "tensorflow", "absl.flags", "rich",
         "matplotlib", "sklearn", "PIL", "ml_collections"}
print(sorted(heavy & set(sys.modules)), "load" in ddpm_jax.__all__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.stdout.split("\n")[0] == "[] True"


def test_every_public_name_exists():
    for name in ddpm_jax.__all__:
        assert getattr(ddpm_jax, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'sampler'"):
        ddpm_jax.sampler  # noqa: B018
