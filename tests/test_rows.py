"""Rows of a table: their names, what too few images leave out, and what several seeds give."""

import re

import numpy as np
import pytest

from ddpm_jax.evaluation import distances, manifolds, memorisation
from ddpm_jax.evaluation import table as rows
from ddpm_jax.evaluation.distances import Estimate
from ddpm_jax.evaluation.moments import frechet_distance, moments
from ddpm_jax.evaluation.table import Row

RNG = np.random.default_rng(0)
REFERENCE = RNG.normal(size=(1500, 6)).astype(np.float32)
FAKE = (RNG.normal(size=(1000, 6)) + 0.5).astype(np.float32)
HEAD = RNG.normal(size=(6, 4)).astype(np.float32), RNG.normal(size=4).astype(np.float32)


def compare(features, network="inception", split="train", reference=REFERENCE):
    return rows.compare(
        features,
        moments(reference),
        reference,
        network=network,
        split=split,
        head=HEAD if features.shape[1] == 6 else None,
    )


def test_names_hold_n_and_split_and_only_inceptions_are_fid():
    assert rows.short(50_000) == "50k" and rows.short(1634) == "1634" and rows.short(200) == "200"
    assert rows.frechet_name("inception", 50_000, "train") == "fid50k_train"
    assert rows.frechet_name("classifier", 2_000, "test") == "fd2k_test"
    inception = compare(FAKE)
    assert list(inception)[:3] == ["fid1k_train", "kid1k_train", "is1k"]
    assert {"precision1k_train", "recall1k_train", "density1k_train"} < inception.keys()
    other = compare(FAKE[:200], "classifier", "test")
    assert list(other)[:3] == ["fd200_test", "kd200_test", "cs200"]


def test_values_are_those_of_the_distances():
    found = compare(FAKE)
    assert found["fid1k_train"].value == frechet_distance(moments(FAKE), moments(REFERENCE))
    logits = FAKE @ HEAD[0] + HEAD[1]
    assert found["is1k"] == distances.inception_score(logits)
    expected = distances.kernel_distance(FAKE, REFERENCE, subset_size=500)
    assert found["kid1k_train"] == expected
    # of 1,500 reals as many are taken as there are fakes
    order = np.random.default_rng(0).permutation(1500)[:1000]
    precision = manifolds.compare(REFERENCE[order], FAKE).precision
    assert found["precision1k_train"].value == precision


def test_a_set_with_itself_is_perfect():
    found = compare(REFERENCE[:1000], reference=REFERENCE[:1000])
    assert found["fid1k_train"].value < 1e-12
    assert found["precision1k_train"].value == found["recall1k_train"].value == 1.0
    assert found["coverage1k_train"].value == 1.0
    assert abs(found["kid1k_train"].value) < 0.1 * compare(FAKE)["kid1k_train"].value


@pytest.mark.parametrize(
    ("n", "given"),
    [(6, ""), (7, "fid"), (99, "fid"), (100, "fid kid recall"), (999, "fid kid recall")],
)
def test_too_few_images_for_a_number_leave_it_out_and_say_so(n, given):
    found = compare(FAKE[:n])
    for name in ("fid", "kid", "recall"):
        assert isinstance(found[f"{name}{n}_train"], Estimate) == (name in given)
    assert found[f"is{n}"] == "needs at least 1000 images"
    if n == 6:
        assert found["fid6_train"] == "needs at least 7 images in each set for 6 features"
        row = rows.over_seeds([found], 6)[0]
        assert row == Row("fid6_train", None, None, 6, found["fid6_train"])


def test_too_few_images_of_the_data_leave_out_the_frechet_distance_alone():
    found = compare(np.tile(FAKE, 30)[:200], reference=np.tile(REFERENCE, 30)[:150])
    assert found["fid200_train"] == "needs at least 181 images in each set for 180 features"
    assert isinstance(found["kid200_train"], Estimate)


def test_several_seeds_give_mean_minimum_and_standard_error():
    measured = [
        {"fd9_train": Estimate(v, np.nan), "kd9": Estimate(-v, 0.5)} for v in (1.0, 2.0, 6.0)
    ]
    error = np.std([1, 2, 6], ddof=1) / np.sqrt(3)
    assert rows.over_seeds(measured, 9) == [
        Row("fd9_train", 3.0, pytest.approx(error), 9),
        Row("fd9_train_min", 1.0, None, 9, "the least of 3 seeds"),
        Row("kd9", -3.0, pytest.approx(error), 9),
    ]
    assert rows.over_seeds(measured[:1], 9) == [
        Row("fd9_train", 1.0, None, 9),
        Row("kd9", -1.0, 0.5, 9),  # its own
    ]


def test_every_metric_is_explained_and_keeps_its_own_note():
    fields = [*manifolds.Manifolds._fields, *memorisation.Memorisation._fields]
    names = [*compare(FAKE), *compare(FAKE, "classifier"), *(f"{field}1634" for field in fields)]
    for row in rows.explained([Row(name, 1.0, None, 1000, "note") for name in names]):
        assert row.note.startswith("note; ") and re.search("best|worst", row.note), row
    assert rows.explained([Row("L_0_test", 1.0, None, 9, "bits/dim")])[0].note == "bits/dim"
