"""The bits of a run: rows, curve and pictures, of weights drawn at random."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from test_quality import run_and_data  # noqa: F401

from ddpm_jax.data.sources import ArraySource
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import likelihoods as coding
from ddpm_jax.likelihood import bound

pytestmark = [
    pytest.mark.loose_promotion(reason="Linen's GroupNorm mixes ranks"),
    pytest.mark.quick_to_compile,
]


@pytest.fixture(scope="module")
def parts(run_and_data):  # noqa: F811
    run, dataset, _ = run_and_data
    return run, dataset


def evaluate(parts, **options):
    options = dict(variance="fixed_large", num_images=10, num_terms=4) | options
    return coding.evaluate(*parts, options.pop("split", "test"), **options)


def values(found):
    return {row.name: row.value for row in found.rows}


def test_the_rows_are_of_the_images_and_their_classes(parts):
    run, dataset = parts
    rows = values(evaluate(parts))
    measure = bound.make_bound(
        run.process, run.model.apply, kind=run.config.loss.kind, num_terms=4, clip_x_0=True
    )
    indices = np.sort(np.random.default_rng(0).permutation(len(dataset.test))[:10])
    images, labels = dataset.test.read(indices)
    whole = measure(run.params, jax.random.key(0), images, {"label": labels})
    assert rows["bits_per_dim_test"] == pytest.approx(bound.total(whole).mean(), rel=1e-5)
    assert rows["L_T_test"] == pytest.approx(whole.prior.mean(), rel=1e-5)
    assert rows["L_0_test"] == pytest.approx(whole.terms[0].mean(), rel=1e-5)
    parts_of_it = rows["rate_test"] + rows["L_0_test"]
    assert parts_of_it == pytest.approx(rows["bits_per_dim_test"], rel=1e-6)


@pytest.mark.slow
def test_the_size_of_a_batch_changes_nothing(parts):
    run, dataset = parts
    sample = run.config.sample
    small = run._replace(config=replace(run.config, sample=replace(sample, chunk_size=4)))
    for name, value in values(evaluate((small, dataset))).items():
        assert value == pytest.approx(values(evaluate(parts))[name], rel=1e-5)


def test_one_term_alone_does_not_pretend_to_know_L_0(parts):
    assert [row.name for row in evaluate(parts, num_terms=1).rows] == [
        "bits_per_dim_test",
        "L_T_test",
    ]


def test_an_unknown_variance_or_split_is_refused(parts):
    with pytest.raises(UserError, match="unknown variance 'large'"):
        evaluate(parts, variance="large")
    with pytest.raises(UserError, match="unknown split 'val'"):
        evaluate(parts, split="val")


def test_the_picture_ends_in_the_images_themselves(parts):
    run, dataset = parts
    labelled = coding.progressive_decoding(run, dataset, "test", num_images=2, num_frames=3)
    factor, gap = 32 // 8, 2
    picture = labelled[-(2 * 34 + gap) :]  # without the labels at the top
    assert labelled[: -len(picture)].min() < 100
    assert picture.shape == (2 * 34 + gap, 4 * 34 + gap, 1)
    images, _ = dataset.test.read(np.arange(2))
    shown = picture[gap : gap + 32, 3 * 34 + gap : 4 * 34][::factor, ::factor]
    np.testing.assert_array_equal(shown, images[0])


def test_the_picture_of_a_split_with_few_images_has_all_of_them(parts):
    run, dataset = parts
    few = replace(dataset, test=ArraySource(*dataset.test.read(np.arange(3))))
    shown = coding.progressive_decoding(run, few, "test", num_images=8, num_frames=2)
    three = coding.progressive_decoding(run, dataset, "test", num_images=3, num_frames=2)
    np.testing.assert_array_equal(shown, three)
