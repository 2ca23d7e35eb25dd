from pathlib import Path

import numpy as np
import pytest

from retrieval.errors import ParameterError
from retrieval.evaluation import (
    Bootstrap,
    EvaluationReport,
    Fixes,
    Positions,
    Protocol,
    Ranked,
    evaluate,
    evaluation_work,
    plain_text,
    report_tables,
)
from retrieval.geo import Position, from_local_metres
from retrieval.references.reference import Reference
from tests.retrieval.evaluation.plane import plane


def line(*east: float) -> Positions:
    places = [from_local_metres(Position(31.262, 34.801), metres, 0.0) for metres in east]
    return Positions.from_degrees([p.lat for p in places], [p.lon for p in places])


@pytest.fixture
def ranked() -> Ranked:
    """Database at 0, 15, 100, 200 m; queries at 0 (found second), 100 (found first), 1000 m (unsolvable)."""
    return Ranked(
        database=line(0.0, 15.0, 100.0, 200.0),
        queries=line(0.0, 100.0, 1000.0),
        rows=np.array([[3, 1, 0, 2], [2, 0, 1, 3], [0, 1, 2, 3]]),
        sessions=["a", "b", "b"],
    )


def test_a_whole_report_by_hand(ranked: Ranked) -> None:
    found = evaluate(ranked, Protocol(radii_m=(25.0, 10.0), recall_at=(1, 2, 4)))
    report = found.report
    assert (report.queries, report.database, report.ranked) == (3, 4, 4)
    wide, narrow = report.recall
    assert (wide.solvable, wide.counted, wide.median_positives) == (2, 2, 1.5)
    assert wide.solvable_share == pytest.approx(2 / 3)
    assert [entry.recall.value for entry in wide.at] == [0.5, 1.0, 1.0]
    # Two positives of four for the first query (1 - C(2,N)/C(4,N)), one of four for the second (N/4).
    assert [entry.chance for entry in wide.at] == pytest.approx([(1 / 2 + 1 / 4) / 2, (5 / 6 + 1 / 2) / 2, 1.0])
    # Within 10 m only the image at 0 m is right for the first query, and it comes third.
    assert [entry.recall.value for entry in narrow.at] == [0.5, 0.5, 1.0]
    assert found.first_hit.tolist() == [[1, 0, 4], [2, 0, 4]]
    assert found.positives.tolist() == [[2, 1, 0], [1, 1, 0]]
    (top,) = report.position_errors
    assert (top.answered, top.unanswered) == (3, 0)
    assert top.median_m.value == pytest.approx(200.0, abs=1e-6)
    np.testing.assert_allclose(found.top_error_m, [200.0, 0.0, 1000.0], atol=1e-6)
    assert report.confidence is None


def test_the_curve_holds_every_n(ranked: Ranked) -> None:
    (curve,) = evaluate(ranked, Protocol(recall_at=(1, 4))).curves
    assert [entry.n for entry in curve.at] == [1, 2, 3, 4]
    assert [entry.recall.value for entry in curve.at] == [0.5, 1.0, 1.0, 1.0]


def test_recall_at_is_sorted_and_deduplicated(ranked: Ranked) -> None:
    report = evaluate(ranked, Protocol(recall_at=(4, 1, 4))).report
    assert [entry.n for entry in report.recall[0].at] == [1, 4]


def test_more_n_than_database_images_is_fine(ranked: Ranked) -> None:
    whole = evaluate(ranked).report.recall[0]  # four ranked of four: N = 5, 10 and 20 see them all
    assert [entry.recall.value for entry in whole.at] == [0.5, 1.0, 1.0, 1.0]
    rows = np.pad(ranked.rows, ((0, 0), (0, 16)), constant_values=-1)
    report = evaluate(Ranked(ranked.database, ranked.queries, rows)).report
    assert [entry.n for entry in report.recall[0].at] == [1, 5, 10, 20]
    assert report.recall[0].at[-1].recall.value == 1.0
    assert report.recall[0].at[-1].chance == 1.0


def test_groups_are_places_when_sessions_are_few(ranked: Ranked) -> None:
    report = evaluate(ranked, Protocol(recall_at=(1,))).report
    assert report.intervals.grouping == "place"
    assert report.intervals.groups == 3
    assert report.recall[0].groups == 2  # the unsolvable query lends no group
    text = plain_text(report)
    assert "Only 3 places to draw from: with fewer than 10 the interval is a guess" in text
    assert "come from 2 sessions" in text


def test_groups_are_sessions_when_there_are_ten_or_when_asked(ranked: Ranked) -> None:
    many = Ranked(
        line(0.0), line(*np.arange(20.0)), np.zeros((20, 1), np.int64), sessions=[f"s{i // 2}" for i in range(20)]
    )
    report = evaluate(many, Protocol(recall_at=(1,))).report
    assert (report.intervals.grouping, report.intervals.groups, report.intervals.place_m) == ("session", 10, None)
    assert report.notes == ()
    asked = evaluate(ranked, Protocol(recall_at=(1,), grouping="session")).report
    assert (asked.intervals.grouping, asked.intervals.groups) == ("session", 2)


def test_grouping_by_session_needs_sessions(ranked: Ranked) -> None:
    protocol = Protocol(recall_at=(1,), grouping="session")
    with pytest.raises(ParameterError, match="the queries have no session"):
        evaluate(Ranked(ranked.database, ranked.queries, ranked.rows), protocol)
    with pytest.raises(ParameterError, match="1 of 3 queries have no session"):
        evaluate(Ranked(ranked.database, ranked.queries, ranked.rows, sessions=["a", None, "b"]), protocol)


def test_fixes_are_reported_beside_the_top_match(ranked: Ranked) -> None:
    at = line(5.0, 100.0)
    confidence, located = np.array([0.9, 0.8, np.nan]), np.array([True, False, False])
    fixes = Fixes(np.append(at.lat, np.nan), np.append(at.lon, np.nan), confidence, located=located, calibrated=False)
    found = evaluate(Ranked(ranked.database, ranked.queries, ranked.rows, fixes), Protocol(recall_at=(1,)))
    top, fix, sure = found.report.position_errors
    assert (top.answer, fix.answer, sure.answer) == ("top-1", "fix", "located fix")
    assert (sure.answered, sure.unanswered) == (1, 2)
    assert sure.median_m.value == pytest.approx(5.0, abs=1e-6)
    assert (fix.answered, fix.unanswered) == (2, 1)
    assert fix.median_m.value == pytest.approx(2.5, abs=1e-6)
    assert found.report.confidence is not None
    assert "Confidence of the fix (not calibrated)" in plain_text(found.report)


@pytest.mark.parametrize("with_fixes", [False, True])
@pytest.mark.parametrize("radii_m", [(25.0,), (25.0, 10.0)])
def test_progress_adds_up_to_the_work(ranked: Ranked, with_fixes: bool, radii_m: tuple[float, ...]) -> None:
    protocol, seen = Protocol(radii_m=radii_m, recall_at=(1,)), list[int]()
    at = np.zeros(3)
    for fixes in (Fixes(at, at), Fixes(at, at, located=np.ones(3, bool))) if with_fixes else (None,):
        asked = Ranked(ranked.database, ranked.queries, ranked.rows, fixes)
        seen.clear()
        evaluate(asked, protocol, seen.append)
        assert sum(seen) == evaluation_work(asked, protocol)


def test_notes_of_the_caller_come_first(ranked: Ranked) -> None:
    report = evaluate(ranked, Protocol(recall_at=(1,)), notes=["Mind the gap"]).report
    assert report.notes[0] == "Mind the gap"
    assert "Note: Mind the gap." in plain_text(report)


def test_nothing_solvable_gives_no_number_and_a_note() -> None:
    report = evaluate(Ranked(line(0.0), line(900.0), np.array([[0]])), Protocol(recall_at=(1,))).report
    assert report.recall[0].at[0].recall.value is None
    assert report.recall[0].at[0].chance is None
    assert any("No query has a database image within 25 m" in note for note in report.notes)
    assert "NaN" not in report.model_dump_json()
    assert "–" in plain_text(report)


def test_json_goes_there_and_back(ranked: Ranked) -> None:
    report = evaluate(ranked, Protocol(recall_at=(1, 4))).report
    assert EvaluationReport.model_validate_json(report.model_dump_json()) == report
    with pytest.raises(ValueError, match="frozen"):
        report.queries = 4


def test_the_text_always_says_chance_counts_and_interval(ranked: Ranked) -> None:
    text = plain_text(evaluate(ranked, Protocol(recall_at=(1, 4), bootstrap=Bootstrap(seed=7))).report)
    assert "3 queries against 4 database images" in text
    assert "chance" in text
    assert "2 (66.7%)" in text
    assert "95% bootstrap interval over 3 places of 25 m (2000 resamples, seed 7)" in text


def test_metres_lose_their_decimals_from_a_hundred_on(ranked: Ranked) -> None:
    errors = report_tables(evaluate(ranked, Protocol(recall_at=(1,))).report)[1]
    assert errors.rows[0][3] == "200 [0.0, 1000]"


def test_every_row_of_a_table_is_as_wide_as_its_head(ranked: Ranked) -> None:
    for table in report_tables(evaluate(ranked, Protocol(radii_m=(25.0, 10.0), recall_at=(1, 4))).report):
        assert {len(row) for row in table.rows} == {len(table.columns)}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.array([[0], [1], [4]]), r"not in \[-1, 4\)"),
        (np.array([[0], [1], [-2]]), r"not in \[-1, 4\)"),
        (np.array([[0], [1]]), "not \\(3, K\\)"),
        (np.zeros((3, 0), np.int64), "not \\(3, K\\)"),
        (np.zeros((3, 4)), "float64"),
    ],
)
def test_wrong_rows_are_refused(ranked: Ranked, rows: np.ndarray, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        evaluate(Ranked(ranked.database, ranked.queries, rows), Protocol(recall_at=(1,)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"radii_m": ()},
        {"radii_m": (0.0,)},
        {"radii_m": (float("nan"),)},
        {"recall_at": ()},
        {"recall_at": (0,)},
        {"convention": "mine"},
        {"grouping": "image"},
    ],
)
def test_wrong_protocols_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ParameterError):
        Protocol(**wrong)


def test_nothing_to_evaluate_is_refused() -> None:
    none = Positions.from_references([])
    with pytest.raises(ParameterError, match="0 queries and 1 database images"):
        evaluate(Ranked(line(0.0), none, np.empty((0, 1), np.int64)))


def test_positions_from_references() -> None:
    def row(lat: float | None, plane: tuple[float, float] | None) -> Reference:
        return Reference("a", Path("a.jpg"), None if lat is None else Position(lat, 5.0), plane)

    both = Positions.from_references([row(1.0, (2.0, 3.0)), row(4.0, (5.0, 6.0))])
    assert both.lat.tolist() == [1.0, 4.0]
    assert both.plane_m.tolist() == [[2.0, 3.0], [5.0, 6.0]]
    plane = Positions.from_references([row(None, (2.0, 3.0)), row(4.0, (5.0, 6.0))])
    assert plane.lat is None
    assert Positions.from_references([row(1.0, None), row(4.0, (5.0, 6.0))]).plane_m is None
    with pytest.raises(ParameterError, match="need latitude and longitude"):
        Positions.from_references([row(1.0, None), row(None, (5.0, 6.0))])


def test_positions_are_checked() -> None:
    with pytest.raises(ParameterError, match="row 1"):
        Positions.from_degrees([0.0, np.nan], [0.0, 0.0])
    with pytest.raises(ParameterError, match="fit together"):
        Positions.from_degrees([0.0, 1.0], [0.0])
    with pytest.raises(ParameterError, match="share no kind of position"):
        evaluate(Ranked(line(0.0), plane([[0.0, 0.0]]), np.array([[0]])), Protocol(recall_at=(1,)))
