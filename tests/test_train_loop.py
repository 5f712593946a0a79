"""The loop around the train step, called from code: `ddpm_jax.train`, twice on a tiny network."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from tiny import small

import ddpm_jax
from ddpm_jax import data
from ddpm_jax.config import from_dict
from ddpm_jax.errors import UserError
from ddpm_jax.runs import metrics
from ddpm_jax.training.parts import build_parts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Sharding info not provided"),
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
    pytest.mark.quick_to_compile,
]

RATE = 1e-2
CONFIG = small(
    process__num_timesteps=4,
    model__channels=4,
    model__num_groups=2,
    model__dropout=0.1,
    optim=dict(warmup_steps=3, learning_rate=RATE, ema_decay=0.5, ema_warmup=False),
    train=dict(num_steps=4, batch_size=8, log_every=2, num_samples=2),
    eval=dict(every=4, num_examples=20),
    mesh=dict(data=1),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The results and rows of two runs: from a mapping, and with steps fused from a ConfigDict."""
    root, found = tmp_path_factory.mktemp("runs"), []
    fused = ml_collections.ConfigDict(CONFIG)
    fused.train.steps_per_call = 2
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for i, config in enumerate((CONFIG, fused)):
            result = ddpm_jax.train(config, root / str(i))
            found.append((result, metrics.read(root / str(i) / "metrics.jsonl")))
    return found


def test_train_is_a_name_of_the_package_and_gives_the_last_state(runs, tmp_path):
    for result, _ in runs:
        assert result.signal is None and int(result.state.step) == 4
    assert {"load", "train"} <= set(dir(ddpm_jax)) & set(ddpm_jax.__all__)
    with pytest.raises(UserError, match="unknown config key 'train.num_step'; did you mean"):
        ddpm_jax.train({"train": {"num_step": 1}}, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_fused_steps_make_the_same_run(runs):
    (single, single_rows), (fused, fused_rows) = runs
    for a, b in zip(jax.tree.leaves(single.state), jax.tree.leaves(fused.state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)
    assert [row["step"] for row in single_rows] == [2, 4]  # the held-out loss is in the second
    assert len(fused_rows) == 2 and {"loss", "held_out_loss"} <= fused_rows[1].keys()
    for a, b in zip(single_rows, fused_rows, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"time", "images_per_second"}:
            assert a[name] == pytest.approx(b[name], rel=1e-3), name


def test_the_logged_rate_is_the_one_that_the_step_took(runs):
    rows = {row["step"]: row for row in runs[0][1] if "loss" in row}
    assert rows[2]["learning_rate"] == pytest.approx(RATE / 3)  # of the steps 0, 1/3, 2/3, 1, ...
    assert rows[4]["learning_rate"] == pytest.approx(RATE)


def test_the_held_out_loss_is_that_of_the_averaged_weights(runs):
    result, rows = runs[0]
    logged = [row["held_out_loss"] for row in rows if "held_out_loss" in row]
    assert len(logged) == 1 and result.figures == {"held_out_loss": logged[0]}
    config = from_dict(CONFIG)
    dataset = data.open_dataset(config.data)
    eval_step = jax.jit(build_parts(config, dataset.image_shape, 10).eval_step)

    def by_hand(params):
        losses = []
        for i in range(3):
            images, labels = dataset.test.read(np.arange(8 * i, 8 * i + 8) % 20)
            batch = {"image": jnp.asarray(images), "label": jnp.asarray(labels)}
            losses.append(eval_step(params, batch, i)["held_out_loss"])
        return float(np.concatenate(losses)[:20].mean())

    assert logged[0] == pytest.approx(by_hand(result.state.ema_params), rel=1e-4)
    assert abs(logged[0] - by_hand(result.state.params)) > 1e-3 * logged[0]
