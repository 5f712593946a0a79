"""Pairs of views, stochastic conditioning, and what a run of novel views refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import make_config

import ddpm_jax
from ddpm_jax import novel_views, samplers, schedules
from ddpm_jax.data import Batches, Dataset, Views
from ddpm_jax.data.cond import check, cond_of, make_cond_fn, pairs_of, rows_of
from ddpm_jax.data.sources import ArraySource
from ddpm_jax.data.views import Pairs
from ddpm_jax.errors import UserError
from ddpm_jax.scenes.cameras import Camera, orbit
from ddpm_jax.training.parts import build_parts

OBJECTS = np.array([3, 7, 3, 5, 7, 3, 5, 3])
N = len(OBJECTS)
CONFIG = make_config(
    data={"name": "solids", "flip": False},
    model__name="xunet",
    model__attention_resolutions=(8,),
)


def views_of(objects):
    n = len(objects)
    camera = orbit(np.arange(n), 0.3, 3.0, 0.7, 8)
    numbers = jax.tree.map(np.asarray, camera)
    return Views(np.asarray(objects), numbers.pose, np.arange(n, dtype=np.float32), numbers.centre)


@pytest.fixture
def source():
    images = np.broadcast_to(np.arange(N, dtype=np.uint8)[:, None, None, None], (N, 8, 8, 3))
    return ArraySource(images.copy(), np.zeros(N, np.int32))


def test_another_image_of_the_same_object_uniformly(source):
    pairs = Pairs(source, views_of(OBJECTS))
    indices = np.repeat(np.arange(N), 3000)
    others = pairs.others(indices, np.random.default_rng(0).random(len(indices)))
    assert (OBJECTS[others] == OBJECTS[indices]).all() and (others != indices).all()
    for i in range(N):
        counts = np.bincount(others[indices == i], minlength=N)
        allowed = np.flatnonzero((OBJECTS == OBJECTS[i]) & (np.arange(N) != i))
        share = 1 / len(allowed)
        bound = 5 * np.sqrt(3000 * share * (1 - share)) + 1e-9
        assert (abs(counts[allowed] - 3000 * share) <= bound).all()


def test_batches_of_pairs_depend_on_seed_and_step_only(source):
    views = views_of(OBJECTS)

    def make(seed=0, **parts):
        return Batches(source, 4, seed, pairs=Pairs(source, views), **parts)

    batches, seen = make(), set()
    for step in (5, 0, 3, 5, 1, 2, 4):
        batch, again = batches.batch(step), make().batch(step)
        for name, value in batch.items():
            np.testing.assert_array_equal(value, again[name])
        own, other = batch["image"][:, 0, 0, 0], batch["view"][:, 0, 0, 0]
        assert (OBJECTS[own] == OBJECTS[other]).all() and (own != other).all()
        np.testing.assert_array_equal(batch["focal"], np.stack([own, other], axis=1))
        np.testing.assert_array_equal(batch["pose"][:, 1], views.pose[other])
        assert batch["centre"].shape == (4, 2, 2)
        halves = [make(process_index=i, process_count=2).batch(step) for i in (0, 1)]
        np.testing.assert_array_equal(np.concatenate([h["view"] for h in halves]), batch["view"])
        seen |= set(zip(own.tolist(), other.tolist(), strict=True))
    plain = Batches(source, 4, 0)
    np.testing.assert_array_equal(plain.batch(3)["image"], batches.batch(3)["image"])
    assert len(seen) > 8  # other partners in another epoch
    assert (make(1).batch(0)["view"] != batches.batch(0)["view"]).any()


def test_held_out_pairs_are_always_the_same(source):
    dataset = Dataset(
        source,
        source,
        (8, 8, 3),
        0,
        (),
        train_views=views_of(OBJECTS),
        test_views=views_of(OBJECTS),
    )
    (_, rows), (_, again) = (rows_of(CONFIG, dataset) for _ in range(2))
    some = np.array([6, 1])
    assert rows["view"].shape == (N, 8, 8, 3) and rows["view"].dtype == np.uint8
    cond = cond_of(CONFIG, source, rows, some)
    assert set(cond) == {"view", "pose", "focal", "centre"}
    assert cond["view"].dtype == np.float32 and cond["view"].min() >= -1
    other = cond["focal"][:, 1].astype(int)
    assert (OBJECTS[other] == OBJECTS[some]).all() and (other != some).all()
    np.testing.assert_allclose(cond["view"][:, 0, 0, 0], other / 127.5 - 1, rtol=1e-6)
    for name, value in cond_of(CONFIG, source, again, some).items():
        np.testing.assert_array_equal(value, cond[name])
    fn = make_cond_fn(CONFIG)
    assert set(fn({**{k: v[some] for k, v in rows.items()}, "image": 0, "label": 0})) == set(cond)


def test_data_without_cameras_or_with_one_view_are_refused(source):
    plain = Dataset(source, None, (8, 8, 3), 0, ())
    with pytest.raises(UserError, match=r"^model.name is xunet, which needs the camera .*solids"):
        pairs_of(CONFIG, plain)
    single = dataclasses.replace(plain, train_views=views_of(np.array([*OBJECTS[:-1], 9])))
    with pytest.raises(UserError, match=r"^object 9 has only one image .* data.views_per_object"):
        pairs_of(CONFIG, single)
    assert pairs_of(make_config(), plain) == (None, None)


def test_options_that_views_cannot_have_are_refused():
    mirrored = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, flip=True))
    with pytest.raises(UserError, match=r"^data.flip is True, but a mirrored image"):
        check(mirrored, (8, 8, 3))
    for field, value in (("class_conditional", True), ("patch_size", 2), ("scale_shift", True)):
        model = dataclasses.replace(CONFIG.model, **{field: value})
        with pytest.raises(UserError, match=rf"^model.{field} is .* model.name=xunet does not"):
            build_parts(dataclasses.replace(CONFIG, model=model), (8, 8, 3), 8)
    coded = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, codec="runs/a"))
    with pytest.raises(UserError, match=r"^model.name is xunet, but data.codec"):
        build_parts(coded, (8, 8, 3), 8)


# stochastic conditioning

T, SHAPE = 6, (4, 4, 1)
PROCESS = ddpm_jax.make_process(schedules.cosine(T))


def network(params, x_t, t, cond, *, train, key):
    """An affine map of what a network of novel views receives.

    The factors are powers of 2: their products are exact, also if a product and a sum are fused.
    """
    level = jnp.exp2(-t.astype(jnp.float32))[:, None, None, None]
    camera = cond["pose"][:, 1, 0, 3] + cond["focal"][:, 1] + cond["centre"][:, 0, 1]
    return 0.25 * x_t + level * (params * cond["view"] + 0.5 * camera[:, None, None, None])


def cond_with(count, k=3, n=5):
    rng = np.random.default_rng(0)
    views = jnp.asarray(rng.uniform(-1, 1, (n, k, *SHAPE)), jnp.float32)
    camera = jax.tree.map(
        np.asarray, orbit(rng.uniform(0, 6, (n, k + 1)), rng.uniform(0, 1, (n, k + 1)), 2.0, 0.7, 4)
    )
    target, given = (Camera(*(part[:, s] for part in camera)) for s in (0, slice(1, None)))
    counts = jnp.full(n, count, jnp.int32)
    plain = {"view": views[:, 0]} | {
        name: np.stack([own, others[:, 0]], axis=1)
        for name, own, others in zip(("pose", "focal", "centre"), target, given, strict=True)
    }
    return novel_views.conditioning(views, counts, target, given), plain


def sample_fn(**options):
    sampler = samplers.ancestral(PROCESS)
    return ddpm_jax.make_sample(PROCESS, network, shape=SHAPE, sampler=sampler, **options)


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_with_a_single_view_it_is_the_plain_sampler_bit_for_bit(guidance):
    several, plain = cond_with(count=1)
    params, key = jnp.float32(0.5), jax.random.key(3)
    expected = sample_fn(guidance=guidance)(params, key, 5, plain)
    found = sample_fn(guidance=guidance, cond_at=novel_views.random_view)(params, key, 5, several)
    np.testing.assert_array_equal(found, expected)
    more, _ = cond_with(count=3)
    other = sample_fn(guidance=guidance, cond_at=novel_views.random_view)(params, key, 5, more)
    assert (np.abs(np.asarray(other) - expected).max(axis=(1, 2, 3)) > 1e-3).sum() >= 3


def test_each_step_of_each_image_draws_one_of_the_views_uniformly():
    several, _ = cond_with(count=2, n=400)
    key = jax.random.split(jax.random.key(0), 400)
    picks = []
    for t in (1, 2):
        keys = ddpm_jax.randomness.cond_keys(key, jnp.int32(t))
        found = novel_views.random_view(several, keys, jnp.int32(t))
        match = (found["view"][:, None] == several["views"]).all(axis=(2, 3, 4))
        assert (match.sum(axis=1) == 1).all()
        index = np.asarray(match.argmax(axis=1))
        rows = np.arange(400)
        np.testing.assert_array_equal(found["pose"][:, 0], several["poses"][:, 0])
        np.testing.assert_array_equal(found["pose"][:, 1], several["poses"][rows, 1 + index])
        np.testing.assert_array_equal(found["focal"][:, 1], several["focals"][rows, 1 + index])
        picks.append(index)
    shares = [(pick == 1).mean() for pick in (*picks, picks[0] ^ picks[1])]
    assert (np.abs(np.array(shares) - 0.5) < 5 * 0.5 / 20).all()
    assert max(map(np.max, picks)) == 1  # never one of the padding


def test_the_views_that_an_image_meets_do_not_depend_on_the_batch():
    several, _ = cond_with(count=3)
    sample = sample_fn(cond_at=novel_views.random_view)
    params, key = jnp.float32(0.5), jax.random.key(3)
    whole = sample(params, key, 5, several)
    part = sample(params, key, 2, {k: v[2:4] for k, v in several.items()}, start=2)
    np.testing.assert_array_equal(part, whole[2:4])
