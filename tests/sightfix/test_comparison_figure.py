"""The figure of a comparison: what it shows of which row."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from retrieval.errors import StorageError
from sightfix.commands.compare import print_report
from sightfix.figures.comparison import comparison_figure, write_comparison_figure
from tests.training.comparison.made_up_report import made_up_report


def test_one_panel_an_evaluation_set_one_line_a_row() -> None:
    report = made_up_report()
    figure = comparison_figure(report)
    left, right = figure.axes
    assert left.get_title(loc="left") == "cross-phone, 120 queries"
    assert right.get_title(loc="left") == "day-night, 120 queries"
    names = [label.get_text() for label in left.get_yticklabels()]
    assert names == ["Untrained", "Triplet", "SimCLR", "MoCov2", "BYOL", "SimSiam", "Barlow Twins", "VICReg"]
    drawn = {(round(float(x), 6), float(y)) for line in left.lines for x, y in zip(*line.get_data(), strict=True)}
    for place, row in enumerate(report.rows):
        recall = row.cells[0].recall
        for share in (recall.value, recall.low, recall.high):
            assert (round(100 * share, 6), float(place)) in drawn
    chance = [line for line in left.lines if list(line.get_xdata()) == [100 * report.columns[0].chance] * 2]
    assert len(chance) == 1


def test_backbones_have_headings() -> None:
    figure = comparison_figure(made_up_report(("one", "two"), seeds=1))
    assert [text.get_text() for text in figure.axes[0].texts] == ["one", "two"]
    assert len(figure.axes[0].get_yticklabels()) == 16


def test_nothing_evaluated_yet(tmp_path: Path) -> None:
    write_comparison_figure(replace(made_up_report(), rows=()), tmp_path / "comparison.png")
    assert (tmp_path / "comparison.png").is_file()


def test_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "comparison.png"
    write_comparison_figure(made_up_report(), path)
    with Image.open(path) as picture:
        assert picture.width > 1000
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_comparison_figure(made_up_report(), tmp_path / "file" / "comparison.png")


def test_the_printed_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(replace(made_up_report(), missing=("simclr, seed 2",)))
    shown = capsys.readouterr().out
    assert "Barlow Twins" in shown
    assert "contrastive − self-distillation" in shown
    assert "missing simclr, seed 2" in shown
