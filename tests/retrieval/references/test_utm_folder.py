"""Photos whose names carry UTM coordinates."""

from datetime import datetime
from pathlib import Path

import pytest

from retrieval.errors import ParameterError, ReferenceDataError
from retrieval.geo import Position, haversine_m, wgs84_to_utm
from retrieval.references import Reference, SkippedPhoto
from retrieval.references.named_folders import UtmFolder, UtmOptions

# As VPR-datasets-downloader writes them: Tokyo 24/7, Pitts30k, MSLS, St Lucia.
TOKYO = "@0381847.38@3945914.89@54@S@035.65050@0139.69477@6mm9sLhYAJgoBVUFbWTFPg@00@@@@@@@.jpg"
PITTS = "@0584318.95@4476977.15@17@T@040.43877@-080.00566@000@00@000@30@@@@@.jpg"
MSLS = "@0548134.52@4180012.10@10@S@037.76607@-122.45351@bp_tCXzPsKFWVwYbXjLQ4w@@@@@@201803@day_forward_sf@.jpg"
BRISBANE = "@0489817.30@6957122.31@56@J@-027.50843@0152.89692@190809_0845_00012@@@@@@20090819_0845@@.jpg"


def folder(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def read(root: Path, **options: object) -> list[Reference]:
    return list(UtmFolder(root, UtmOptions.model_validate(options)))


@pytest.mark.parametrize(
    ("name", "lat", "lon", "east", "north"),
    [
        (TOKYO, 35.65050, 139.69477, 381847.38, 3945914.89),
        (PITTS, 40.43877, -80.00566, 584318.95, 4476977.15),
        (MSLS, 37.76607, -122.45351, 548134.52, 4180012.10),
        (BRISBANE, -27.50843, 152.89692, 489817.30, 6957122.31),
    ],
    ids=["tokyo", "pitts30k", "msls", "st lucia"],
)
def test_names_of_real_data_sets(tmp_path: Path, name: str, lat: float, lon: float, east: float, north: float) -> None:
    (reference,) = read(folder(tmp_path, name))
    assert reference.position == Position(lat, lon)
    assert reference.plane_m == (east, north)
    assert reference.id == name


def test_every_field(tmp_path: Path) -> None:
    name = "@0500000.00@5000000.00@33@T@045.15000@0015.00000@pano@07@370@10@-2@2.5@20190101_123000@a note@.jpg"
    (reference,) = read(folder(tmp_path, f"database/{name}"))
    assert reference == Reference(
        id=f"database/{name}",
        path=tmp_path / "database" / name,
        position=Position(45.15, 15.0),
        plane_m=(500000.0, 5000000.0),
        heading_deg=10.0,
        captured_at=datetime(2019, 1, 1, 12, 30),
        session="database",
        metadata={
            "pano_id": "pano",
            "tile_num": "07",
            "pitch": "10",
            "roll": "-2",
            "height": "2.5",
            "timestamp": "20190101_123000",
            "note": "a note",
        },
    )


@pytest.mark.parametrize(
    ("timestamp", "expected"),
    [
        ("2019", None),
        ("201901", None),
        ("20190131", datetime(2019, 1, 31)),
        ("2019-01-31", datetime(2019, 1, 31)),
        ("20190131_08", datetime(2019, 1, 31, 8)),
        ("20190131_0845", datetime(2019, 1, 31, 8, 45)),
        ("20190131_084530", datetime(2019, 1, 31, 8, 45, 30)),
        ("20191399", None),
        ("spring", None),
    ],
)
def test_a_time_needs_at_least_its_day(tmp_path: Path, timestamp: str, expected: datetime | None) -> None:
    (reference,) = read(folder(tmp_path, f"@1@2@@@@@@@@@@@{timestamp}@@.jpg"))
    assert reference.captured_at == expected
    assert reference.metadata == {"timestamp": timestamp}


@pytest.mark.parametrize(
    ("zone", "letter", "lat", "lon"),
    [(33, "U", 48.2082, 16.3738), (56, "H", -33.8568, 151.2153), (54, "S", 35.6595, 139.7005), (25, "N", 0.5, -33.2)],
)
def test_latitude_and_longitude_from_the_zone_and_its_band(
    tmp_path: Path, zone: int, letter: str, lat: float, lon: float
) -> None:
    east, north = (float(metres) for metres in wgs84_to_utm(lat, lon, zone, lat < 0))
    (reference,) = read(folder(tmp_path, f"@{east:.2f}@{north:.2f}@{zone}@{letter}@@@@@@@@@@@.jpg"))
    assert reference.position is not None
    assert haversine_m(lat, lon, reference.position.lat, reference.position.lon) < 0.02


def test_the_zone_of_the_options_fills_in(tmp_path: Path) -> None:
    root = folder(tmp_path, "@500000@5000000@@@@@@@@@@@@@.jpg", "@500000@5000000@32@@@@@@@@@@@@.jpg")
    assert [reference.position for reference in read(root)] == [None, None]
    without_letter, without_zone = read(root, zone="33n")
    assert without_zone.position is not None
    assert without_zone.position.lon == pytest.approx(15.0)
    assert without_letter.position is not None
    assert without_letter.position.lon == pytest.approx(9.0), "the zone of the name comes first"
    southern, _ = read(root, zone="33S")
    assert southern.position is not None
    assert southern.position.lat < -40


@pytest.mark.parametrize("zone", ["33", "33U", "0N", "61S", "N33", ""])
def test_a_zone_that_is_none(tmp_path: Path, zone: str) -> None:
    with pytest.raises(ParameterError) as caught:
        read(tmp_path, zone=zone)
    assert str(caught.value) == (
        f"option zone={zone} of the reader utm is not a UTM zone. "
        "Give the number and the hemisphere, N or S, such as zone=33N."
    )


def test_the_shortest_name(tmp_path: Path) -> None:
    (reference,) = read(folder(tmp_path, "@12.5@-3@.jpg"))
    assert (reference.plane_m, reference.position) == ((12.5, -3.0), None)


def test_other_names_are_left_out(tmp_path: Path) -> None:
    names = {
        "IMG_1.jpg": "its name is not of the form @UTM_east@UTM_north@…@.jpg",
        "@1.jpg": "its name is not of the form @UTM_east@UTM_north@…@.jpg",
        "@@2@.jpg": "its name has no UTM_east or no UTM_north",
        "@one@2@.jpg": "the east in its name is not a number: 'one'",
        "@1@nan@.jpg": "the north in its name is not a number: 'nan'",
        "@1@2@61@N@.jpg": "there is no UTM zone 61",
        "@1@2@33@N@95@10@.jpg": "the position 95, 10 in its name is outside the Earth",
    }
    source = UtmFolder(folder(tmp_path, "@1@2@.jpg", *names))
    assert [reference.id for reference in source] == ["@1@2@.jpg"]
    assert set(map(repr, source.skipped)) == {
        repr(SkippedPhoto(tmp_path / name, reason)) for name, reason in names.items()
    }


def test_a_point_outside_its_zone(tmp_path: Path) -> None:
    source = UtmFolder(folder(tmp_path, "@1@2@.jpg", "@1e12@1e12@33@N@.jpg"))
    assert [reference.id for reference in source] == ["@1@2@.jpg"]
    assert [photo.reason for photo in source.skipped] == ["there is no point 1e+12 east, 1e+12 north in UTM zone 33"]


def test_no_such_name_at_all(tmp_path: Path) -> None:
    with pytest.raises(ReferenceDataError) as caught:
        read(folder(tmp_path, "a.jpg", "b.jpg"))
    assert str(caught.value) == (
        f"{tmp_path}: no photo of 2 can be used: its name is not of the form @UTM_east@UTM_north@…@.jpg (2). "
        "Give a folder of photos named @UTM_east@UTM_north@zone@letter@lat@lon@…@.jpg."
    )
