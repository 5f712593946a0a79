"""The train step, the optimiser, checkpoints and the work directory."""

import dataclasses
import functools
import json
import logging
import pathlib
import shutil
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tiny import make_config

from ddpm_jax import config as config_lib
from ddpm_jax.config import Config
from ddpm_jax.config_checks import RANGES
from ddpm_jax.errors import NotFiniteError, UserError
from ddpm_jax.pixels import to_uint8, to_x_0
from ddpm_jax.runs import metrics, workdir
from ddpm_jax.runs.checkpoint import Checkpoints, restore_ema
from ddpm_jax.runs.checksums import check, checksums
from ddpm_jax.runtime import devices, sharding
from ddpm_jax.training.loop import train
from ddpm_jax.training.objectives import loss_by_quartile
from ddpm_jax.training.optimizer import learning_rate
from ddpm_jax.training.parts import build_parts
from ddpm_jax.training.pictures import Pictures
from ddpm_jax.training.step import fuse_steps

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sharding info not provided"),
    pytest.mark.loose_promotion(reason="optax's schedules multiply floats with int32 counts"),
    pytest.mark.quick_to_compile,
]


@functools.cache
def make_parts(config: Config):
    parts = build_parts(config, (8, 8, 1), 10)
    return parts, jax.jit(parts.train_step)


def make_batch(seed=0, size=16):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (size, 8, 8, 1), np.uint8)
    return {"image": image, "label": rng.integers(0, 10, size, np.int32)}


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def assert_close(a, b, rtol=1e-4, atol=1e-6):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=rtol, atol=atol)


def test_pixels_become_numbers_between_minus_one_and_one():
    np.testing.assert_allclose(to_x_0(jnp.array([0, 255], jnp.uint8)), [-1.0, 1.0])


def test_losses_are_summed_by_quarter_of_the_timesteps():
    t = np.arange(1, 1001)
    ones = jnp.ones(1000)
    sums, counts = loss_by_quartile(jnp.asarray(t, jnp.float32), ones, jnp.asarray(t), 1000)
    np.testing.assert_allclose(sums, t.reshape(4, 250).sum(1), rtol=1e-5)
    np.testing.assert_array_equal(counts, [250] * 4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_images_that_are_not_finite_have_no_pixels(bad):
    images = np.zeros((4, 2, 2, 1), np.float32)
    images[2, 0, 1, 0] = images[3] = bad
    with pytest.raises(NotFiniteError, match=r"2 of 4 images are not finite .*\(2, 0, 1, 0\)"):
        to_uint8(images)


def test_samples_that_are_not_finite_are_no_pictures(tmp_path, caplog):
    """The run goes on: its weights may be good when the sampler is not."""
    config = make_config()
    parts = make_parts(config)[0]._replace(
        draw=lambda params, key, n, cond, *, start: jnp.full((n, 8, 8, 1), jnp.nan)
    )
    paths = workdir.WorkDir(tmp_path)
    pictures = Pictures(config, parts, None, paths, None)
    with caplog.at_level(logging.WARNING, "ddpm_jax"):
        assert pictures.draw(7, "ema", {}) is None
    assert "no grid of the ema weights at step 7: 2 of 2 images are not finite" in caplog.text
    assert not paths.samples.exists()


def test_the_rate_warms_up_from_zero_and_decays_to_zero():
    optim = make_config(optim__warmup_steps=10, optim__decay="cosine").optim
    rate = learning_rate(optim, 110)
    np.testing.assert_allclose([float(rate(i)) for i in (0, 5, 10)], [0, 5e-4, 1e-3], rtol=1e-6)
    assert float(rate(60)) == pytest.approx(5e-4) and float(rate(110)) == pytest.approx(0, abs=1e-9)
    constant = learning_rate(dataclasses.replace(optim, decay="constant"), 110)
    assert float(constant(100_000)) == pytest.approx(1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("ema_warmup", [True, False])
def test_the_ema_is_the_recursion_of_the_weights(ema_warmup):
    parts, step = make_parts(make_config(optim__ema_warmup=ema_warmup))
    state = parts.init()
    average = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state.params)
    for n in range(4):
        state, _ = step(state, make_batch(n))
        d = min(0.9999, (1 + n) / (10 + n)) if ema_warmup else 0.9999
        average = jax.tree.map(lambda a, p, d=d: d * a + (1 - d) * p, average, state.params)
    assert_close(state.ema_params, average, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_an_update_that_is_not_finite_is_skipped_and_counted():
    parts, step = make_parts(make_config())
    state, _ = step(parts.init(), make_batch())
    bad = state.params | {"conv_out": {**state.params["conv_out"]}}
    bad["conv_out"]["bias"] = jnp.full((1,), jnp.nan)
    broken = dataclasses.replace(state, params=bad)
    for n in (1, 2):
        before, (broken, metrics_) = broken, step(broken, make_batch())
        assert int(metrics_["skipped"]) == int(metrics_["skipped_in_a_row"]) == n
        assert_equal(broken.params, before.params)
        assert_equal(broken.ema_params, before.ema_params)
        assert_equal(broken.opt_state.inner_state, before.opt_state.inner_state)
    mended, metrics_ = step(dataclasses.replace(broken, params=state.params), make_batch())
    assert int(metrics_["skipped"]) == 2 and int(metrics_["skipped_in_a_row"]) == 0
    assert int(mended.step) == 4
    kernel = mended.params["conv_out"]["kernel"]  # the first layer to learn: it starts at zero
    assert not np.array_equal(kernel, state.params["conv_out"]["kernel"])


@pytest.mark.slow
def test_the_network_overfits_one_batch():
    """Gradients reach what they must: with t and eps fixed the loss falls from 1 to almost 0."""
    levels = {"model__channel_multipliers": (1, 2), "model__attention_resolutions": (4,)}
    config = make_config(**levels, optim__learning_rate=5e-3, optim__warmup_steps=0)
    parts, step = make_parts(config)
    state = parts.init()
    batch = make_batch(size=16)
    first = None
    for _ in range(150):
        state, row = step(dataclasses.replace(state, step=jnp.int32(0)), batch)  # the same t, eps
        first = first or float(row["loss"])
    assert 0.8 < first < 1.3 and float(row["loss"]) < 0.02


@pytest.mark.slow
def test_micro_batches_add_up_to_the_batch():
    state, expected = None, None
    for accumulate in (1, 4):
        parts, step = make_parts(make_config(train__accumulate=accumulate))
        state = parts.init()
        for n in range(2):
            state, row = step(state, make_batch(n))
        expected = expected or (state.params, row)
    assert_close(state.params, expected[0], rtol=1e-3, atol=2e-5)
    np.testing.assert_allclose(row["grad_norm"], expected[1]["grad_norm"], rtol=1e-3)
    assert_close(row["quartile_sum"], expected[1]["quartile_sum"])


@pytest.mark.slow
def test_fused_steps_are_the_single_steps():
    parts, step = make_parts(make_config())
    batches = [make_batch(n) for n in range(3)]
    state = parts.init()
    losses = []
    for batch in batches:
        state, row = step(state, batch)
        losses.append(row["loss"])
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
    fused_step = jax.jit(fuse_steps(parts.train_step, 3))
    fused, rows = fused_step(parts.init(), stacked)
    np.testing.assert_allclose(rows["loss"], losses, rtol=1e-4)
    assert_close(fused.params, state.params, rtol=1e-3, atol=2e-5)


@pytest.mark.slow
def test_the_devices_share_the_batch_and_change_nothing():
    config = make_config()
    parts, step = make_parts(config)
    mesh = devices.make_mesh(config)
    assert mesh.size == 8
    start = one = parts.init()
    eight = jax.jit(parts.init, out_shardings=sharding.replicated(mesh))()
    for n in range(4):  # the first rate is 0: one step would compare initial weights
        one, row = step(one, make_batch(n))
        eight, sharded = step(eight, jax.device_put(make_batch(n), sharding.over_batch(mesh)))
        np.testing.assert_allclose(sharded["loss"], row["loss"], rtol=1e-5)
        np.testing.assert_allclose(sharded["grad_norm"], row["grad_norm"], rtol=1e-3)
    assert_close(eight.params, one.params, rtol=1e-3, atol=2e-5)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), one.params, start.params)
    assert min(jax.tree.leaves(moved["conv_out"])) > 5e-4


@pytest.fixture(scope="module")
def three_saved(tmp_path_factory):
    """A directory with checkpoints of steps 1, 2 and 3, and their states; to be copied."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        parts, _ = make_parts(make_config())
        states = [parts.init()]
        directory = tmp_path_factory.mktemp("three")
        checkpoints = Checkpoints(directory, keep_last=3, keep_every=0)
        for _ in range(3):
            states.append(jax.tree.map(lambda x: x + jnp.ones((), x.dtype), states[-1]))
            checkpoints.save(states[-1], wait=True)
        checkpoints.close()
    return directory, states


@pytest.fixture
def three_checkpoints(three_saved, tmp_path):
    directory, states = three_saved
    return shutil.copytree(directory, tmp_path / "run" / "checkpoints"), states


def abstract(state):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def test_a_checkpoint_gives_back_every_bit(three_checkpoints):
    directory, states = three_checkpoints
    checkpoints = Checkpoints(directory, 3, 0)
    assert_equal(checkpoints.restore_latest(abstract(states[3])), states[3])
    checkpoints.close()
    step, params = restore_ema(directory, abstract(states[3].ema_params), step=2)
    assert step == 2
    assert_equal(params, states[2].ema_params)
    with pytest.raises(UserError, match="no checkpoint of step 7"):
        restore_ema(directory, abstract(states[3].ema_params), step=7)


def with_nan(params):
    bad = params | {"conv_out": {**params["conv_out"]}}
    return bad | {"conv_out": bad["conv_out"] | {"bias": jnp.full((1,), jnp.nan)}}


def test_weights_that_are_not_finite_are_not_saved_over_good_ones(three_checkpoints, tmp_path):
    directory, states = three_checkpoints
    words = r"step 4 are not finite and are not saved: NaN or infinity in %s/conv_out/bias; %s"
    four = dataclasses.replace(states[3], step=jnp.int32(4))
    checkpoints = Checkpoints(directory, 1, 0)
    last = f"the last good checkpoint is {directory}/3"
    with pytest.raises(UserError, match=words % ("params", last)):
        checkpoints.save(dataclasses.replace(four, params=with_nan(four.params)), wait=True)
    with pytest.raises(UserError, match=words % ("ema", last)):
        checkpoints.save(dataclasses.replace(four, ema_params=with_nan(four.params)), wait=True)
    checkpoints.close()
    assert (directory / "3").is_dir() and not (directory / "4").exists()
    checkpoints = Checkpoints(tmp_path / "new", 1, 0)
    with pytest.raises(UserError, match="no good checkpoint in"):
        checkpoints.save(dataclasses.replace(four, params=with_nan(four.params)), wait=True)
    checkpoints.close()


def test_a_checkpoint_that_is_not_finite_is_refused_by_name_and_not_resumed(
    three_checkpoints, caplog, monkeypatch
):
    """Older versions saved such weights."""
    directory, states = three_checkpoints
    four = dataclasses.replace(states[3], step=jnp.int32(4), ema_params=with_nan(states[3].params))
    checkpoints = Checkpoints(directory, 4, 0)
    with monkeypatch.context() as older:
        older.setattr("ddpm_jax.runs.checkpoint.nonfinite", lambda tree: "")
        checkpoints.save(four, wait=True)
    for step in (None, 4):
        with pytest.raises(UserError, match=r"4 are not finite: NaN or infinity in conv_out/bias; "
                           r"choose an earlier step, of \[1, 2, 3\]") as error:  # fmt: skip
            restore_ema(directory, abstract(four.ema_params), step)
        assert "\n" not in str(error.value)
    assert restore_ema(directory, abstract(four.ema_params), 3)[0] == 3
    with caplog.at_level(logging.WARNING, "ddpm_jax"):
        assert int(checkpoints.restore_latest(abstract(four)).step) == 3
    assert "NaN or infinity in ema/conv_out/bias" in caplog.text
    assert (directory.parent / "damaged" / "4-0").is_dir()
    checkpoints.close()


@pytest.mark.parametrize("step", ["3", 3.0, True])
def test_the_step_of_a_checkpoint_is_a_whole_number(three_checkpoints, step):
    directory, states = three_checkpoints
    with pytest.raises(UserError, match=f"step must be a whole number, .*found {step!r}"):
        restore_ema(directory, abstract(states[3].ema_params), step)


def damage(path: pathlib.Path) -> None:
    """Cut every file of data under a directory to half its length."""
    files = [f for f in path.rglob("*") if f.is_file() and f.stat().st_size > 1000]
    assert files
    for file in files:
        with file.open("r+b") as f:
            f.truncate(file.stat().st_size // 2)


def test_a_truncated_checkpoint_is_named_and_the_one_before_it_taken(three_checkpoints, caplog):
    directory, states = three_checkpoints
    damage(directory / "3")
    checkpoints = Checkpoints(directory, 3, 0)
    with caplog.at_level(logging.WARNING, "ddpm_jax"):
        restored = checkpoints.restore_latest(abstract(states[3]))
    assert_equal(restored, states[2])
    assert f"{directory}/3 cannot be read" in caplog.text
    assert (directory.parent / "damaged" / "3-0").is_dir() and not (directory / "3").exists()
    checkpoints.save(states[3], wait=True)  # the same step again
    assert_equal(checkpoints.restore_latest(abstract(states[3])), states[3])
    checkpoints.close()


def flip_a_bit(path: pathlib.Path) -> None:
    """Flip one bit under a directory that Orbax does not notice, but by which an array differs.

    Which bytes are an array's differs from save to save, and some are of nothing that is read.
    """

    def read() -> list[bytes]:
        with ocp.StandardCheckpointer() as reader:
            return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(reader.restore(path))]

    whole = read()
    files = path.glob("ocdbt.process_0/d/*")
    for file in sorted(files, key=lambda f: f.stat().st_size, reverse=True):
        content = file.read_bytes()
        for place in np.linspace(0, len(content), 12, dtype=int)[1:-1]:
            flipped = bytearray(content)
            flipped[place] ^= 0b1000
            file.write_bytes(flipped)
            try:
                if read() != whole:
                    return
            except Exception:  # TensorStore noticed
                pass
            file.write_bytes(content)
    raise AssertionError("no bit that goes unnoticed was found")


@pytest.mark.parametrize("item", ["train", "ema"])
def test_a_flipped_bit_is_named_and_the_checkpoint_before_it_taken(three_checkpoints, caplog, item):
    directory, states = three_checkpoints
    flip_a_bit(directory / "3" / item)
    with caplog.at_level(logging.WARNING, "ddpm_jax"):
        step, params = restore_ema(directory, abstract(states[3].ema_params))
        assert step == (3 if item == "train" else 2)  # to sample, only the averages are read
        assert_equal(params, states[step].ema_params)
        checkpoints = Checkpoints(directory, 3, 0)
        assert_equal(checkpoints.restore_latest(abstract(states[3])), states[2])
        checkpoints.close()
    assert f"{directory}/3 cannot be read ({item}/" in caplog.text and "CRC-32" in caplog.text
    assert (directory.parent / "damaged" / "3-0").is_dir()


def test_a_checkpoint_of_before_there_were_checksums_is_read(three_checkpoints, caplog):
    directory, states = three_checkpoints
    shutil.rmtree(directory / "3" / "checksums")
    with caplog.at_level(logging.INFO, "ddpm_jax"):
        step, params = restore_ema(directory, abstract(states[3].ema_params))
    assert step == 3 and "step 3 has no checksums (older version)" in caplog.text
    assert_equal(params, states[3].ema_params)


def test_every_bit_of_every_leaf_counts():
    """Against zlib on the bytes themselves; and a bit anywhere in an array changes its sum."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    x = np.arange(16, dtype=np.float32)
    spread = jax.device_put(x, jax.NamedSharding(mesh, jax.P("x")))
    tree = {"a": {"b": jnp.asarray(x), "c": spread}, "n": jnp.int32(7), "h": jnp.bfloat16(x[1:3])}
    sums = checksums(tree)
    assert sums["a/b"] == sums["a/c"] == zlib.crc32(x.tobytes())
    assert sums["n"] == zlib.crc32(b"\x07\0\0\0") and sums["h"] == zlib.crc32(b"\x80\x3f\0\x40")
    for bit in range(0, 8 * x.nbytes, 11):
        flipped = np.frombuffer(x.tobytes(), np.uint8).copy()
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(UserError, match=r"a/b is not what was saved: CRC-32 \w{8}, "):
            check({"a": {"b": jnp.asarray(flipped.view(np.float32))}}, sums)


def test_where_all_are_damaged_nothing_is_moved(three_checkpoints):
    directory, states = three_checkpoints
    for step in "123":
        damage(directory / step)
    checkpoints = Checkpoints(directory, 3, 0)
    with pytest.raises(UserError, match=r"none of the checkpoints \[1, 2, 3\]"):
        checkpoints.restore_latest(abstract(states[3]))
    checkpoints.close()
    assert sorted(p.name for p in directory.iterdir() if p.name.isdigit()) == ["1", "2", "3"]


def test_the_last_and_every_other_checkpoint_are_kept(tmp_path):
    parts, _ = make_parts(make_config())
    state = parts.init()
    checkpoints = Checkpoints(tmp_path / "c", keep_last=1, keep_every=2)
    for n in range(1, 6):
        checkpoints.save(dataclasses.replace(state, step=jnp.int32(n)), wait=True)
    checkpoints.close()
    kept = sorted(int(p.name) for p in (tmp_path / "c").iterdir() if p.name.isdigit())
    assert kept == [2, 4, 5]


def test_a_work_directory_of_another_config_is_refused(tmp_path):
    config = make_config()
    workdir.open_for_training(tmp_path, config)
    workdir.open_for_training(tmp_path, make_config(train__num_steps=9))  # a longer run may go on
    with pytest.raises(UserError, match=r"loss.kind: 'eps' there, 'v' now"):
        workdir.open_for_training(tmp_path, make_config(loss__kind="v", train__num_steps=9))
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match="cannot be written"):
        workdir.open_for_training(file / "run", config)
    with pytest.raises(UserError, match="is not the work directory of a run"):
        workdir.open_for_reading(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class_names": ("cat", "puppy")}, "gone: class 'dog'; new: class 'puppy'"),
        ({"class_names": ("dog", "cat")}, "the classes are in another order"),
        (
            {"class_names": ("cat", "dog", "eel"), "num_classes": 3},
            "2 classes are now 3; new: class 'eel'",
        ),
        ({"image_shape": (8, 8, 3)}, r"images of \(8, 8, 1\) are now \(8, 8, 3\)"),
        ({"text": "minilm"}, "the encoder of texts '' is now 'minilm'"),
    ],
)
def test_what_differs_in_the_data_of_a_run_is_named(tmp_path, changes, words):
    paths = workdir.open_for_training(tmp_path, make_config())
    facts = workdir.DatasetFacts((8, 8, 1), 2, ("cat", "dog"))
    workdir.write_facts(paths, facts)
    workdir.check_same_run(tmp_path, make_config(), facts)
    other = dataclasses.replace(facts, **changes)
    for refuse in (
        lambda: workdir.check_same_run(tmp_path, make_config(), other),
        lambda: workdir.open_for_training(tmp_path, make_config(), other),
    ):
        with pytest.raises(UserError, match=rf"was trained on other data \({words}\); bring"):
            refuse()
    assert workdir.read_facts(paths) == facts


@pytest.mark.parametrize("other", ["config", "data"])
def test_another_run_is_refused_before_anything_is_compiled(tmp_path, capsys, other):
    paths = workdir.open_for_training(tmp_path, make_config(train__seed=int(other == "config")))
    names = tuple("abcdefghij") if other == "data" else tuple("0123456789")
    workdir.write_facts(paths, workdir.DatasetFacts((8, 8, 1), 10, names))
    with pytest.raises(UserError, match="belongs to a run of another|was trained on other data"):
        train(make_config(), tmp_path)
    assert "compiled" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_beyond_its_steps_says_so_and_one_of_skipped_steps_too(tmp_path, capsys):
    config = make_config(optim__warmup_steps=50, optim__max_nonfinite=9)
    train(config, tmp_path)
    said = capsys.readouterr().out
    assert "done: 4 steps\n" in said and "only reaches 6.0e-05 of 1.0e-03" in said
    result = train(make_config(optim__warmup_steps=50, optim__max_nonfinite=9, train__num_steps=3),
                   tmp_path)  # fmt: skip
    said = capsys.readouterr().out
    assert "nothing to train: the run is at step 4, beyond train.num_steps=3" in said
    assert "done" not in said and int(result.state.step) == 4
    ruined = make_config(optim__learning_rate=1e38, optim__warmup_steps=0, optim__max_nonfinite=9)
    train(ruined, tmp_path / "ruined")
    assert "done: 4 steps, 3 of them skipped (not finite" in capsys.readouterr().out


def test_the_metrics_of_an_interrupted_run_are_cut_at_the_resumed_step(tmp_path):
    paths = workdir.WorkDir(tmp_path)
    writer = metrics.MetricsWriter(paths, 0)
    for step in (1, 2, 3):
        writer.scalars(step, {"loss": 1.0 / step})
    writer.close()
    with paths.metrics.open("a") as file:
        file.write('{"step": 4, "lo')  # a kill in the middle of a line
    metrics.MetricsWriter(paths, 2).close()
    assert [row["step"] for row in metrics.read(paths.metrics)] == [1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"process__schedule": "lineer"},
            "process.schedule 'lineer'; did you mean 'linear'",
        ),
        ({"sample__sampler": "ancestrel"}, "did you mean 'ancestral'"),
        ({"data__name": "digit"}, "did you mean .*'digits'"),
        ({"loss__weighting": "min_snr5"}, "did you mean 'min_snr'"),
        ({"process__schedule": "linear", "process__beta_T": 1.5}, "beta_T"),
        ({"process__zero_terminal_snr": True}, "zero_terminal_snr"),
        ({"train__batch_size": 12}, "8 devices cannot share"),
        ({"train__batch_size": 4000}, "only 1634 training images"),
        ({"model__channel_multipliers": (1, 1, 1, 1, 1)}, "divisible by 16"),
        ({"model__attention_resolutions": (16,)}, r"heights \[8\]"),
        ({"sample__num_steps": 9}, "1..8"),
    ],
)
def test_a_config_that_cannot_work_is_one_line_and_leaves_nothing_behind(
    tmp_path, changes, message
):
    with pytest.raises(UserError, match=message) as error:
        train(make_config(**changes), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_without_a_checkpoint_does_not_name_one(tmp_path):
    rate = {"optim__learning_rate": 1e38, "optim__warmup_steps": 0}  # step 1 ruins the weights
    with pytest.raises(UserError, match="; there is no good checkpoint in ") as error:
        train(make_config(**rate, train__num_steps=6, train__log_every=1), tmp_path / "run")
    assert "the last 3 updates were not finite" in str(error.value)


@pytest.mark.slow
def test_a_run_stops_after_too_many_updates_that_are_not_finite(tmp_path):
    rate = {"optim__learning_rate": 1e38, "optim__warmup_steps": 4}  # step 1 ruins the weights
    steps = {"train__num_steps": 40, "train__log_every": 1, "train__checkpoint_every": 1}
    with pytest.raises(UserError, match="the last 3 updates were not finite") as error:
        train(make_config(**rate, **steps, train__keep_last=1), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert f"the last good checkpoint is {tmp_path}/run/checkpoints/2; " in str(error.value)
    rows = metrics.read(tmp_path / "run" / "metrics.jsonl")
    skipped = [row["skipped_in_a_row"] for row in rows if "loss" in row]
    assert skipped == [0, 0, 1, 2, 3]
    # None was saved while updates were skipped: the newest is from before the first of them.
    saved = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert saved == ["2"]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"train": {"num_step": 1}}, "unknown config key 'train.num_step'; did you mean"),
        ({"trian": {}}, "unknown config section 'trian'; did you mean 'train'"),
        ({"train": {"num_steps": "ten"}}, "train.num_steps must be a whole number, found 'ten'"),
        ({"process": {"num_timesteps": 0}}, "process.num_timesteps must be at least 1, found 0"),
        ({"loss": {"p_uncond": 1.5}}, r"loss.p_uncond must be in \[0, 1\), found 1.5"),
        ({"optim": {"eps": 0.0}}, "config.optim.eps must be at least 1e-18, found 0.0"),
        ({"model": {"norm_eps": 1e-42}}, "above 0, found 1e-42, which is 0 in float32"),
        ({"optim": {"b1": 1.0}}, r"optim.b1 must be in \[0, 1\), found 1.0"),
        ({"optim": {"b2": 0.99999999999}}, r"found 0.99999999999, which is 1 in float32"),
        ({"optim": {"learning_rate": 1e39}}, "above 0, found 1e\\+39, which is inf in float32"),
        ({"loss": {"min_snr_gamma": 0.0}}, "loss.min_snr_gamma must be above 0, found 0.0"),
        ({"model": {"channel_multipliers": (1, 0)}}, r"at least 1, found 0 in \(1, 0\)"),
        ({"sample": {"eta": 1.5}}, r"sample.eta must be in \[0, 1\], found 1.5"),
        ({"eval": {"ode_tolerance": 0.0}}, "eval.ode_tolerance must be above 0"),
        ({"train": {"seed": -1}}, r"train.seed must be in \[0, 4294967295\], found -1"),
        ({"train": {"seed": 2**32}}, r"in \[0, 4294967295\], found 4294967296"),
        ({"train": {"seed": 2**63}}, "found 9223372036854775808"),
    ],
)
def test_a_config_is_checked_where_it_is_read(mapping, message):
    with pytest.raises(UserError, match=message):
        config_lib.from_dict(mapping)


def test_the_metrics_are_json_with_one_row_for_a_step(tmp_path):
    """Of a file of an older version too, when its run goes on."""
    paths = workdir.WorkDir(tmp_path)
    paths.metrics.write_text('{"step": 1, "loss": NaN}\n{"step": 1, "held_out_loss": Infinity}\n')
    assert np.isnan(metrics.read(paths.metrics)[0]["loss"])
    writer = metrics.MetricsWriter(paths, 1)
    writer.scalars(2, {"loss": float("nan")})
    writer.scalars(2, {"held_out_loss": 0.5})
    writer.scalars(3, {"loss": 0.25})
    writer.flush()
    lines = paths.metrics.read_text().splitlines()
    writer.close()

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    rows = [json.loads(line, parse_constant=refuse) for line in lines]
    assert [(row["step"], row.get("loss")) for row in rows] == [(1, None), (1, None), (2, None),
                                                               (3, 0.25)]  # fmt: skip
    read = metrics.read(paths.metrics)
    assert np.isnan(read[2]["loss"]) and read[2]["held_out_loss"] == 0.5


NUMBERS = {
    key: value
    for key, value in config_lib.flatten(Config()).items()
    if type(value) in (int, float, tuple)
}


def test_every_number_of_the_config_has_a_range():
    assert RANGES.keys() == NUMBERS.keys()
    config_lib.from_dict({"train": {"seed": 2**32 - 1}})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_number_of_the_config_may_be_infinite_or_nan(bad):
    for key in (key for key, value in NUMBERS.items() if type(value) is float):
        section, field = key.split(".")
        with pytest.raises(UserError, match=f"config.{key} must be .*, found -?(nan|inf)$"):
            config_lib.from_dict({section: {field: float(bad)}})
