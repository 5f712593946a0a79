"""The measures that benchmarks compute themselves, and the configs that they train."""

import argparse
import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import fashion, fashion_quality
from benchmarks.measures import explained, exponent, own_ranks, rms, spread
from benchmarks.peers import networks, protocol
from benchmarks.peers.ours import rows_of
from benchmarks.peers.results import arrange, measured, restore, steps_per_second, verdict
from benchmarks.peers.results import table as results_table
from ddpm_jax import build
from ddpm_jax.build.loss import loss_fn
from ddpm_jax.config import ModelConfig, from_dict
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import table
from ddpm_jax.models.blocks import to_patches
from experiments import sigmoid_t700


def test_retrieval_ranks_of_known_distances():
    pictures = np.array([[0.0], [1.0], [3.0], [10.0]])
    samples = np.array([[0.1], [0.2], [2.2], [1.4]])
    # distances to the pictures: .1 .9 2.9 9.9;  .2 .8 ..;  2.2 1.2 .8 7.8;  1.4 .4 1.6 8.6
    assert own_ranks(samples, pictures).tolist() == [0, 1, 0, 3]


def test_retrieval_is_perfect_of_the_pictures_and_gains_nothing_from_ties():
    pictures = np.random.default_rng(0).normal(size=(6, 4, 4, 3))
    assert own_ranks(pictures, pictures).tolist() == [0] * 6
    assert own_ranks(np.zeros((6, 4)), np.ones((6, 4))).tolist() == [5] * 6


def test_retrieval_of_noise_is_at_chance():
    rng = np.random.default_rng(0)
    pictures = rng.normal(size=(64, 12))
    hits = [own_ranks(rng.normal(size=(64, 12)), pictures) < 5 for _ in range(50)]
    error = np.sqrt(5 / 64 * 59 / 64 / (50 * 64))
    assert abs(np.mean(hits) - 5 / 64) < 4 * error


def test_spread_is_the_mean_distance_of_pairs_of_a_class():
    labels = np.repeat(np.arange(10), 3)
    corners = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])  # distances 3, 4, 5
    features = np.concatenate([corners * (label + 1) + 100 * label for label in range(10)])
    np.testing.assert_allclose(spread(features, labels), 4.0 * np.arange(1, 11))


def test_rms_and_its_error():
    a = np.zeros((400, 2, 2, 1)) + np.random.default_rng(0).normal(size=(400, 1, 1, 1))
    root, error = rms(a, np.zeros_like(a))
    assert abs(root - 1.0) < 4 * error
    np.testing.assert_allclose(error, np.sqrt(2 / 400) / 2, rtol=0.2)  # var of z² is 2


def test_the_exponent_of_a_power_and_its_error():
    x = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    a, error = exponent(x, 3 * x**1.5)
    np.testing.assert_allclose([a, error], [1.5, 0.0], atol=1e-7)
    rng = np.random.default_rng(0)
    fits = [exponent(x, x * np.exp(0.1 * rng.normal(size=5))) for _ in range(400)]
    spread_of_fits = np.std([a for a, _ in fits])  # 0.1 / |log x - mean|
    np.testing.assert_allclose(spread_of_fits, 0.1 / (np.log(2) * np.sqrt(10)), rtol=0.15)
    # the mean of the estimated variances is unbiased
    estimated = np.sqrt(np.mean([error**2 for _, error in fits]))
    np.testing.assert_allclose(estimated, spread_of_fits, rtol=0.2)


def test_each_recipe_changes_the_small_config_in_what_it_says():
    base = fashion.recipe_base()
    for name, (changes, images) in fashion.RECIPES.items():
        config = fashion.changed(base, changes)
        build.model(config.model, (28, 28, 1), 10)
        loss_fn(config, build.process(config.process), None)
        assert (config == base) == (not changes) and images > 0, name
    with pytest.raises(UserError, match=r"model\.chanels"):
        fashion.changed(base, {"model.chanels": 8})


def test_the_lecture_differs_from_its_config_in_data_schedule_width_and_batch_only():
    lectured = from_dict(sigmoid_t700.get_config().to_dict())
    for schedule in ("sigmoid", "linear", "cosine", "quadratic"):
        config = fashion.lecture(schedule, 4000)
        process = build.process(config.process)
        assert process.num_timesteps == 700 and config.train.num_steps == 10 * 4000 // 32
        same = {name: getattr(lectured, name) for name in ("optim", "loss")}
        same["model"] = dataclasses.replace(lectured.model, channels=32)
        assert dataclasses.replace(config, **same) == config


def test_a_border_is_cut_off_and_other_pictures_are_refused(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)
    np.savez(tmp_path / "a.npz", images=np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0))))
    np.testing.assert_array_equal(fashion_quality.read_images(tmp_path / "a.npz"), images)
    np.savez(tmp_path / "b.npz", images=images / np.float32(255))
    with pytest.raises(UserError, match=r"b\.npz: images must be uint8 .* found float32"):
        fashion_quality.read_images(tmp_path / "b.npz")


def test_the_speed_of_a_peer_leaves_out_the_slow_start():
    start, later = {"step": 5, "seconds": 20.0}, {"step": 45, "seconds": 30.0}
    assert steps_per_second([start, later]) == 4.0
    assert steps_per_second([start]) == 0.25


@pytest.mark.parametrize("side", [28, 32])
def test_pictures_as_the_peers_see_them_and_back(side):
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)
    border = (side - 28) // 2
    for patch in (1, 2, 4):
        seen = arrange(images, side, patch)
        assert seen.shape == (3, side // patch, side // patch, patch**2)
        np.testing.assert_array_equal(
            seen, to_patches(jnp.asarray(arrange(images, side, 1)), patch)
        )
        back = restore(seen, patch)
        np.testing.assert_array_equal(back[:, border : border + 28, border : border + 28], images)
        assert back.sum() == images.sum()  # the border is black


def test_the_table_of_the_peers_has_each_metric_and_says_who_is_ahead():
    rows = [
        table.Row("fd10k_train", 8.0, 0.5, 10_000),
        table.Row("fd10k_train_min", 7.5, None, 10_000),
        table.Row("cs10k", 9.0, None, 10_000),
        table.Row("kd10k_test", None, None, 64, "needs more images"),
    ]
    ours = measured(rows)
    assert ours == {"fd_train": [8.0, 0.5], "kd_test": [None, None]}
    facts = dict(
        parameters=1234,
        sampler="ddim",
        images_per_second=[99.6, 80.0, 101.0],
        steps=2000,
        batch=16,
        preparation=3.0,
    )
    results = {
        "ours": {**facts, "metrics": ours},
        "a": {**facts, "metrics": {"fd_train": [10.0, None]}},
        "b": {**facts, "metrics": {"fd_train": [12.0, None]}},
        "none": {**facts, "metrics": {"fd_train": [None, None]}},
    }
    lines = results_table(results, {"fd_train": [2.0, None]}).splitlines()
    assert lines[2].startswith(
        "| ours | 1,234 | ddim | 100 [80, 101] | 2,000 x 16 | 3 s | 8 ± 0.5 | -- | -- | -- |"
    )
    assert [line.count("|") for line in lines] == [lines[0].count("|")] * 7
    assert "is 8, 20% below that of the best peer (a: 10)" in verdict(results)
    results["ours, training seed 1"] = {**facts, "metrics": {"fd_train": [16.0, None]}}
    assert "is 12, 20% above that of the best peer (a: 10)" in verdict(results)
    results["a, training seed 1"] = {**facts, "metrics": {"fd_train": [20.0, None]}}
    assert "is 12, 0% above that of the best peer (b: 12)" in verdict(results)
    assert "no comparison" in verdict({"ours": results["ours"], "none": results["none"]})


def test_a_peer_has_the_width_with_the_nearest_number_of_parameters():
    assert protocol.nearest({4: 100, 8: 400, 12: 900}, 199) == 4  # a ratio of 2 is the middle
    assert protocol.nearest({4: 100, 8: 400, 12: 900}, 201) == 8


@pytest.mark.parametrize(("seconds", "planned", "ended"), [(60.0, 3, 3), (0.0, 0, 1)])
def test_a_peer_trains_until_its_steps_or_its_time_are_over(tmp_path, seconds, planned, ended):
    args = argparse.Namespace(folder=tmp_path, seconds=seconds, steps=planned)
    curve = protocol.Curve(args, batch=16)
    losses = iter([1.0, 2.0, 6.0, 7.0])
    while not curve.add(next(losses)):
        pass
    assert not (tmp_path / "trained.json").exists()
    curve.finish(1234, ("numpy",))
    trained = json.loads((tmp_path / "trained.json").read_text())
    assert (trained["steps"], trained["parameters"], trained["batch"]) == (ended, 1234, 16)
    assert trained["versions"] == {"numpy": np.__version__}
    np.testing.assert_allclose(trained["images_per_second"], ended * 16 / trained["seconds"])
    (row,) = map(json.loads, (tmp_path / "curve.jsonl").read_text().splitlines())
    assert (row["step"], row["loss"]) == (ended, 3.0 if ended == 3 else 1.0)


def test_our_curve_has_the_time_of_the_steps_only(tmp_path):
    rows = [(5, 100.0), (10, 50.0), (11, 10.0)]  # step, images/s
    text = [
        json.dumps({"step": step, "time": 1e9, "loss": 0.5, "images_per_second": speed}) + "\n"
        for step, speed in rows
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(text))
    found = rows_of(tmp_path / "metrics.jsonl", batch=20)
    assert [row["seconds"] for row in found] == [1.0, 3.0, 5.0]
    assert rows_of(tmp_path / "none.jsonl", batch=20) == []


def test_the_options_of_a_network_come_as_tuples():
    assert protocol.network('{"dim_mults": [1, 2], "dim": 16}') == {"dim_mults": (1, 2), "dim": 16}


def test_our_network_in_the_options_of_the_peers():
    model = ModelConfig(channels=16, channel_multipliers=(1, 3), attention_resolutions=(7,))
    unet = networks.diffusers_unet(model, 14)
    assert unet["block_out_channels"] == [16, 48]
    assert unet["down_block_types"] == ["DownBlock2D", "AttnDownBlock2D"]
    assert unet["up_block_types"] == ["AttnUpBlock2D", "UpBlock2D"]  # from the small level up
    unet = networks.ddpm_pytorch_unet(model, 14)
    assert (unet["full_attn"], unet["attn_dim_head"]) == ((False, True), (16, 48))


def test_a_signal_ends_a_benchmark_and_is_no_result(monkeypatch, tmp_path):
    class Result:
        signal = 15

    monkeypatch.setattr(fashion.ddpm_jax, "train", lambda config, workdir: Result())
    with pytest.raises(SystemExit) as ended:
        fashion.measure(fashion.recipe_base(), tmp_path)
    assert ended.value.code == 143 and not list(tmp_path.iterdir())


def test_labels_explain_the_variance_between_their_means():
    values = np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0], [6.0, 1.0]])  # variance 5, within 1
    assert explained(values, np.array([0, 0, 1, 1])) == pytest.approx(0.8)
    assert explained(values, np.array([0, 1, 2, 3])) == 1.0
    assert explained(values, np.zeros(4, int)) == pytest.approx(0.0)
