import numpy as np
import pytest

from retrieval.geo import Position, from_local_metres
from retrieval.localize.evidence import (
    USUAL_SPREAD,
    FixSettings,
    agree,
    centre_of,
    centre_rows,
    centred_cosines,
    evidence_of,
    score_spread,
)

MUNICH = Position(48.0, 11.0)


class Stored:
    """Rows of (N, D) descriptors."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows, self.count = rows.astype(np.float32), len(rows)

    def descriptors(self, rows: np.ndarray) -> np.ndarray:
        return self.rows[rows]


def along(east: list[float]) -> tuple[np.ndarray, np.ndarray]:
    places = [from_local_metres(MUNICH, metres, 0.0) for metres in east]
    return np.array([p.lat for p in places]), np.array([p.lon for p in places])


def test_evidence_by_hand() -> None:
    """Three matches agree; of the two elsewhere the better has a centred cosine of 0.3."""
    lat, lon = along([0.0, 5.0, 900.0, 3.0, 700.0])
    scores, centred = np.array([0.8, 0.79, 0.78, 0.78, 0.7]), np.array([0.5, 0.6, 0.3, 0.1, 0.2])
    settings = FixSettings()
    found = agree(lat, lon, scores, settings)
    evidence = evidence_of(found, lat, lon, centred, settings)
    assert evidence.score == 0.6
    assert evidence.margin == pytest.approx(0.3)
    assert evidence.share == found.share
    np.testing.assert_array_equal(evidence.values, [evidence.score, evidence.margin, evidence.share])


def test_matches_behind_those_of_the_fix_speak_against_it_and_the_rest_does_not() -> None:
    lat, lon = along([0.0] * 10 + [500.0] * 5)
    scores, centred = np.full(15, 0.7), np.array([0.6] * 10 + [0.1, 0.55, 0.1, 0.58, 0.1])
    for seen, margin in ((12, 0.05), (20, 0.02), (11, 0.5)):
        settings = FixSettings(evidence_matches=seen)
        found = agree(lat, lon, scores, settings)
        assert evidence_of(found, lat, lon, centred, settings).margin == pytest.approx(margin)


def test_where_all_matches_agree_the_least_bounds_what_lies_elsewhere() -> None:
    lat, lon = along([0.0, 1.0, 2.0])
    settings = FixSettings()
    found = agree(lat, lon, np.array([0.8, 0.8, 0.8]), settings)
    assert evidence_of(found, lat, lon, np.array([0.5, 0.4, 0.2]), settings).margin == pytest.approx(0.3)


def test_a_direction_common_to_all_leaves_centred_cosines_as_they_are() -> None:
    """Plain cosines rise with it; centred ones do not."""
    random = np.random.default_rng(0)
    references, queries = random.normal(size=(50, 64)), random.normal(size=(5, 64))
    common = 20.0 * random.normal(size=64)

    plain, shifted = Stored(references), Stored(references + common)
    matched = np.tile(np.arange(4), (5, 1))
    without = centred_cosines(queries.astype(np.float32), plain.rows[matched], centre_of(plain))
    with_it = centred_cosines((queries + common).astype(np.float32), shifted.rows[matched], centre_of(shifted))
    np.testing.assert_allclose(with_it, without, atol=1e-4)
    own = centred_cosines(plain.rows[:3], plain.rows[:3, None], centre_of(plain))
    np.testing.assert_allclose(own, 1.0, atol=1e-6)


def test_each_query_may_have_a_centre_of_its_own() -> None:
    random = np.random.default_rng(0)
    queries, matched = random.normal(size=(3, 8)).astype(np.float32), random.normal(size=(3, 2, 8)).astype(np.float32)
    centres = random.normal(size=(3, 8)).astype(np.float32)
    together = centred_cosines(queries, matched, centres)
    for one in range(3):
        alone = centred_cosines(queries[one : one + 1], matched[one : one + 1], centres[one])
        np.testing.assert_allclose(together[one], alone[0], atol=1e-6)


def test_a_match_that_is_the_centre_is_0_and_not_a_warning() -> None:
    centre = np.ones(4, np.float32)
    assert centred_cosines(np.eye(4, dtype=np.float32)[:1], centre[None, None], centre).tolist() == [[0.0]]


@pytest.mark.parametrize("count", [1, 2, 4096, 4097, 1_000_000])
def test_the_centre_is_the_mean_of_rows_from_end_to_end(count: int) -> None:
    rows = centre_rows(count)
    assert len(rows) == min(count, 4096)
    assert len(set(rows.tolist())) == len(rows)
    assert (rows[0], rows[-1]) == (0, count - 1)


def at_angles(degrees: np.ndarray) -> Stored:
    """Unit rows in a plane."""
    angles = np.radians(degrees)
    return Stored(np.stack([np.cos(angles), np.sin(angles)], axis=1))


def random_rows(count: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, 64))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def test_the_spread_of_scores_on_paper() -> None:
    """Two photos at every sixth degree: the other one, then four at 6 degrees and four at 12; the tenth is at 18."""
    ring = np.repeat(np.arange(60) * 6.0, 2)
    assert score_spread(at_angles(ring)) == pytest.approx(1.0 - np.cos(np.radians(18.0)), abs=1e-5)


def test_of_photos_that_are_all_alike_the_spread_is_not_zero() -> None:
    assert score_spread(at_angles(np.full(200, 30.0))) == 1e-4


def test_of_a_handful_of_photos_the_spread_says_nothing() -> None:
    eye = np.eye(19)
    assert [score_spread(Stored(eye[:count])) for count in (0, 1, 2, 3, 19)] == [USUAL_SPREAD] * 5
    assert score_spread(Stored(np.eye(20))) == 1e-4


def test_of_twenty_photos_two_matches_stand_for_ten() -> None:
    """Best and second best, times 1 + 1/2 + … + 1/9 for what ten would span."""
    angles = np.arange(20.0) ** 2 / 10.0
    cosines = np.cos(np.radians(angles[:, None] - angles[None]))
    np.fill_diagonal(cosines, -1.0)
    best = np.sort(cosines, axis=1)[:, ::-1]
    harmonic = sum(1.0 / n for n in range(1, 10))
    expected = harmonic * (best[:, 0] - best[:, 1]).mean()
    assert score_spread(at_angles(angles)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("count", [20, 30, 50, 99])
def test_few_photos_tell_what_a_hundred_tell(count: int) -> None:
    few, hundred = (np.mean([score_spread(Stored(random_rows(n, seed))) for seed in range(10)]) for n in (count, 100))
    assert few == pytest.approx(hundred, rel=0.1)


def test_of_a_large_index_a_sample_is_enough() -> None:
    read: list[int] = []

    class Counted(Stored):
        def descriptors(self, rows: np.ndarray) -> np.ndarray:
            read.append(len(rows))
            return super().descriptors(rows)

    large = Counted(random_rows(6000))
    assert score_spread(large) == pytest.approx(score_spread(Stored(large.rows[:1500])), rel=0.1)
    assert read == [2000]


@pytest.mark.parametrize("times", [0.2, 0.5, 1.0])
def test_the_spread_grows_with_the_scores(times: float) -> None:
    """A direction that all photos share pulls their cosines together: s becomes 1 - t + t s."""
    rows = random_rows(300)
    shared = np.concatenate([np.full((300, 1), np.sqrt(1.0 - times)), np.sqrt(times) * rows], axis=1)
    assert score_spread(Stored(shared)) == pytest.approx(times * score_spread(Stored(rows)), rel=1e-3)
