"""The quality of samples while training: logged, the best kept, and nothing changed by it."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_training import abstract, assert_equal, make_parts
from tiny import make_config

from ddpm_jax import data
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import references
from ddpm_jax.evaluation.features import make_features
from ddpm_jax.evaluation.moments import frechet_distance, moments
from ddpm_jax.pixels import to_uint8
from ddpm_jax.runs import metrics
from ddpm_jax.runs.checkpoint import Checkpoints, restore_ema
from ddpm_jax.runs.state import TrainState
from ddpm_jax.training import loop
from ddpm_jax.training.loop import train
from ddpm_jax.training.monitor import make_monitor

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Sharding info not provided"),
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
    pytest.mark.quick_to_compile,
]


WEIGHTS = {"w": jnp.ones(3)}
SMALL_STATE = TrainState(jnp.int32(0), WEIGHTS, WEIGHTS, {"m": jnp.zeros(3)})


def steps_in(directory):
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit())


@pytest.fixture
def scored(tmp_path):
    """A directory to which steps 1 to 5 were saved with scores; the best is the second."""
    state = SMALL_STATE
    directory = tmp_path / "run" / "checkpoints"
    checkpoints = Checkpoints(directory, keep_last=1, keep_every=0, keep_best=True)
    for step, score in enumerate((3.0, 1.0, np.nan, 2.0, None), start=1):
        score = None if score is None else {"fd1k_train": score}
        checkpoints.save(dataclasses.replace(state, step=jnp.int32(step)), score=score, wait=True)
    assert checkpoints.best() == (2, {"fd1k_train": 1.0})
    checkpoints.close()
    return directory, state


def test_the_best_and_the_latest_are_kept_and_known_when_opened_again(scored):
    directory, state = scored
    assert steps_in(directory) == [2, 5]
    checkpoints = Checkpoints(directory, keep_last=1, keep_every=0, keep_best=True)
    assert int(checkpoints.restore_latest(abstract(state)).step) == 5
    assert checkpoints.best() == (2, {"fd1k_train": 1.0})
    for step, score in ((6, 1.5), (7, 0.5), (8, 0.7)):
        new = dataclasses.replace(state, step=jnp.int32(step))
        checkpoints.save(new, score={"fd1k_train": score}, wait=True)
        assert steps_in(directory) == sorted({2 if step == 6 else 7, step})
    checkpoints.close()
    assert restore_ema(directory, abstract(state.ema_params))[0] == 8  # the newest, not the best


def test_without_scores_the_latest_alone_is_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=1, keep_every=0, keep_best=True)
    for step in (1, 2, 3):
        checkpoints.save(dataclasses.replace(SMALL_STATE, step=jnp.int32(step)), wait=True)
    assert checkpoints.best() is None
    checkpoints.close()
    assert steps_in(tmp_path) == [3]


def test_a_damaged_score_is_dropped_and_its_checkpoint_stays(scored, caplog):
    directory, state = scored
    path = directory / "2" / "metrics" / "metrics"
    path.write_text(path.read_text()[:-4])
    with caplog.at_level(logging.WARNING, "ddpm_jax"):
        checkpoints = Checkpoints(directory, keep_last=1, keep_every=0, keep_best=True)
    assert "score" in caplog.text and checkpoints.best() is None
    assert int(checkpoints.restore_latest(abstract(state)).step) == 5
    checkpoints.close()
    assert steps_in(directory) == [2, 5]


def monitored(tmp_path, **changes):
    options = dict(data__data_dir=str(tmp_path / "data"), eval__num_samples=80) | changes
    return make_config(eval__num_steps=2, train__checkpoint_every=100, **options)


def test_a_run_with_a_monitor_has_the_same_weights_and_goes_on_the_same(tmp_path):
    """Stopped after two steps of four and resumed, with the monitor; straight, without."""
    watched = monitored(tmp_path, eval__samples_every=1, train__keep_last=1)
    train(dataclasses.replace(watched, train=dataclasses.replace(watched.train, num_steps=2)),
          tmp_path / "watched")  # fmt: skip
    state = train(watched, tmp_path / "watched").state
    assert_equal(state, train(monitored(tmp_path), tmp_path / "plain").state)

    rows = metrics.read(tmp_path / "watched" / "metrics.jsonl")
    scores = {row["step"]: row["fd80_train"] for row in rows if "fd80_train" in row}
    assert list(scores) == [1, 2, 3, 4] and len(set(scores.values())) == 4
    best = min(scores, key=scores.get)
    assert steps_in(tmp_path / "watched" / "checkpoints") == sorted({best, 4})
    assert not any("fd80_train" in row for row in metrics.read(tmp_path / "plain/metrics.jsonl"))


def test_the_score_is_the_distance_of_the_fast_samples(tmp_path):
    config = monitored(tmp_path, eval__samples_every=1, sample__chunk_size=32)
    dataset = data.open_dataset(config.data)
    parts, _ = make_parts(config)
    params = jax.jit(parts.init)().ema_params
    (name, found), *_ = make_monitor(config, dataset, {}, parts)(params).items()
    assert name == "fd80_train"

    images = np.asarray(
        make_parts(make_config(sample__sampler="dpm_solver_pp_2m", sample__num_steps=2,
                               sample__timesteps="trailing"))[0]
        .draw(params, parts.sample_key, 80)
    )  # fmt: skip
    network, _ = references.classifier(config.data, dataset)
    features = make_features(network)
    real, _ = dataset.train.read(np.arange(len(dataset.train)))
    expected = frechet_distance(moments(features(to_uint8(images))), moments(features(real)))
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_run_keeps_its_best_and_its_latest(tmp_path, monkeypatch, capsys):
    """The scores are given here: the first at step 1, and so on."""
    given = iter([5.0, 1.0, 2.0, 3.0])
    monkeypatch.setattr(loop, "make_monitor", lambda *_: lambda params: {"fd": next(given)})
    config = monitored(tmp_path, eval__samples_every=1, train__keep_last=1)
    train(config, tmp_path / "run")
    assert steps_in(tmp_path / "run" / "checkpoints") == [2, 4]
    assert "checkpoints/2 ({'fd': 1.0})" in capsys.readouterr().out


def test_what_cannot_be_judged_is_refused_before_anything_is_trained(tmp_path):
    config = monitored(tmp_path, eval__samples_every=1, eval__num_samples=64)
    dataset = data.open_dataset(config.data)
    parts, _ = make_parts(config)
    with pytest.raises(UserError, match=r"at least 65 images, found 64 samples \(eval.num_samples"):
        make_monitor(config, dataset, {}, parts)
    with pytest.raises(UserError, match="eval.samples_every is 1, but the data have no labels"):
        make_monitor(config, dataclasses.replace(dataset, num_classes=0), {}, parts)
    assert make_monitor(make_config(), dataset, {}, parts) is None
