"""What every reader filters alike: session, bounding box, every, limit."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrieval.errors import ParameterError, ReferenceDataError
from retrieval.geo import Position
from retrieval.references.reader import BoundingBox, parse_options
from retrieval.references.table_files import CsvTable
from retrieval.references.tables import TableOptions
from tests.hypothesis_profiles import examples


@pytest.fixture
def walk(tmp_path: Path) -> Path:
    """Ten references along a parallel across the antimeridian, 179.5 to -175.0 in steps of half a degree."""
    path = tmp_path / "refs.csv"
    lons = [179.5 + number / 2 for number in range(10)]
    path.write_text(
        "path,lat,lon,session\n"
        + "".join(f"{number},5,{lon},{'even' if number % 2 == 0 else ''}\n" for number, lon in enumerate(lons))
    )
    return path


def kept(path: Path, **options: str) -> str:
    source = CsvTable(path, parse_options("csv", TableOptions, {"missing": "ignore"} | options))
    return "".join(reference.id for reference in source)


def test_sessions(walk: Path) -> None:
    assert kept(walk) == "0123456789"
    assert kept(walk, sessions="even") == "02468"
    assert kept(walk, sessions="odd,e*") == "02468"
    assert kept(walk, sessions="*") == "02468", "a reference without a session matches no glob"


def test_sessions_compare_capital_letters(walk: Path) -> None:
    with pytest.raises(ReferenceDataError) as caught:
        kept(walk, sessions="Even,odd")
    assert str(caught.value) == (f"{walk}: no reference of 10 passes sessions=Even,odd. Its sessions are even.")


def test_a_bounding_box_with_its_border(walk: Path) -> None:
    assert kept(walk, bbox="5,-179.5,5,-178") == "2345"
    with pytest.raises(ReferenceDataError, match=r"no reference of 10 passes bbox=5\.1,-180\.0,6\.0,180\.0"):
        kept(walk, bbox="5.1,-180,6,180")


def test_a_bounding_box_across_the_antimeridian(walk: Path) -> None:
    assert kept(walk, bbox="0,179,10,-179") == "0123"
    assert kept(walk, bbox="0,179,10,181") == "0123"


def test_every_and_limit_count_what_passed_the_others(walk: Path) -> None:
    assert kept(walk, every="3") == "0369"
    assert kept(walk, limit="4") == "0123"
    assert kept(walk, every="3", limit="2") == "03"
    assert kept(walk, sessions="even", every="2", limit="2") == "04"


@pytest.mark.parametrize(("every", "limit"), [(1, None), (3, None), (3, 2), (4, 100), (11, None)])
def test_the_expected_length(walk: Path, every: int, limit: int | None) -> None:
    source = CsvTable(walk, TableOptions(missing="ignore", every=every, limit=limit))
    assert len(source) == len(list(source))


def test_rows_behind_the_limit_are_not_looked_at(walk: Path) -> None:
    walk.write_text(walk.read_text() + "broken\n")
    assert kept(walk, limit="10") == "0123456789"
    with pytest.raises(ReferenceDataError):
        kept(walk, limit="11")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("limit", "0", "option limit=0 of the reader csv should be greater than or equal to 1."),
        ("every", "two", "option every=two of the reader csv should be a valid integer, "
         "unable to parse string as an integer."),
        ("missing", "no", "option missing=no of the reader csv should be 'error', 'skip' or 'ignore'."),
        ("bbox", "1,2,3", "bbox=1,2,3 is not four numbers. "
         "Give bbox=lat_min,lon_min,lat_max,lon_max, such as bbox=48.1,11.5,48.2,11.6."),
        ("bbox", "2,0,1,0", "bbox lat_min 2 is above lat_max 1. Give bbox=lat_min,lon_min,lat_max,lon_max."),
        ("bbox", "0,0,95,0", "latitude 95.0 is outside [-90, 90]. Give WGS84 degrees."),
        ("session_glob", "x", "the reader csv has no option 'session_glob'. "
         "Its options are sessions, bbox, every, limit, "
         "missing, root, path, lat, lon, id, heading, altitude, captured_at, session."),
    ],
)  # fmt: skip
def test_bad_options(walk: Path, option: str, value: str, message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        kept(walk, **{option: value})
    assert str(caught.value) == message


@settings(max_examples=examples(100), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.tuples(st.floats(-90, 90), st.floats(-90, 90)).map(sorted),
    st.floats(-180, 180),
    st.floats(0, 359),
    st.floats(-90, 90),
    st.floats(-180, 180),
)
def test_a_box_holds_what_lies_east_of_its_western_edge(
    lats: list[float], west: float, width: float, lat: float, lon: float
) -> None:
    east = west + width if west + width <= 180 else west + width - 360
    inside = lats[0] <= lat <= lats[1] and (lon - west) % 360 <= width
    near_an_edge = min(abs((lon - west) % 360 - width), (lon - west) % 360, (west - lon) % 360) < 1e-9
    if not near_an_edge:
        assert BoundingBox(lats[0], west, lats[1], east).holds(Position(lat, lon)) == inside
