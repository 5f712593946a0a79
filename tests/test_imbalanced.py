"""Classifiers of a long-tailed set: the arms by their formulas, the filter, and what they show."""

import dataclasses
import importlib
import math
import pathlib

import numpy as np
import pytest
from scipy import stats

from ddpm_jax import build
from ddpm_jax.config import from_dict
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import filtering, recognition
from ddpm_jax.evaluation.distances import Estimate
from ddpm_jax.figures.curves import recall_by_class
from ddpm_jax.training import arms
from ddpm_jax.training.arms import ARMS, Labelled, Settings
from ddpm_jax.training.recognition import Examples, draw, make_recogniser, shifted
from experiments import fashion_imbalanced

pytestmark = pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks")


def test_class_balanced_weights_are_the_inverse_effective_numbers():
    counts = np.array([1000, 10, 1])
    # Effective number: 1 + β + ... + β^(n-1), as a sum instead of (1 - β^n) / (1 - β)
    effective = np.array([sum(0.9**i for i in range(n)) for n in counts])
    found = arms.class_balanced_weights(counts, 0.9)
    np.testing.assert_allclose(found, 3 / effective / (1 / effective).sum(), rtol=1e-12)
    np.testing.assert_allclose(arms.class_balanced_weights(counts, 0.0), 1.0)
    inverse = 3 / counts / (1 / counts).sum()
    np.testing.assert_allclose(arms.class_balanced_weights(counts, 1 - 1e-9), inverse, rtol=1e-5)


# Three images x, drawn at random; two classes of priors 0.9 and 0.1, and p(x | y) as below.
OF_CLASS = np.array([[540, 270, 90], [10, 30, 60]])
PATTERNS = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
TOY = Labelled(
    PATTERNS[np.repeat([0, 1, 2, 0, 1, 2], OF_CLASS.ravel())],
    np.repeat([0, 1], OF_CLASS.sum(axis=1)),
)


@pytest.fixture(scope="module")
def toy():
    return make_recogniser(
        2, (8, 8, 1), channels=16, num_steps=150, batch_size=64, learning_rate=1e-2
    )


def toy_examples(name, **changes):
    return arms.examples(ARMS[name], TOY, None, 2, False, Settings(**changes))


PLAIN = np.log(OF_CLASS[1] / OF_CLASS[0])  # log p(y=1 | x) / p(y=0 | x)
BALANCED = PLAIN + math.log(9)  # with equal priors: log p(x | 1) / p(x | 0)


@pytest.mark.slow  # compiles for five seconds
@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("nothing", {}, PLAIN),
        ("oversampling", {}, BALANCED),
        ("reweighting", {"beta": 1 - 1e-6}, BALANCED),
        ("logit_adjustment", {}, BALANCED),
        ("logit_adjustment", {"tau": 0.5}, PLAIN + math.log(9) / 2),
    ],
)
def test_the_logits_tend_to_the_bayes_optimal_ones_of_the_arm(toy, name, changes, expected):
    weights = toy.train(toy_examples(name, **changes), 0)
    logits, features = toy.predict(weights, PATTERNS)
    assert features.shape == (3, 64)
    found = logits[:, 1] - logits[:, 0]
    np.testing.assert_allclose(found, expected, atol=0.5)
    # The decision at the third image, 60 of class 1 and 90 of class 0, turns.
    if changes == {}:
        assert (found[2] > 0) == (name != "nothing")


@pytest.mark.slow
def test_trainings_of_one_seed_are_equal_and_other_seeds_differ(toy):
    found = [toy.train(toy_examples("nothing"), seed) for seed in (0, 0, 1)]
    for a, b in zip(found[0], found[1], strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(found[0], found[2], strict=True))


@pytest.mark.slow
def test_predictions_do_not_depend_on_the_chunk(toy):
    weights = toy.train(toy_examples("nothing"), 1)
    images = TOY.images[:600]  # more than a chunk
    for whole, part in zip(
        toy.predict(weights, images), toy.predict(weights, images[510:]), strict=True
    ):
        assert len(whole) == 600
        np.testing.assert_allclose(whole[510:], part, atol=1e-5)


REAL = Labelled(np.zeros((7, 2, 2, 1), np.uint8), np.array([0, 0, 0, 0, 1, 1, 2]))
FAKE = Labelled(np.ones((5, 2, 2, 1), np.uint8), np.array([1, 1, 2, 2, 2]))


def test_the_missing_labels_fill_up_every_class():
    labels = arms.missing(REAL.labels, 3)
    np.testing.assert_array_equal(labels, FAKE.labels)
    counts = np.bincount(np.concatenate([REAL.labels, labels]))
    assert counts.tolist() == [4, 4, 4]


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_draws_and_weights_as_its_row_says(name):
    settings = Settings(beta=0.5, tau=2.0, synthetic_weight=0.25, max_shift=3)
    fake = FAKE if ARMS[name].synthetic else None
    found = arms.examples(ARMS[name], REAL, fake, 3, True, settings)
    of_class = np.bincount(found.labels, found.probability)
    balanced = name.startswith(("oversampling", "synthetic"))
    np.testing.assert_allclose(of_class, [1 / 3] * 3 if balanced else [4 / 7, 2 / 7, 1 / 7])
    assert len(found.labels) == len(found.images) == (12 if fake else 7)
    is_fake = found.images[:, 0, 0, 0] == 1
    expected = np.where(is_fake & (name == "synthetic_weighted"), 0.25, 1.0)
    if name == "synthetic_weighted":  # the means of the classes, 4 + 0, 2 + 2 and 1 + 3, are 1
        expected /= np.array([1.0, 2.5 / 4, 1.75 / 4])[found.labels]
    if name == "reweighting":  # 1 / (1 + 1/2 + ...): 8/15, 2/3, 1, scaled to 3
        expected = np.array([8 / 15, 2 / 3, 1])[found.labels] * 3 / (8 / 15 + 2 / 3 + 1)
    np.testing.assert_allclose(found.weight, expected)
    prior = [4 / 7, 2 / 7, 1 / 7] if "adjustment" in name else [1, 1, 1]
    np.testing.assert_allclose(found.adjustment, 2 * np.log(prior))
    assert (found.max_shift, found.flip) == ((3, True) if "augment" in name else (0, False))


def test_only_augmentation_mirrors_and_only_if_the_data_may_be_flipped():
    found = arms.examples(ARMS["augmentation"], REAL, None, 3, False, Settings())
    assert found.max_shift == 2 and not found.flip


def test_the_filtered_arm_draws_each_class_equally_if_a_class_has_no_synthetic_image():
    none = Labelled(FAKE.images[:2], FAKE.labels[:2])
    found = arms.examples(ARMS["synthetic_filtered"], REAL, none, 3, False, Settings())
    np.testing.assert_allclose(np.bincount(found.labels, found.probability), 1 / 3)


def test_images_are_shifted_and_their_edges_repeated():
    image = np.arange(9, dtype=np.uint8).reshape(1, 3, 3, 1).repeat(3, axis=0)
    found = shifted(image, np.array([1, 0, -2]), np.array([0, -1, 0]))[..., 0]
    np.testing.assert_array_equal(found[0], [[0, 1, 2], [0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(found[1], [[1, 2, 2], [4, 5, 5], [7, 8, 8]])
    np.testing.assert_array_equal(found[2], [[6, 7, 8]] * 3)


def test_a_batch_is_a_function_of_seed_and_step_and_follows_the_probabilities():
    n = 8
    images = np.random.default_rng(0).integers(0, 256, (n, 6, 6, 1), np.uint8)
    probability = np.arange(n) / np.arange(n).sum()
    plain = Examples(images, np.arange(n), probability, np.arange(n) / 2, np.zeros(n))
    first, again, other = (draw(plain, 5000, 0, step) for step in (3, 3, 4))
    np.testing.assert_array_equal(first["label"], again["label"])
    assert (first["label"] != other["label"]).any()
    assert (first["label"] != draw(plain, 5000, 1, 3)["label"]).any()
    np.testing.assert_array_equal(first["image"], images[first["label"]])
    np.testing.assert_array_equal(first["weight"], first["label"] / 2)
    share = np.bincount(first["label"], minlength=n) / 5000
    error = np.sqrt(probability * (1 - probability) / 5000)
    assert (np.abs(share - probability) <= 5 * error).all()

    moved = draw(plain._replace(max_shift=2, flip=True), 5000, 0, 3)
    np.testing.assert_array_equal(moved["label"], first["label"])  # arms of one seed are paired
    options = {
        shifted(turned, np.array([down]), np.array([right])).tobytes()
        for turned in (images[5:6], images[5:6, :, ::-1])
        for down in range(-2, 3)
        for right in range(-2, 3)
    }
    assert {image.tobytes() for image in moved["image"][moved["label"] == 5]} == options
    np.testing.assert_array_equal(plain.images, images)  # drawn as copies


def test_validation_is_every_nth_image_of_each_class_and_at_least_one():
    labels = np.array([0] * 10 + [1] * 3 + [2] * 2)
    whole = Labelled(np.arange(15, dtype=np.uint8)[:, None, None, None], labels)
    fit, validation = arms.divide(whole, 5, ("a", "b", "c"))
    assert np.bincount(validation.labels).tolist() == [2, 1, 1]
    assert np.bincount(fit.labels).tolist() == [8, 2, 1]
    both = np.concatenate([fit.images, validation.images]).ravel()
    assert sorted(both) == list(range(15))
    for part in (fit, validation):
        np.testing.assert_array_equal(labels[part.images.ravel()], part.labels)
    with pytest.raises(
        UserError, match=r"class 'c' has too few images \(1\): all would be for val"
    ):
        arms.divide(Labelled(whole.images[:14], labels[:14]), 5, ("a", "b", "c"))


def test_a_balanced_quantile_gives_every_class_the_same_weight():
    values = np.array([0.1, 0.2, 0.3, 0.4, 0.9, 0.5])
    labels = np.array([0, 0, 0, 0, 1, 1])  # weights 1/8 and 1/4
    expected = {0.0: 0.1, 0.124: 0.1, 0.125: 0.2, 0.5: 0.5, 0.74: 0.5, 0.75: 0.9, 0.99: 0.9}
    for fraction, value in expected.items():
        assert filtering.balanced_quantile(values, labels, fraction) == value, fraction
        rejected = (values < value) @ np.array([1 / 8] * 4 + [1 / 4] * 2)
        assert rejected <= fraction + 1e-9


def test_the_filter_on_known_numbers():
    logits = np.log([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    features = np.array([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]])
    real, real_labels = np.array([[0.0, 1.0], [0.0, 0.0], [3.0, 0.0]]), np.array([0, 1, 1])
    judged = filtering.judge(logits, features, np.array([0, 1, 1]), real, real_labels)
    np.testing.assert_allclose(judged.confidence, [0.9, 0.8, 0.4], rtol=1e-6)
    np.testing.assert_allclose(judged.distance, [1.0, 4.0, 1.0])  # to those of the own class only
    limits = filtering.Thresholds(0.5, 2.0)
    assert filtering.passes(judged, limits).tolist() == [True, False, False]
    edge = filtering.Thresholds(float(judged.confidence[1]), 4.0)
    assert filtering.passes(judged, edge).tolist() == [True, True, False]

    held_out = filtering.Judged(
        np.array([0.2, 0.4, 0.6, 0.8]), np.array([1.0, 2.0, 3.0, 4.0]), np.array([0, 0, 1, 1])
    )
    assert filtering.thresholds(held_out, 0.0) == filtering.Thresholds(0.2, 4.0)
    assert filtering.thresholds(held_out, 0.25) == filtering.Thresholds(0.4, 3.0)


def test_the_error_of_a_balanced_accuracy_is_that_of_draws_of_images():
    truth, counts = np.array([0.9, 0.7, 0.5]), np.array([400, 100, 30])
    draws = np.random.default_rng(0).binomial(counts, truth, (4000, 3)) / counts
    found = recognition.sampling_error(truth, counts)
    assert found == pytest.approx(draws.mean(axis=1).std(), rel=0.05)
    # Two images that are both right do not make a sure class.
    assert recognition.sampling_error(np.ones(1), np.array([2])) == pytest.approx(
        math.sqrt(3 / 16 / 2)
    )


def test_the_first_option_within_one_error_of_the_best_is_chosen():
    for scores, chosen in (
        ([(0.70, 0.05), (0.74, 0.05)], 0),
        ([(0.70, 0.05), (0.76, 0.05)], 1),
        ([(0.70, 0.05), (0.76, 0.05), (0.80, 0.05)], 1),
        ([(0.80, 0.05), (0.70, 0.05)], 0),
    ):
        assert recognition.choose([Estimate(*score) for score in scores]) == chosen


def test_recalls_and_their_thirds():
    labels, predicted = np.array([0, 0, 0, 0, 1, 1, 2]), np.array([0, 0, 0, 2, 0, 1, 0])
    found = recognition.recalls(labels, predicted, 3)
    np.testing.assert_allclose(found, [0.75, 0.5, 0.0])
    sizes = {name: len(classes) for name, classes in recognition.thirds(10).items()}
    assert sizes == {"most frequent": 4, "middle": 3, "rarest": 3}
    summary = recognition.summarise(np.array([[1.0, 0.5, 0.0], [0.8, 0.3, 0.4]]))
    np.testing.assert_allclose(summary.accuracy, (0.5, 0.0), atol=1e-12)
    np.testing.assert_allclose(summary.thirds["rarest"], (0.2, 0.2))
    np.testing.assert_allclose(summary.recalls[0], (0.9, 0.1))


def test_a_paired_difference_has_the_error_of_the_differences():
    seeds = np.array([0.0, 10.0, 20.0, 30.0])  # what the two arms share
    a, b = seeds + [1.0, 2.0, 1.0, 2.0], seeds
    found = recognition.paired(a, b)
    assert found.value == pytest.approx(1.5)
    assert found.error == pytest.approx(math.sqrt(1 / 3) / 2)  # of 1, 2, 1, 2
    p = stats.ttest_rel(a, b).pvalue
    assert p < 0.05 and recognition.is_clear(found, 4)
    # The t of 5 seeds is 2.776.
    assert recognition.is_clear(Estimate(-2.78, 1.0), 5)
    assert not recognition.is_clear(Estimate(-2.77, 1.0), 5)


def recalls(*rows):
    return np.array(rows)


@pytest.mark.parametrize(
    ("shift", "words"),
    [
        ((0.0, 0.0, 0.3), "synthetic images helped (+10.0 ± 0.2 points)"),
        ((0.0, 0.0, -0.3), "synthetic images hurt (-10.0 ± 0.2 points)"),
        ((0.0, 0.0, 0.003), "no clear difference (+0.1 ± 0.2 points)"),
    ],
)
def test_the_verdict_says_what_the_differences_show(shift, words):
    other = recalls([0.9, 0.5, 0.3], [0.8, 0.6, 0.4], [0.7, 0.5, 0.3])
    noise = recalls([0.009, 0.0, 0.0], [-0.009, 0.0, 0.0], [0.0, 0.0, 0.0])
    found = {"nothing": other - 0.2, "b": other, "s": other + noise + shift, "t": other - 0.5}
    text = recognition.verdict(found, ["s", "t"], ["nothing", "b"])
    start = "s, the best arm with synthetic images, against b, the best arm without: "
    assert text.startswith(start + words), text
    assert "middle classes: no clear difference (+0.0 ± 0.0 points); rarest classes: " in text
    one = recognition.verdict({k: v[:1] for k, v in found.items()}, ["s"], ["b"])
    assert "one seed cannot show a difference" in one and "±" not in one


def test_the_figure_orders_the_classes_by_their_counts():
    nan = float("nan")  # of one seed
    lines = {"a": [(0.1, 0.01), (0.2, 0.02), (0.3, 0.03)], "b": [(0.4, nan)] * 3}
    (axes,) = recall_by_class(lines, ("x", "y", "z"), (5, 50, 20)).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["y\n50", "z\n20", "x\n5"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "b"]
    np.testing.assert_allclose(axes.images[0].get_array(), [[20, 30, 10], [40, 40, 40]])
    said = {text.get_position(): text.get_text() for text in axes.texts}
    assert said[0, 0] == "20 ± 2" and said[2, 0] == "10 ± 1" and said[1, 1] == "40"


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"num_seed": 3}, "unknown config key 'arms.num_seed'; did you mean 'arms.num_seeds'"),
        ({"num_seeds": 0}, "config.arms.num_seeds must be at least 1, found 0"),
        ({"beta": 1.0}, r"config.arms.beta must be in \[0, 1\), found 1.0"),
        ({"guidance": (0.0, -1.0)}, "each entry must be at least 0, found -1.0"),
        ({"guidance": ("x",)}, r"arms.guidance must be a tuple of numbers such as \(0.5, 1.0\)"),
        ({"reject": ()}, "config.arms.reject is empty; name at least one number"),
    ],
)
def test_settings_are_checked_where_they_are_read(mapping, message):
    with pytest.raises(UserError, match=message):
        arms.from_dict(mapping)


def test_every_number_of_the_settings_has_a_range():
    fields = {f"arms.{field.name}" for field in dataclasses.fields(Settings)}
    assert arms.RANGES.keys() == fields
    assert arms.from_dict({"guidance": [0, 2]}).guidance == (0.0, 2.0)


@pytest.mark.parametrize("variant", ["", "10", "digits", "smoke"])
def test_the_config_has_two_runs_of_the_same_data(variant):
    content = fashion_imbalanced.get_config(variant)
    assert set(content) == {"data", "autoencoder", "diffusion", "arms"}
    runs = {
        name: from_dict({**content[name], "data": content.data})
        for name in ("autoencoder", "diffusion")
    }
    assert [run.model.name for run in runs.values()] == ["autoencoder", "unet"]
    data = runs["diffusion"].data
    assert data.imbalance == {"": 100.0, "10": 10.0, "digits": 10.0, "smoke": 4.0}[variant]
    side = 8 if data.name == "digits" else 32
    assert data.name == ("digits" if variant in ("digits", "smoke") else "fashion_mnist")
    encoder = build.autoencoder(runs["autoencoder"].model, (side, side, 1))
    assert encoder.latent_shape == ((4, 4, 4) if side == 8 else (8, 8, 4))
    build.model(runs["diffusion"].model, encoder.latent_shape, 10)
    assert arms.from_dict(content.arms) == Settings() or variant == "smoke"


def test_an_unknown_variant_of_the_config_is_refused():
    module = importlib.import_module("experiments.fashion_imbalanced")
    assert pathlib.Path(module.__file__).name == "fashion_imbalanced.py"
    with pytest.raises(UserError, match="allowed: 10, digits, smoke, or no variant"):
        module.get_config("1000")
