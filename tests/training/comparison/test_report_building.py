"""From made-up rankings to the report: order, differences, contrasts, heat and notes."""

import pytest

from tests.training.comparison.places_in_a_row import record, records, row, truth
from training.comparison.report import Contrast, Heat
from training.comparison.report_building import ReportBuilder

# Four queries 100 m apart, each with one true match of its own.
TRUTH = truth([0.0, 100.0, 200.0, 300.0], [1.0, 101.0, 201.0, 301.0])
BUILDER = ReportBuilder({"east": TRUTH}, "triplet")

RIGHT, WRONG, HALF = [[0] * 4] * 2, [[5] * 4] * 2, [[0, 0, 5, 5]] * 2


def test_rows_come_in_the_papers_order_by_backbone() -> None:
    given = [("v", "vicreg", "b"), ("s", "simclr", "a"), ("t", "triplet", "b"), ("u", "untrained", "a")]
    report = BUILDER.build([records(row(*names), record(RIGHT)) for names in given])
    assert [found.row.label for found in report.rows] == ["t", "v", "u", "s"]


def test_a_row_without_a_seed_is_left_out() -> None:
    assert BUILDER.build([records(row("t", "triplet"), wanted=3)]).rows == ()


def test_columns_and_chance() -> None:
    report = BUILDER.build([records(row("t", "triplet"), record(HALF))])
    assert [(c.radius_m, c.n, c.queries, c.places, c.chance) for c in report.columns] == [
        (25.0, 1, 4, 4, pytest.approx(0.25)),
        (25.0, 5, 4, 4, 1.0),
        (10.0, 1, 4, 4, pytest.approx(0.25)),
        (10.0, 5, 4, 4, 1.0),
    ]
    assert [cell.recall.value for cell in report.rows[0].cells] == [0.5] * 4


def test_seeds_are_averaged() -> None:
    (found,) = BUILDER.build([records(row("t", "triplet"), record(RIGHT), record(HALF))]).rows
    assert (found.cells[0].recall.value, found.cells[0].seed_min, found.cells[0].seed_max) == (0.75, 0.5, 1.0)
    assert (found.seeds, found.wanted) == ((0, 1), 2)


def test_differences_are_to_the_baseline_of_the_same_backbone() -> None:
    rows = [
        records(row("t", "triplet", "a"), record(HALF)),
        records(row("s", "simclr", "a"), record(RIGHT)),
        records(row("other", "simclr", "b"), record(RIGHT)),
    ]
    report = BUILDER.build(rows)
    assert [(d.row.label, d.baseline.label, d.radius_m) for d in report.differences] == [
        ("s", "t", 25.0),
        ("s", "t", 10.0),
    ]
    assert report.differences[0].points.value == 0.5
    assert "No differences on b: the baseline triplet is not there (yet)" in report.notes


def test_a_row_can_be_the_baseline_by_its_label() -> None:
    rows = [records(row("one", "simclr"), record(HALF)), records(row("two", "simclr"), record(RIGHT))]
    report = ReportBuilder({"east": TRUTH}, "two").build(rows)
    assert [(d.row.label, d.points.value) for d in report.differences] == [("one", -0.5), ("one", -0.5)]


def contrasts_of(*methods_and_hits: tuple[str, list[list[int]]]) -> list[Contrast]:
    rows = [records(row(method, method), record(hits)) for method, hits in methods_and_hits]
    return [contrast for contrast in BUILDER.build(rows).contrasts if contrast.radius_m == 25.0]


def test_contrasts_by_hand() -> None:
    """Contrastive: (1 + 0.5) / 2; self-distillation: 0.5; the two queries of SimCLR alone make +25 points."""
    found = contrasts_of(("simclr", RIGHT), ("mocov2", HALF), ("byol", HALF), ("barlow_twins", WRONG))
    by_families = {(c.first, c.second): c for c in found}
    contrast = by_families["contrastive", "self-distillation"]
    assert contrast.points.value == pytest.approx(0.25)
    assert contrast.members == (("SimCLR", "MoCov2"), ("BYOL",))
    assert by_families["information-maximising", "self-distillation"].points.value == pytest.approx(-0.5)
    assert by_families["contrastive", "information-maximising"].verdict is None


def test_contrasts_by_seed() -> None:
    """SimCLR has three seeds and BYOL two: those that both have are compared, 1 − 0.5 and 0.5 − 0.5."""
    ours = records(row("s", "simclr"), record(RIGHT), record(HALF), record(RIGHT))
    theirs = records(row("b", "byol"), record(HALF), record(HALF), wanted=3)
    assert BUILDER.build([ours, theirs]).contrasts[0].by_seed == pytest.approx((0.5, 0.0))


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        (RIGHT, WRONG, "the paper's ordering holds"),
        (WRONG, RIGHT, "the paper's ordering is reversed"),
        (HALF, [[5, 5, 0, 0]] * 2, "undecided: the interval holds 0"),
    ],
)
def test_verdicts(ours: list[list[int]], theirs: list[list[int]], verdict: str) -> None:
    (contrast,) = contrasts_of(("simclr", ours), ("simsiam", theirs))
    assert contrast.verdict == verdict


def test_no_contrast_without_both_families() -> None:
    assert contrasts_of(("simclr", RIGHT), ("triplet", HALF)) == []


def test_heat_is_averaged_over_seeds_then_queries() -> None:
    two = records(row("t", "triplet"), record(HALF, [0.2, 0.4]), record(HALF, [0.4, None]))
    heat = BUILDER.build([two]).rows[0].heat["east"]
    assert heat.activation is not None
    assert heat.activation.value == pytest.approx((0.3 + 0.4) / 2)


def test_no_heat_where_a_net_cannot_be_looked_into() -> None:
    assert BUILDER.build([records(row("t", "triplet"), record(HALF))]).rows[0].heat["east"] == Heat(None, None)


def test_few_places_are_noted() -> None:
    notes = BUILDER.build([records(row("t", "triplet"), record(HALF))], notes=["first"]).notes
    assert notes[0] == "first"
    assert notes[1].startswith("The queries of east that count at 25 m lie in 4 places: with fewer than 10")
