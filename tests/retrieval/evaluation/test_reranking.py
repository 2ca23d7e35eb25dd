"""What re-ranking changed, worked out on paper."""

from dataclasses import replace

import numpy as np
import pytest

from retrieval.errors import ParameterError
from retrieval.evaluation import BeforeReranking, EvaluationReport, Positions, Protocol, Ranked, evaluate, plain_text
from retrieval.geo import Position, from_local_metres


def line(*east: float) -> Positions:
    places = [from_local_metres(Position(31.262, 34.801), metres, 0.0) for metres in east]
    return Positions.from_degrees([p.lat for p in places], [p.lon for p in places])


@pytest.fixture
def ranked() -> Ranked:
    """Database at 0, 100, 200 m. Four queries on them and one far away. Re-ranked, the first is right where it was
    wrong, the second wrong where it was right, the third as it was, the fourth right, the fifth unsolvable."""
    before = np.array([[1, 0, 2], [1, 0, 2], [2, 0, 1], [1, 2, 0], [0, 1, 2]])
    after = np.array([[0, 1, 2], [0, 1, 2], [2, 0, 1], [2, 1, 0], [1, 0, 2]])
    return Ranked(
        line(0.0, 100.0, 200.0), line(0.0, 100.0, 200.0, 200.0, 5000.0), after, before=BeforeReranking(before, 2, 10)
    )


def test_recall_before_and_the_paired_change(ranked: Ranked) -> None:
    protocol = Protocol(radii_m=(25.0,), recall_at=(1, 2))
    report = evaluate(ranked, protocol).report
    found = report.reranking
    assert found is not None
    assert (found.top, found.min_inliers, found.moved_share) == (2, 10, 0.8)
    first, second = found.changes
    assert (first.radius_m, first.n, first.before) == (25.0, 1, 0.5)
    assert first.change.value == pytest.approx(0.25)  # two more right, one less, of four
    assert first.change.low is not None
    assert first.change.high is not None
    assert first.change.low <= 0.25 <= first.change.high
    assert (second.before, second.change.value, second.change.low, second.change.high) == (1.0, 0.0, 0.0, 0.0)
    assert report.recall[0].at[0].recall.value == 0.75
    everyone = evaluate(ranked, replace(protocol, convention="vpr-methods-evaluation")).report.reranking
    assert everyone is not None
    assert everyone.changes[0].before == 0.4
    assert everyone.changes[0].change.value == pytest.approx(0.2)


def test_it_is_told_and_goes_to_json_and_back(ranked: Ranked) -> None:
    report = evaluate(ranked, Protocol(recall_at=(1,))).report
    text = plain_text(report)
    assert (
        "What re-ranking the best 2 changed (10 points must fit; 80.0% of the queries have another best match)" in text
    )
    assert "50.0  25.0 [" in text
    assert EvaluationReport.model_validate_json(report.model_dump_json()) == report


def test_without_re_ranking_nothing_is_told(ranked: Ranked) -> None:
    report = evaluate(replace(ranked, before=None), Protocol(recall_at=(1,))).report
    assert report.reranking is None
    assert "re-ranking" not in plain_text(report)


def test_where_no_query_counts_there_is_no_change(ranked: Ranked) -> None:
    far = replace(ranked, queries=line(*(5000.0 + step for step in range(5))))
    found = evaluate(far, Protocol(recall_at=(1,))).report.reranking
    assert found is not None
    assert found.changes[0].before is None
    assert found.changes[0].change.value is None


def test_rows_of_another_shape_are_refused(ranked: Ranked) -> None:
    before = BeforeReranking(np.zeros((5, 2), np.int64), 2, 10)
    with pytest.raises(ParameterError, match=r"\(5, 3\) rows were \(5, 2\) before"):
        evaluate(replace(ranked, before=before), Protocol(recall_at=(1,)))
