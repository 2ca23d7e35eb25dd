"""Scores that lie k times as far apart give the same fixes: matches weigh by what was measured at build."""

import numpy as np
import pytest

from index_builder.calibration.queries import DescribedIndex
from retrieval.bundle import Bundle
from retrieval.geo import Position, haversine_m
from retrieval.index.place_index import PlaceIndex
from retrieval.localize.evidence import FixSettings
from retrieval.localize.fix import Fix, FixMaker
from retrieval.tracking import Track
from tests.index_builder.made_up_street import MADE_UP_BUNDLE, made_up_street
from tests.index_builder.test_recalibrating import publish, widened


def squeezed(descriptors: np.ndarray, times: float) -> np.ndarray:
    """The same with a direction that all share: a cosine c becomes 1 - times + times c."""
    shared = np.full((len(descriptors), 1), np.sqrt(1.0 - times))
    return np.concatenate([np.sqrt(times) * descriptors, shared], axis=1).astype(np.float32)


@pytest.fixture(scope="module", params=[0.1, 0.4])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, bundle: Bundle
) -> tuple[float, list[PlaceIndex], list[np.ndarray]]:
    """One street published twice, the second time with scores so much closer together, and queries for each."""
    street, times = made_up_street(6, 80, noise=1.0, seed=1), float(request.param)
    every = np.arange(street.count)
    queries = made_up_street(1, 60, noise=1.0, seed=2).descriptors(np.arange(60))
    indexes, asked = [], []
    for number, share in enumerate((1.0, times)):
        rows = DescribedIndex(street.references(every), squeezed(street.descriptors(every), share), MADE_UP_BUNDLE)
        indexes.append(publish(tmp_path_factory.mktemp(str(number)), bundle, rows))
        asked.append(widened(squeezed(queries, share), bundle.descriptor_dim))
    return times, indexes, asked


def fixes(index: PlaceIndex, queries: np.ndarray, *, calibrated: bool) -> list[Fix | None]:
    maker = FixMaker(index, FixSettings(), index.manifest.calibration if calibrated else None)
    found = index.search(queries, maker.settings.matches_needed)
    centred = maker.centred(queries, found.rows)
    return [
        maker.fix(maker.ranking(rows, scores), near)[1]
        for rows, scores, near in zip(found.rows, found.scores, centred, strict=True)
    ]


def apart_m(one: Position, other: Position) -> float:
    return float(haversine_m(one.lat, one.lon, other.lat, other.lon))


@pytest.mark.parametrize("calibrated", [False, True])
def test_the_fix_is_the_same(pair: tuple[float, list[PlaceIndex], list[np.ndarray]], calibrated: bool) -> None:
    times, (wide, narrow), queries = pair
    assert narrow.manifest.score_spread == pytest.approx(times * (wide.manifest.score_spread or 0.0), rel=1e-3)
    ours, theirs = (
        fixes(index, asked, calibrated=calibrated) for index, asked in zip((wide, narrow), queries, strict=True)
    )
    assert [fix is None for fix in ours] == [fix is None for fix in theirs]
    both = [(one, other) for one, other in zip(ours, theirs, strict=True) if one is not None and other is not None]
    assert len(both) > 40
    for one, other in both:
        assert one.calibrated == other.calibrated == calibrated
        assert apart_m(one.position, other.position) < 0.05
        assert other.confidence == pytest.approx(one.confidence, abs=2e-3)
        assert other.radius_m == pytest.approx(one.radius_m, rel=1e-2)


def test_the_track_is_the_same(pair: tuple[float, list[PlaceIndex], list[np.ndarray]]) -> None:
    _, indexes, queries = pair
    answers = []
    for index, asked in zip(indexes, queries, strict=True):
        track, maker = Track((index.lat, index.lon)), FixMaker(index, FixSettings())
        found = index.search(asked, 20)
        rankings = [maker.ranking(rows, scores) for rows, scores in zip(found.rows, found.scores, strict=True)]
        answers.append([track.update(seen.rows, seen.cosines, at=5.0 * at) for at, seen in enumerate(rankings)])
    for one, other in zip(*answers, strict=True):
        assert one.position is not None
        assert other.position is not None
        assert apart_m(one.position, other.position) < 0.5
        assert other.confidence == pytest.approx(one.confidence, abs=5e-3)


def test_where_it_was_not_measured_matches_weigh_as_they_did(
    pair: tuple[float, list[PlaceIndex], list[np.ndarray]],
) -> None:
    """A version that was written before: 1/e for every 0.02, so a narrow index is less sure than a wide one."""
    _, indexes, queries = pair
    shares = []
    for index, asked in zip(indexes, queries, strict=True):
        old = PlaceIndex.open(index.folder)
        old.manifest = old.manifest.model_copy(update={"format_version": 2, "score_spread": None})
        assert old.score_stretch == 1.0
        ranking = FixMaker(old, FixSettings()).ranking(*(column[0] for column in _found(old, asked)))
        np.testing.assert_array_equal(ranking.cosines, ranking.scores)
        shares.append(np.mean([fix.confidence for fix in fixes(old, asked, calibrated=False) if fix is not None]))
    assert shares[1] < shares[0] - 0.03


def _found(index: PlaceIndex, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found = index.search(queries, 20)
    return found.rows, found.scores
