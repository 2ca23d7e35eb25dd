import numpy as np
import pytest

from retrieval.verification.local_features import NO_FEATURES, FeatureSettings, LocalFeatures, extract_features
from retrieval.verification.verifier import GeometrySettings, count_inliers, paired
from tests.textured import VIEW, seen_from_elsewhere, textured

SETTINGS = GeometrySettings()


def features_of(seed: int, *, elsewhere: bool = False) -> LocalFeatures:
    picture = textured(seed)
    return extract_features(seen_from_elsewhere(picture) if elsewhere else picture, FeatureSettings())


def test_another_view_of_the_same_has_many_inliers() -> None:
    assert count_inliers(features_of(1, elsewhere=True), features_of(1), SETTINGS) >= 60


@pytest.mark.parametrize("seed", range(2, 8))
def test_something_else_has_few(seed: int) -> None:
    assert count_inliers(features_of(1, elsewhere=True), features_of(seed), SETTINGS) < 10


def test_pairs_are_where_the_homography_puts_them() -> None:
    one, other = features_of(1), features_of(1, elsewhere=True)
    pairs = paired(one, other, SETTINGS.ratio)
    homogeneous = np.column_stack([one.pixels[pairs[:, 0]], np.ones(len(pairs))]) @ VIEW.T
    expected = homogeneous[:, :2] / homogeneous[:, 2:]
    off = np.hypot(*(expected - other.pixels[pairs[:, 1]]).T)
    assert np.median(off) < 1.0
    assert count_inliers(one, other, SETTINGS) == pytest.approx((off < SETTINGS.tolerance_px).sum(), abs=0.1 * len(off))


def test_each_point_is_paired_once_with_its_nearest() -> None:
    """Against every distance worked out."""
    one, other = features_of(1), features_of(1, elsewhere=True)
    a, b = one.descriptors.astype(np.float64), other.descriptors.astype(np.float64)
    distances = np.sqrt(np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0.0))
    nearest, second = np.sort(distances, axis=1)[:, :2].T
    mutual = distances.argmin(axis=0)[distances.argmin(axis=1)] == np.arange(len(a))
    wanted = np.flatnonzero((nearest < 0.8 * second) & mutual)
    pairs = paired(one, other, 0.8)
    assert pairs[:, 0].tolist() == wanted.tolist()
    assert pairs[:, 1].tolist() == distances.argmin(axis=1)[wanted].tolist()
    assert len(np.unique(pairs[:, 1])) == len(pairs)


def test_with_nothing_to_compare_there_is_no_inlier() -> None:
    some = features_of(1)
    single = LocalFeatures(some.points[:1], some.descriptors[:1])
    for one, other in ((NO_FEATURES, some), (some, NO_FEATURES), (some, single), (single, some)):
        assert count_inliers(one, other, SETTINGS) == 0
