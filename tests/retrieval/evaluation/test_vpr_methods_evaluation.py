"""Our numbers against the field's evaluator, rewritten here by hand and slowly from its description.

https://github.com/gmberton/VPR-methods-evaluation: positives by an inclusive radius search in UTM metres, predictions
by one faiss IndexFlatL2 search, every query in the denominator, percent.
"""

import faiss
import numpy as np
import pytest

from retrieval.errors import ParameterError
from retrieval.evaluation import Positions, Protocol, Ranked, evaluate, exact_ranking
from retrieval.evaluation.evaluation import Evaluation
from retrieval.evaluation.tables import field_line, plain_text
from retrieval.geo import utm_to_wgs84
from tests.retrieval.evaluation.plane import plane

FIELD = "vpr-methods-evaluation"


def field_recalls(
    database_utm: np.ndarray,
    query_utm: np.ndarray,
    database_descriptors: np.ndarray,
    query_descriptors: np.ndarray,
    radius_m: float,
    values: tuple[int, ...],
) -> list[float]:
    index = faiss.IndexFlatL2(database_descriptors.shape[1])
    index.add(database_descriptors)
    _, predictions = index.search(query_descriptors, max(values))
    right = dict.fromkeys(values, 0)
    for q, (east, north) in enumerate(query_utm):
        positives = set()
        for d, (e, n) in enumerate(database_utm):
            if (e - east) ** 2 + (n - north) ** 2 <= radius_m**2:
                positives.add(d)
        for value in values:
            if positives & set(predictions[q, :value].tolist()):
                right[value] += 1
    return [right[value] / len(query_utm) * 100 for value in values]


def unit_rows(random: np.random.Generator, count: int, dimension: int = 16) -> np.ndarray:
    rows = random.standard_normal((count, dimension)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def evaluated(
    database: Positions, queries: Positions, rows: np.ndarray, radius_m: float, values: tuple[int, ...]
) -> Evaluation:
    protocol = Protocol(radii_m=(radius_m,), recall_at=values, convention=FIELD)
    return evaluate(Ranked(database, queries, rows), protocol)


def percents(evaluation: Evaluation) -> list[float]:
    return [entry.recall.value * 100 for entry in evaluation.report.recall[0].at]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("database_size", "query_count"), [(7, 30), (60, 5), (300, 200), (1500, 90)])
@pytest.mark.parametrize("radius_m", [25.0, 10.0])
def test_recalls_agree_to_the_digit(seed: int, database_size: int, query_count: int, radius_m: float) -> None:
    """A 5 m lattice puts many pairs exactly on the border: (25, 0), (15, 20), (10, 0), (6, 8) is off the lattice."""
    random = np.random.default_rng(seed)
    database_utm = np.array([540_000.0, 4_180_000.0]) + 5.0 * random.integers(0, 60, (database_size, 2))
    query_utm = np.array([540_000.0, 4_180_000.0]) + 5.0 * random.integers(0, 60, (query_count, 2))
    database_descriptors = unit_rows(random, database_size)
    database_descriptors[1::3] = database_descriptors[::3][: len(database_descriptors[1::3])]  # ties
    query_descriptors = unit_rows(random, query_count)
    query_descriptors[0] = database_descriptors[0]

    expected = field_recalls(database_utm, query_utm, database_descriptors, query_descriptors, radius_m, (1, 5, 10, 20))
    rows, _ = exact_ranking(database_descriptors, query_descriptors, 20)
    found = evaluated(plane(database_utm), plane(query_utm), rows, radius_m, (1, 5, 10, 20))

    assert percents(found) == expected
    shown = ", ".join(f"R@{n}: {value:.1f}" for n, value in zip((1, 5, 10, 20), expected, strict=True))
    assert field_line(found.report.recall[0]) == shown
    assert shown in plain_text(found.report)


def test_the_border_belongs_to_the_radius() -> None:
    queries = plane([[500_000.0, 4_000_000.0]])
    on_border = plane([[500_015.0, 4_000_020.0]])
    beyond = plane([[500_025.0 + 1e-6, 4_000_000.0]])
    first = np.array([[0]])
    assert percents(evaluated(on_border, queries, first, 25.0, (1,))) == [100.0]
    assert percents(evaluated(beyond, queries, first, 25.0, (1,))) == [0.0]


def test_queries_without_positive_stay_in_the_denominator_only_here() -> None:
    database = plane([[0.0, 0.0]])
    queries = plane([[0.0, 0.0], [1000.0, 0.0]])
    ranked = Ranked(database, queries, np.array([[0], [0]]))
    field = evaluate(ranked, Protocol(recall_at=(1,), convention=FIELD)).report.recall[0]
    ours = evaluate(ranked, Protocol(recall_at=(1,))).report.recall[0]
    assert (field.at[0].recall.value, field.counted, field.solvable) == (0.5, 2, 1)
    assert (ours.at[0].recall.value, ours.counted, ours.solvable_share) == (1.0, 1, 0.5)
    assert field.at[0].chance == 0.5  # 1 for the first query, 0 for the second
    assert ours.at[0].chance == 1.0


def test_degrees_are_measured_in_utm() -> None:
    """24.95 m to the north in UTM, at the equator: the mean sphere makes 25.1 m of them, the ellipsoid 24.96 m."""
    north = np.array([10_000.0, 10_024.95])
    lat, lon = utm_to_wgs84(np.full(2, 500_000.0), north, 33, False)
    database, queries = Positions.from_degrees(lat[1:], lon[1:]), Positions.from_degrees(lat[:1], lon[:1])
    first = np.array([[0]])
    found = evaluated(database, queries, first, 25.0, (1,)).report
    assert found.measure == "utm"
    assert found.recall[0].at[0].recall.value == 1.0
    sphere = evaluate(Ranked(database, queries, first), Protocol(recall_at=(1,), radii_m=(25.0,))).report
    assert sphere.measure == "great circle"
    assert sphere.recall[0].solvable == 0


def test_utm_zones_never_touch() -> None:
    """The same easting and northing in two zones is two places, 500 km apart."""
    lat, lon = (
        np.concatenate(pair) for pair in zip(*(utm_to_wgs84([4e5], [4e6], z, False) for z in (32, 33)), strict=True)
    )
    database, queries = Positions.from_degrees(lat[1:], lon[1:]), Positions.from_degrees(lat[:1], lon[:1])
    assert evaluated(database, queries, np.array([[0]]), 25.0, (1,)).report.recall[0].solvable == 0


def test_the_equator_is_a_border_of_zones_too() -> None:
    """South of it northings start at 10 000 km: the field's file names put these two neighbours far apart."""
    queries, south = Positions.from_degrees([0.00001], [10.0]), Positions.from_degrees([-0.00001], [10.0])
    first = np.array([[0]])
    assert evaluated(south, queries, first, 25.0, (1,)).report.recall[0].solvable == 0
    assert evaluated(south, south, first, 25.0, (1,)).report.recall[0].solvable == 1


def test_a_plane_wins_over_degrees_here_and_loses_elsewhere() -> None:
    """The data set's own plane is what the field measures; true metres are what the others measure."""
    queries = Positions(lat=np.array([10.0]), lon=np.array([10.0]), plane_m=np.array([[0.0, 0.0]]))
    database = Positions(lat=np.array([10.0]), lon=np.array([10.0]), plane_m=np.array([[500.0, 0.0]]))
    first = np.array([[0]])
    assert evaluated(database, queries, first, 25.0, (1,)).report.recall[0].solvable == 0
    assert evaluate(Ranked(database, queries, first), Protocol(recall_at=(1,))).report.recall[0].solvable == 1


def test_more_asked_than_ranked_is_refused() -> None:
    database = plane(np.zeros((30, 2)))
    with pytest.raises(ParameterError, match="recall@20 needs 20 matches per query, 10 were ranked"):
        evaluated(database, plane([[0.0, 0.0]]), np.arange(10)[None], 25.0, (20,))
