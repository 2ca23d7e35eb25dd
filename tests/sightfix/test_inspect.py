"""`sightfix inspect`: numbers of a reference database, its gaps and duplicates, and its map."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from retrieval.errors import MissingExtraError, ParameterError, SightfixError, StorageError
from retrieval.geo import Position, from_local_metres, longitude_bounds
from retrieval.references import Reference, SkippedPhoto
from sightfix.commands.inspect import inspect
from sightfix.console import console
from sightfix.figures.map import write_map_figure
from sightfix.inspection.report import InspectionReport, measure_coverage, nearest_other_m, report_on, write_geojson
from sightfix.inspection.survey import find_identical_files, survey_references
from tests.hypothesis_profiles import examples

app = typer.Typer()
app.command()(inspect)


@dataclass
class Rows:
    """A reference source in memory."""

    rows: list[Reference]
    skipped: list[SkippedPhoto] = field(default_factory=list)
    spec: str = "test:rows"
    root: Path = Path("photos")

    def __iter__(self) -> Iterator[Reference]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def reference(number: int, lat: float | None = None, lon: float = 11.0, **values: Any) -> Reference:
    position = None if lat is None else Position(lat, lon)
    return Reference(id=f"{number}.jpg", path=Path(f"photos/{number}.jpg"), position=position, **values)


def at(points: list[tuple[float, float]], origin: tuple[float, float] = (48.0, 11.0), **values: Any) -> Rows:
    """References at metres east and north of an origin."""
    places = [from_local_metres(Position(*origin), east, north) for east, north in points]
    return Rows([reference(number, place.lat, place.lon, **values) for number, place in enumerate(places)])


def report(source: Rows) -> InspectionReport:
    return report_on(source, survey_references(source))


def run(*arguments: str) -> str:
    """What the command prints, unfolded; its errors are raised as they are."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=True)
    if isinstance(result.exception, SightfixError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four photos in two sessions, one of them twice, and one row without a position."""
    monkeypatch.setattr(console, "width", 200)
    (tmp_path / "photos").mkdir()
    for name in "1234":
        Image.new("RGB", (16, 16), (40 * int(name) if name != "4" else 120, 0, 0)).save(tmp_path / f"photos/{name}.png")
    path = tmp_path / "refs.csv"
    path.write_text(
        "path,lat,lon,heading,captured_at,session\n"
        "photos/1.png,48.0000,11.0,0,2026-05-31T14:05:00,a\n"
        "photos/2.png,48.0001,11.0,90,2026-05-31T14:06:00,a\n"
        "photos/3.png,48.0001,11.0,,,b\n"
        "photos/4.png,48.0003,11.0,,,\n"
        "photos/5.png,,,,,b\n"
    )
    return path


@settings(max_examples=examples(50))
@given(st.integers(2, 150), st.integers(1, 3), st.integers(0, 2**31), st.booleans())
def test_the_nearest_other_point_is_exact(count: int, dimensions: int, seed: int, on_a_line: bool) -> None:
    points = np.random.default_rng(seed).normal(size=(count, dimensions)) * 100
    if on_a_line:
        points[:, 1:] = 0
    points = np.unique(points, axis=0)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    np.testing.assert_allclose(np.sort(nearest_other_m(points)), np.sort(distances.min(axis=1)), rtol=1e-12)


def test_a_sample_of_many_points_is_exact_too() -> None:
    points = np.random.default_rng(0).uniform(0, 1000, (3000, 2))
    found = nearest_other_m(points, sample=50)
    assert len(found) == 50
    by_hand = [np.partition(np.linalg.norm(points - point, axis=1), 1)[1] for point in points]
    assert set(np.round(found, 9)) <= set(np.round(by_hand, 9))


def test_fewer_than_two_points_have_no_nearest() -> None:
    assert nearest_other_m(np.zeros((1, 2))).size == 0


@pytest.mark.parametrize(
    ("lons", "expected"),
    [([10.0, 11.0, 10.5], (10.0, 11.0)), ([179.5, -179.0, -179.5], (179.5, -179.0)), ([5.0], (5.0, 5.0))],
)
def test_longitudes_that_meet_at_the_antimeridian(lons: list[float], expected: tuple[float, float]) -> None:
    assert longitude_bounds(np.array(lons)) == expected


@pytest.mark.parametrize("origin", [(48.0, 11.0), (-33.0, 179.9999), (70.0, -150.0)])
def test_coverage_of_a_grid(origin: tuple[float, float]) -> None:
    grid = [(float(10 * column), float(10 * row)) for column in range(4) for row in range(3)]
    coverage = measure_coverage(survey_references(at([*grid, (0.0, 0.0), (0.0, 0.0)], origin)))
    assert coverage is not None
    assert coverage.report.east_west_m == pytest.approx(30, rel=1e-3)
    assert coverage.report.north_south_m == pytest.approx(20, rel=1e-3)
    assert coverage.report.spacing_m == pytest.approx(10, rel=1e-3)
    assert (coverage.report.distinct_positions, coverage.shared, coverage.most_on_one) == (12, 3, 3)


def test_the_covered_area_is_that_of_squares_of_25_metres() -> None:
    plane = [(1.0, 1.0), (24.0, 24.0), (26.0, 1.0), (1.0, -1.0)]
    rows = Rows([reference(number, plane_m=point) for number, point in enumerate(plane)])
    found = report(rows).coverage
    assert found is not None
    assert found.bounds is None
    assert found.covered_hectares == 3 * 625 / 10_000
    assert found.references_per_hectare == pytest.approx(4 / 0.1875)
    assert (found.east_west_m, found.north_south_m) == (25.0, 25.0)


@pytest.mark.parametrize("origin", [(0.0, 0.0), (60.0, 25.0), (-45.0, 170.0)])
def test_the_covered_area_does_not_depend_on_the_latitude(origin: tuple[float, float]) -> None:
    dense = [(4.0 * east, 4.0 * north) for east in range(100) for north in range(100)]
    found = report(at(dense, origin)).coverage
    assert found is not None
    assert found.covered_hectares == pytest.approx(16, rel=0.13)


def test_a_single_reference() -> None:
    found = report(at([(0, 0)]))
    assert found.coverage is not None
    assert (found.coverage.spacing_m, found.coverage.distinct_positions) == (None, 1)


def test_no_position_of_any_kind() -> None:
    assert report(Rows([reference(1)])).coverage is None


def test_sessions_missing_fields_and_times() -> None:
    local = timezone(timedelta(hours=2))
    found = report(
        Rows(
            [
                reference(1, 48.0, session="b", heading_deg=1.0, captured_at=datetime(2026, 5, 31, 14, tzinfo=local)),
                reference(2, 48.0, session="b", altitude_m=3.0, captured_at=datetime(2026, 5, 31, 11, 59, tzinfo=UTC)),
                reference(3, 48.1, captured_at=datetime(2026, 1, 1)),
                reference(4, session="a"),
            ]
        )
    )
    assert [(s.name, s.count) for s in found.sessions] == [("a", 1), ("b", 2), (None, 1)]
    b = found.sessions[1]
    assert b.first == datetime(2026, 5, 31, 11, 59, tzinfo=UTC)
    assert b.last == datetime(2026, 5, 31, 14, tzinfo=local)
    assert found.missing == {"position": 1, "heading": 3, "time": 1, "altitude": 3, "session": 1}


def test_times_with_and_without_an_offset_in_one_session() -> None:
    times = (datetime(2026, 5, 31, 13), datetime(2026, 5, 31, 14, tzinfo=timezone(timedelta(hours=2))))
    (session,) = report(Rows([reference(number, 48.0, captured_at=time) for number, time in enumerate(times)])).sessions
    assert (session.first, session.last) == (times[1], times[0])


def test_ids_that_come_again() -> None:
    duplicates = report(
        Rows([reference(1, 48.0), reference(2, 48.1), reference(1, 48.2), reference(1, 48.3)])
    ).duplicates
    assert (duplicates.repeated_ids, duplicates.repeated_ids_examples) == (2, ("1.jpg", "1.jpg"))
    assert duplicates.sharing_a_position == 0


def test_what_was_left_out_is_counted_by_reason() -> None:
    skipped = [SkippedPhoto(Path(f"{number}.jpg"), "no GPS" if number else "damaged") for number in range(8)]
    left_out = report(Rows([reference(1, 48.0)], skipped)).left_out
    assert (left_out.count, left_out.reasons) == (8, {"no GPS": 7, "damaged": 1})
    assert left_out.examples[0] == ("0.jpg", "damaged")
    assert len(left_out.examples) == 5


def notes(source: Rows) -> str:
    return " ".join(report(source).notes)


def test_notes_say_what_is_amiss_and_only_that() -> None:
    good = at([(0, 0), (10, 0), (20, 0)], heading_deg=5.0, session="a")
    assert notes(good) == ""
    assert "No headings" in notes(at([(0, 0), (10, 0)], session="a"))
    assert "No sessions" in notes(at([(0, 0), (10, 0)], heading_deg=5.0))
    sparse = notes(at([(0, 0), (60, 0)], heading_deg=5.0, session="a"))
    assert sparse.startswith("Half of the positions lie more than 60 m from the nearest other")
    lonely = notes(at([(0, 0), (5, 0), (10, 0), (5000, 0)], heading_deg=5.0, session="a"))
    assert lonely == "1 position lies more than 1 km from every other: look for wrong GPS fixes on the map."
    null_island = notes(Rows([*good.rows, reference(9, 0.0, 0.0, heading_deg=1.0, session="a")]))
    assert "1 reference at 0, 0 in the Atlantic" in null_island
    magnetic = at([(0, 0), (10, 0)], heading_deg=5.0, session="a", metadata={"heading_reference": "magnetic"})
    assert "2 magnetic headings: true north differs" in notes(magnetic)
    assert "not to index" in notes(Rows([reference(1, plane_m=(0.0, 0.0), heading_deg=1.0, session="a")]))


def test_files_that_are_equal(tmp_path: Path) -> None:
    for name, content in (("a", b"xx"), ("b", b"xy"), ("c", b"xx"), ("d", b"x"), ("e", b"xx"), ("f", b"xy")):
        (tmp_path / name).write_bytes(content)
    for name, content in (("h", b"alone"), ("i", b"a pair"), ("j", b"a pair")):
        (tmp_path / name).write_bytes(content)
    rows = [Reference(id=name, path=tmp_path / name, position=None) for name in "abcdefghij"]
    advanced: list[int] = []
    found = find_identical_files(rows, advanced.append)
    assert found.groups == (("a", "c", "e"), ("b", "f"), ("i", "j"))
    assert [(photo.path.name, photo.reason) for photo in found.unreadable] == [
        ("g", "the file cannot be read (No such file or directory)")
    ]
    assert sum(advanced) == 9


def test_geojson(tmp_path: Path) -> None:
    path = tmp_path / "map.geojson"
    rows = [
        reference(1, 48.5, 11.25, altitude_m=3.5, heading_deg=90.0, session="ä", captured_at=datetime(2026, 5, 31)),
        reference(2),
    ]
    assert write_geojson(rows, path) == 2
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "id": "1.jpg",
                "geometry": {"type": "Point", "coordinates": [11.25, 48.5, 3.5]},
                "properties": {
                    "path": str(Path("photos/1.jpg")),
                    "heading": 90.0,
                    "captured_at": "2026-05-31T00:00:00",
                    "session": "ä",
                },
            },
            {
                "type": "Feature",
                "id": "2.jpg",
                "geometry": None,
                "properties": {
                    "path": str(Path("photos/2.jpg")),
                    "heading": None,
                    "captured_at": None,
                    "session": None,
                },
            },
        ],
    }
    assert [file.name for file in tmp_path.iterdir()] == ["map.geojson"]


def test_maps_that_cannot_be_written(tmp_path: Path) -> None:
    for write in (
        lambda path: write_geojson([reference(1, 48.0)], path),
        lambda path: write_map_figure(survey_references(at([(0, 0)])), "here", path),
    ):
        with pytest.raises(StorageError, match=r"the (map|figure) cannot be written"):
            write(tmp_path / "no folder" / "map.png")
    with pytest.raises(ParameterError, match="no reference has a position to draw"):
        write_map_figure(survey_references(Rows([reference(1)])), "here", tmp_path / "map.png")


def inked(path: Path) -> set[tuple[int, ...]]:
    """The colours that cover something in a picture."""
    colours = Image.open(path).convert("RGB").getcolors(1 << 24)
    assert colours is not None
    return {colour for count, colour in colours if count >= 8}


@pytest.mark.parametrize(
    "points",
    [[(0.0, 0.0)], [(0.0, 0.0), (400.0, 3.0)], [(0.0, 0.0), (3.0, 400.0)], [(0.0, 0.0), (30_000.0, 20_000.0)]],
    ids=["one", "wide", "tall", "large"],
)
def test_a_figure_of_any_shape(tmp_path: Path, points: list[tuple[float, float]]) -> None:
    path = tmp_path / "map.png"
    write_map_figure(survey_references(at(points, heading_deg=45.0)), "here", path)
    width, height = Image.open(path).size
    assert 300 < width < 1500
    assert 200 < height < 1500
    assert any(blue > red + 60 for red, _, blue in inked(path)), "the points are blue"


def test_a_figure_tells_sessions_apart(tmp_path: Path) -> None:
    rows = [
        reference(number, 48.0 + number / 10_000, 11.0, session=f"walk {number % 8}" if number % 9 else None)
        for number in range(200)
    ]
    path = tmp_path / "map.svg"
    write_map_figure(survey_references(Rows(rows)), "here", path)
    drawn = path.read_text()
    for colour in ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#888888"):
        assert colour in drawn


def test_the_command_prints_for_people(walk: Path) -> None:
    text = run(f"{walk}", "--hash")
    for expected in (
        f"4 references in csv:{walk}",
        "0.0 m east–west, 33 m north–south",
        "11 m to the nearest other position (median of 3 positions)",
        "2026-05-31 14:05 to 14:06",
        "heading (2), time (2), altitude (all), session (1)",
        "2 references at exactly the position of another (up to 2 at one position)",
        "photos/3.png = photos/4.png",
        "1 photo: its row has no latitude and longitude (1)",
        "photos/5.png: its row has no latitude and longitude",
        f"Next: sightfix index {walk}",
    ):
        assert expected in text, text


def test_the_command_prints_json(walk: Path) -> None:
    found = InspectionReport.model_validate_json(run(str(walk), "--json", "--hash"))
    assert (found.count, found.left_out.count) == (4, 1)
    assert found.duplicates.identical_files == (("photos/3.png", "photos/4.png"),)
    assert InspectionReport.model_validate_json(run(str(walk), "--json")).duplicates.identical_files is None


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf", ".geojson"])
def test_the_command_draws_a_map(walk: Path, suffix: str) -> None:
    path = walk.with_name(f"map{suffix}")
    assert f"map {path}" in run(str(walk), "--map", str(path))
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF", ".geojson": b'{"type": "FeatureCollection"'}
    assert path.read_bytes().startswith(starts[suffix])


def test_the_command_refuses_other_maps(walk: Path) -> None:
    with pytest.raises(ParameterError, match=r"--map map\.bmp is not a map that can be drawn\. Give \.png, \.svg"):
        run(str(walk), "--map", "map.bmp")


def test_a_missing_matplotlib_is_said_before_the_work(walk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError) as caught:
        run(f"{walk}?lat=nowhere", "--map", "map.png")
    assert str(caught.value) == (
        "figures need matplotlib, which is not installed. Run: pip install 'sightfix[figures]'."
    )
    assert "4 references" in run(str(walk)), "all else works without it"


def test_brackets_in_names_are_not_markup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console, "width", 200)
    Path("[red]refs.csv").write_text("path,lat,lon,session\nx,1,2,[bold]walk[/]\ny,,,\n")
    text = run("[red]refs.csv?missing=ignore")
    assert "csv:[red]refs.csv" in text
    assert "[bold]walk[/]" in text


@pytest.mark.photos
def test_bgu_campus(photos_root: Path) -> None:
    found = InspectionReport.model_validate_json(run(str(photos_root / "bgu_campus"), "--json"))
    assert found.count == 1475
    assert found.coverage is not None
    assert found.coverage.east_west_m == pytest.approx(328, abs=1)
    assert found.coverage.north_south_m == pytest.approx(74, abs=1)
    assert found.coverage.distinct_positions == 539
    assert len(found.sessions) == 6
    assert found.missing["heading"] == 1475
