"""From images to FID, KID, Inception score, precision and recall, side by side with torch-fidelity.

Both start from the same images and the same random weights. A Fréchet distance in 2048 features of
32 images would be of singular covariances, which ours refuses; it is held in the first 16.
"""

import fidelity
import jax
import numpy as np
import pytest

import ddpm_jax.evaluation.inception
from ddpm_jax.evaluation import distances, manifolds
from ddpm_jax.evaluation.features import make_features
from ddpm_jax.evaluation.moments import frechet_distance, moments

pytestmark = pytest.mark.slow

N, WIDTH = 32, 16


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """(torch-fidelity's, ours) of fakes and reals: pool [N, 2048] and logits [N, 1008] of each."""
    path = tmp_path_factory.mktemp("fidelity") / "random.pth"
    extractor = fidelity.extractor(path)
    network = ddpm_jax.evaluation.inception.load(str(path.parent), str(path))
    ours = make_features(network, batch_size=16, devices=jax.local_devices()[:1])
    weights, bias = network.head
    found = {}
    # The reals are a third duller, and some are fakes too, so that neither precision is 0 nor 1
    fakes, others = fidelity.images(6, N), fidelity.images(7, N) // 3 * 2
    for name, images in (
        ("fake", fakes),
        ("real", np.concatenate([others[: N // 2], fakes[: N // 2]])),
    ):
        pool = ours(images)
        found[name] = extractor(fidelity.channels_first(images)), (pool, pool @ weights + bias)
    return found


def test_frechet_distance(features):
    theirs = fidelity.module("metric_fid")
    sides = [features[name] for name in ("fake", "real")]
    statistics = [theirs.fid_features_to_statistics(t[0][:, :WIDTH]) for t, _ in sides]
    expected = theirs.fid_statistics_to_metric(*statistics, verbose=False)
    found = frechet_distance(*(moments(ours[0][:, :WIDTH]) for _, ours in sides))
    assert found == pytest.approx(expected["frechet_inception_distance"], rel=1e-3)
    assert found > 0.01


def test_kernel_distance(features):
    """On all images at once, as the two draw their subsets differently."""
    theirs = fidelity.module("metric_kid")
    (fake, our_fake), (real, our_real) = features["fake"], features["real"]
    sizes = {"kid_subsets": 1, "kid_subset_size": N, "verbose": False}
    expected = theirs.kid_features_to_metric(fake[0], real[0], **sizes)
    found = distances.kernel_distance(our_fake[0], our_real[0], num_subsets=1, subset_size=N)
    assert found.value == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-3)
    assert abs(found.value) > 1e-3


@pytest.mark.parametrize("splits", [1, 3])
def test_inception_score(features, splits):
    theirs = fidelity.module("metric_isc")
    logits, ours = features["fake"][0][1], features["fake"][1][1]
    expected = theirs.isc_features_to_metric(logits, splits, shuffle=False)
    found = distances.inception_score(ours, num_splits=splits)
    assert found.value == pytest.approx(expected["inception_score_mean"], rel=1e-3)
    assert found.value > 1.1


def test_precision_and_recall(features):
    """Exactly: they are fractions of N, and no distance is as near to a radius as rounding."""
    theirs = fidelity.module("metric_prc")
    (fake, our_fake), (real, our_real) = features["fake"], features["real"]
    expected = theirs.prc_features_to_metric(fake[0], real[0], verbose=False)
    found = manifolds.compare(our_real[0], our_fake[0], k=3)
    assert (found.precision, found.recall) == pytest.approx(
        (expected["precision"], expected["recall"]), abs=1e-6
    )
    assert 0 < found.precision < 1 and 0 < found.recall < 1
