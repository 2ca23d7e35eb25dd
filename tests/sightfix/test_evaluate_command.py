"""`sightfix evaluate` from photos to report, on the made-up places and on the campus."""

import csv
import io
import json
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

import sightfix.commands.evaluate
from retrieval.bundle import Bundle
from retrieval.errors import ModelIndexMismatchError, ParameterError, ReferenceDataError, StorageError
from retrieval.evaluation import EvaluationReport
from sightfix.commands.evaluate import evaluate
from tests.conftest import PublishedPlaces
from tests.retrieval.other_bundle import write_other_bundle

APP = typer.Typer()
APP.command()(evaluate)


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(APP, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def write_table(
    published: PublishedPlaces, path: Path, *, east_m: float = 0.0, session: str = "", rows: slice = slice(None)
) -> str:
    """The published photos as a CSV, moved east."""
    lines = ["path,lat,lon,session"]
    for row in published.places.rows[rows]:
        assert row.position is not None
        lines.append(f"{row.path},{row.position.lat},{row.position.lon + east_m / 74_400.0},{session}")
    path.write_text("\n".join(lines) + "\n")
    return f"csv:{path}"


def test_photos_against_photos(published: PublishedPlaces, tmp_path: Path) -> None:
    """The same photos on both sides, the queries 15 m east: every one finds itself, 15 m off."""
    database = write_table(published, tmp_path / "database.csv")
    queries = write_table(published, tmp_path / "queries.csv", east_m=15.0)
    out, figures = tmp_path / "report.json", tmp_path / "figures"
    shown = run(
        *("--database", database, "--queries", queries, "--radius", "25", "--radius", "10"),
        *("--recall-at", "1,5", "--json", out, "--figures", figures),
    ).output
    report = EvaluationReport.model_validate_json(out.read_text())
    wide, narrow = report.recall
    assert (report.queries, report.database, report.ranked) == (12, 12, 20)
    assert [entry.recall.value for entry in wide.at] == [1.0, 1.0]
    assert [entry.n for entry in wide.at] == [1, 5]
    assert wide.at[0].chance == pytest.approx(1 / 12)
    assert narrow.solvable == 0
    top, fix, _ = report.position_errors
    assert top.median_m.value == pytest.approx(15.0, abs=0.1)
    assert fix.answered == 12
    assert report.confidence is not None
    assert report.confidence.calibrated is False
    assert "12 queries against 12 database images" in shown
    assert "12 queries have a best match with a score above 0.999: the same photo, very likely" in shown
    assert (figures / "successes.png").is_file()
    assert not (figures / "failures.png").exists()


def test_photos_against_a_published_index(published: PublishedPlaces, tmp_path: Path) -> None:
    queries = write_table(published, tmp_path / "queries.csv", east_m=15.0, rows=slice(3, 8))
    out = tmp_path / "report.json"
    where = ("--index", published.name, "--indexes", published.indexes)
    run(*where, "--queries", queries, "--json", out, "--figures", tmp_path / "figures")
    report = EvaluationReport.model_validate_json(out.read_text())
    assert (report.queries, report.database, report.ranked) == (5, 12, 20)
    assert report.recall[0].at[0].recall.value == 1.0
    assert (tmp_path / "figures" / "successes.png").is_file()
    field = run(*where, "--queries", queries, "--convention", "vpr-methods-evaluation").output
    assert "25 m: R@1: 100.0, R@5: 100.0, R@10: 100.0, R@20: 100.0" in field
    assert "the index's own search (fp16 vectors, cosine)" in field


@pytest.mark.parametrize("where", ["database", "index"])
def test_photos_of_other_places_and_too_few_to_calibrate(
    published: PublishedPlaces, tmp_path: Path, where: str
) -> None:
    """Twelve photos of no session cannot be calibrated on, and it says so; without that nothing is NO_MATCH."""
    queries = write_table(published, tmp_path / "queries.csv", east_m=15.0)
    elsewhere = write_table(published, tmp_path / "elsewhere.csv", east_m=90_000.0, rows=slice(0, 7))
    out = tmp_path / "report.json"
    database = write_table(published, tmp_path / "database.csv")
    found = {"database": ("--database", database), "index": ("--index", published.name, "--indexes", published.indexes)}
    shown = run(*found[where], "--queries", queries, "--calibrate", "--out-of-area", elsewhere, "--json", out).output
    assert "Not calibrated: too few references see what references of other sessions see" in shown
    report = EvaluationReport.model_validate_json(out.read_text())
    told = {status.of: status for status in report.statuses}
    assert (told["solvable queries"].photos, told["photos from elsewhere"].photos) == (12, 7)
    assert told["photos from elsewhere"].no_match_share == 0.0
    assert report.no_match_curve[0].solvable_share == 0.0
    assert report.no_match_curve[-1].solvable_share == pytest.approx(5 / 12)
    assert report.confidence is not None
    assert report.confidence.calibrated is False


def test_photos_of_one_session_on_both_sides_are_noted(published: PublishedPlaces, tmp_path: Path) -> None:
    database = write_table(published, tmp_path / "database.csv", session="monday")
    same = write_table(published, tmp_path / "same.csv", session="monday", rows=slice(0, 1))
    other = write_table(published, tmp_path / "other.csv", session="tuesday")
    noted = "1 query has a best match of the same session"
    assert noted in run("--database", database, "--queries", same, "--recall-at", "1").output
    assert "of the same session" not in run("--database", database, "--queries", other, "--recall-at", "1").output


def test_intervals_by_session(published: PublishedPlaces, tmp_path: Path) -> None:
    table = write_table(published, tmp_path / "photos.csv", session="monday")
    shown = run("--database", table, "--queries", table, "--group", "session", "--recall-at", "1").output
    assert "interval over 1 session (2000" in shown
    assert "Only 1 session to draw from" in shown


def test_a_terminal_of_80_columns_shows_whole_cells(
    published: PublishedPlaces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Console(force_terminal=True, width=80, file=io.StringIO(), color_system=None)
    monkeypatch.setattr(sightfix.commands.evaluate, "console", terminal)
    database = write_table(published, tmp_path / "database.csv")
    queries = write_table(published, tmp_path / "queries.csv", east_m=15.0)
    run("--database", database, "--queries", queries)
    lines = terminal.file.getvalue().splitlines()
    recall = next(line.split() for line in lines if line.startswith("25 m"))
    assert recall == ["25", "m", "12", "(100.0%)", "12", "1", "100.0", "[100.0,", "100.0]", "8.3"]
    assert any(line.split()[:5] == ["fix", "12", "0", "15.0", "[15.0,"] for line in lines)
    assert max(len(line) for line in lines) <= 80


def test_users_errors(published: PublishedPlaces, tmp_path: Path) -> None:
    table = write_table(published, tmp_path / "photos.csv")
    both = ("--database", table, "--queries", table)
    with pytest.raises(ParameterError, match="either --database or --index"):
        run("--queries", table)
    with pytest.raises(ParameterError, match="either --database or --index"):
        run(*both, "--index", "places")
    with pytest.raises(ParameterError, match="--recall-at '1,x' is not whole numbers"):
        run(*both, "--recall-at", "1,x")
    with pytest.raises(ParameterError, match=r"unknown convention 'mine'\. Choose solvable or vpr-methods-evaluation"):
        run(*both, "--convention", "mine")
    with pytest.raises(ParameterError, match=r"unknown grouping 'image'\. Choose session or place"):
        run(*both, "--group", "image")
    with pytest.raises(ParameterError, match="not all above 0"):
        run(*both, "--radius", "-5")
    with pytest.raises(StorageError, match="the report cannot be written"):
        run(*both, "--json", tmp_path / "no" / "such" / "folder.json")
    (tmp_path / "empty.csv").write_text("path,lat,lon\n")
    with pytest.raises(ReferenceDataError):
        run("--database", table, "--queries", f"csv:{tmp_path / 'empty.csv'}")


def test_an_index_of_another_bundle_is_refused(published: PublishedPlaces, bundle: Bundle, tmp_path: Path) -> None:
    table = write_table(published, tmp_path / "photos.csv")
    other = write_other_bundle(bundle, tmp_path / "bundle").folder
    with pytest.raises(ModelIndexMismatchError):
        run("--index", published.name, "--indexes", published.indexes, "--queries", table, "--bundle", other)


@pytest.mark.nightly
@pytest.mark.photos
@pytest.mark.parametrize(
    ("database", "queries", "counted", "chance", "at_least"),
    [("phoneA_*", "phoneB_*", 557, 0.084, 0.46), ("*_day", "*_night", 781, 0.084, 0.42)],
    ids=["cross-phone", "day-night"],
)
def test_the_campus(
    photos_root: Path, tmp_path: Path, database: str, queries: str, counted: int, chance: float, at_least: float
) -> None:
    """Counts and chance are facts of the data; recall@1 at 25 m is at least what untrained ImageNet features gave."""
    table = f"csv:{photos_root / 'bgu_campus' / 'images.csv'}"
    out = tmp_path / "report.json"
    run("--database", f"{table}?sessions={database}", "--queries", f"{table}?sessions={queries}", "--json", out)
    (radius,) = json.loads(out.read_text())["recall"]
    first = radius["at"][0]
    assert radius["counted"] == counted
    assert first["chance"] == pytest.approx(chance, abs=0.001)
    assert first["recall"]["value"] >= at_least
    assert first["recall"]["low"] < first["recall"]["value"] < first["recall"]["high"]


@pytest.mark.photos
def test_a_few_photos_of_the_campus(photos_root: Path, tmp_path: Path) -> None:
    """Every fifth photo of two days by two phones."""
    folder = photos_root / "bgu_campus"
    with (folder / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    tables = {}
    for session in ("phoneA_20251223_day", "phoneB_20251230_day"):
        few = [row for row in rows if row["session"] == session][::5]
        lines = [f"{folder / row['path']},{row['lat']},{row['lon']},{session}" for row in few]
        tables[session] = tmp_path / f"{session}.csv"
        tables[session].write_text("\n".join(["path,lat,lon,session", *lines, ""]))
    database, queries = tables.values()
    out = tmp_path / "report.json"
    run("--database", f"csv:{database}", "--queries", f"csv:{queries}", "--radius", "50", "--json", out)
    (radius,) = json.loads(out.read_text())["recall"]
    first = radius["at"][0]
    assert radius["counted"] == 19
    assert first["chance"] == pytest.approx(0.234, abs=0.001)
    assert first["recall"]["value"] >= 0.5
