"""The tables, character by character."""

import csv
import io

import pytest

from retrieval.evaluation import Bootstrap, Protocol
from tests.training.comparison.made_up_report import made_up_report
from tests.training.comparison.places_in_a_row import row
from training.comparison.report import (
    Cell,
    Column,
    ComparisonReport,
    Contrast,
    Difference,
    Epochs,
    Heat,
    Interval,
    ReportRow,
)
from training.comparison.table_text import contrast_sentence, csv_text, epochs_text, markdown, points, row_name

UNTRAINED = row("untrained", "untrained")
TRIPLET, BYOL = row("triplet-small", "triplet"), row("mine", "byol")
LOW, HIGH = Interval(0.25, 0.2, 0.31), Interval(0.563, 0.51, 0.612)
CONTRAST = Contrast(
    first="contrastive",
    second="self-distillation",
    members=(("SimCLR",), ("BYOL", "SimSiam")),
    backbone="resnet",
    eval_set="east",
    radius_m=25.0,
    points=Interval(0.031, 0.004, 0.059),
    by_seed=(0.025, -0.0101),
)

REPORT = ComparisonReport(
    columns=(Column("east", 25.0, 1, 229, 31, 0.1842), Column("east", 25.0, 5, 229, 31, 0.55)),
    rows=(
        ReportRow(UNTRAINED, (0,), 1, (Cell(LOW, 0.25, 0.25),) * 2, {"east": Heat(None, None)}, (Epochs(0, None),)),
        ReportRow(
            BYOL,
            (0, 2),
            3,
            (Cell(HIGH, 0.5, 0.6), Cell(Interval(1.0, 1.0, 1.0), 1.0, 1.0)),
            {"east": Heat(Interval(0.3, 0.29, 0.32), Interval(0.4, 0.38, 0.41))},
            (Epochs(3, 8), Epochs(5, 8)),
        ),
    ),
    baseline="untrained",
    differences=(Difference(BYOL, UNTRAINED, "east", 25.0, Interval(0.313, -0.02, 0.4)),),
    contrasts=(CONTRAST,),
    protocol=Protocol(radii_m=(25.0,), recall_at=(1, 5), grouping="place", bootstrap=Bootstrap()),
    missing=("mine, seed 1",),
    notes=("Something to know",),
    made_with=("a machine",),
)

TABLE = """\
# Comparison of training objectives

**Not complete.** Missing: mine, seed 1.

| method | backbone | seeds | epochs | east<br>25 m<br>R@1 | east<br>25 m<br>R@5 \
| heat, east<br>activation | heat, east<br>match |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |
| *queries* |  |  |  | 229 | 229 |  |  |
| *chance* |  |  |  | 18.4 | 55.0 |  |  |
| Untrained | resnet, 16-D, 64×96 | 1 | 0 | 25.0 [20.0, 31.0] | 25.0 [20.0, 31.0] | – | – |
| BYOL (mine) | resnet, 16-D, 64×96 | 2 of 3 | 3–5 of 8 | 56.3 [51.0, 61.2] \
| 100.0 [100.0, 100.0] | 30.0 [29.0, 32.0] | 40.0 [38.0, 41.0] |

- Recall@N in percent: the share of queries with a true match, one within the radius, among the first N; exact search. \
Only queries with a true match in the database count (convention `solvable`). Chance: the same for a random ranking.
- [low, high]: 95 % bootstrap interval over places of 25 m, which are drawn as a whole (2000 resamples, seed 0). Seeds \
are averaged query by query before, so intervals do not cover the seed: the spread over seeds is in table.csv.
- Heat: the share of a heat map's energy in its top 10 % of locations (an even map has 10.0); maps of different grids \
are not quite comparable. Match maps are of a query with its nearest true photo.
- Epochs: after how many the evaluated checkpoint was saved, `of` how many trained.

## Difference to the baseline (untrained) at R@1, points

| method | backbone | east<br>25 m |
| --- | --- | ---: |
| BYOL (mine) | resnet | +31.3 [−2.0, 40.0] |

Paired: the same queries, the same backbone. The interval is of the differences by query.

## Does the paper's ordering hold?

The paper: contrastive and information-maximising objectives are above self-distillation.

Means at R@1 on resnet, of contrastive: SimCLR; self-distillation: BYOL, SimSiam.

- contrastive − self-distillation: +3.1 points [0.4, 5.9] on east at 25 m (2 seeds: −1.0 to +2.5): the paper's \
ordering holds.

## Notes

- Something to know.

## Made with

- a machine
"""

CSV = """\
label,method,backbone,size,eval_set,radius_m,n,recall,low,high,seed_min,seed_max,chance,queries,places,seeds,epochs,\
heat_activation,heat_activation_low,heat_activation_high,heat_match,heat_match_low,heat_match_high
untrained,untrained,resnet,"16-D, 64×96",east,25,1,0.25,0.2,0.31,0.25,0.25,0.1842,229,31,1,0,,,,,,
untrained,untrained,resnet,"16-D, 64×96",east,25,5,0.25,0.2,0.31,0.25,0.25,0.55,229,31,1,0,,,,,,
mine,byol,resnet,"16-D, 64×96",east,25,1,0.563,0.51,0.612,0.5,0.6,0.1842,229,31,2,3–5 of 8,0.3,0.29,0.32,0.4,0.38,0.41
mine,byol,resnet,"16-D, 64×96",east,25,5,1,1,1,1,1,0.55,229,31,2,3–5 of 8,0.3,0.29,0.32,0.4,0.38,0.41
"""


def test_the_markdown_table() -> None:
    assert markdown(REPORT) == TABLE


def test_the_csv_table() -> None:
    assert csv_text(REPORT) == CSV


def test_a_full_table_has_a_line_for_each_number() -> None:
    """Eight rows, two sets, two radii, three Ns."""
    report = made_up_report()
    lines = list(csv.DictReader(io.StringIO(csv_text(report))))
    assert len(lines) == 8 * 2 * 2 * 3
    assert len({(line["label"], line["eval_set"], line["radius_m"], line["n"]) for line in lines}) == len(lines)
    assert "**Not complete.**" not in markdown(report)
    assert all(float(line["low"]) <= float(line["recall"]) <= float(line["high"]) for line in lines)


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(0.031, 0.004, 0.059), "+3.1 [0.4, 5.9]"),
        (Interval(-0.031, -0.059, -0.004), "−3.1 [−5.9, −0.4]"),
        (Interval(-0.0001, -0.1, 0.1), "0.0 [−10.0, 10.0]"),
    ],
)
def test_points(interval: Interval, text: str) -> None:
    assert points(interval) == text


@pytest.mark.parametrize(
    ("epochs", "text"),
    [
        ((Epochs(5, 5), Epochs(5, 5)), "5"),
        ((Epochs(3, 5), Epochs(5, 7)), "3–5 of 5–7"),
        ((Epochs(3, None),), "3"),
        ((Epochs(3, 5), Epochs(5, 5)), "3–5 of 5"),
    ],
)
def test_epochs(epochs: tuple[Epochs, ...], text: str) -> None:
    assert epochs_text(epochs) == text


@pytest.mark.parametrize(
    ("label", "method", "name"),
    [
        ("barlow-twins-resnet50", "barlow_twins", "Barlow Twins"),
        ("untrained", "untrained", "Untrained"),
        ("night-run", "simclr", "SimCLR (night-run)"),
    ],
)
def test_names_of_rows(label: str, method: str, name: str) -> None:
    assert row_name(row(label, method)) == name


def test_a_contrast_that_the_paper_says_nothing_of_has_no_verdict() -> None:
    other = Contrast(
        first="contrastive",
        second="information-maximising",
        members=(("SimCLR",), ("VICReg",)),
        backbone="resnet",
        eval_set="east",
        radius_m=10.0,
        points=Interval(-0.02, -0.05, 0.01),
    )
    assert contrast_sentence(other) == "contrastive − information-maximising: −2.0 points [−5.0, 1.0] on east at 10 m"
