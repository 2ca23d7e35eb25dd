"""Positions, headings and times as cameras write them, well and badly."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from PIL import Image
from PIL.ExifTags import GPS
from PIL.TiffImagePlugin import IFDRational

from retrieval.references.exif import ExifRecord, read_exif_record
from retrieval.references.reader import UnusablePhotoError
from tests.retrieval.references.exif_photos import NOTHING, exif_of, gps_tags


def through_bytes(exif: Image.Exif) -> Image.Exif:
    """The block as it comes back from a file."""
    read = Image.Exif()
    read.load(exif.tobytes())
    return read


def record(lat: float = 48.5, lon: float = 11.25, *, details: dict[str, Any] | None = None, **gps: Any) -> ExifRecord:
    return read_exif_record(through_bytes(exif_of(gps_tags(lat, lon, **gps), details)))


def refusal(tags: dict[int, Any]) -> str:
    with pytest.raises(UnusablePhotoError) as caught:
        read_exif_record(through_bytes(exif_of(tags)))
    return str(caught.value)


@pytest.mark.parametrize(
    ("lat", "lon"), [(48.5, 11.25), (-33.8568, 151.2153), (40.6892, -74.0445), (-22.9519, -43.2105), (0.0, 9.5)]
)
def test_every_quarter_of_the_earth(lat: float, lon: float) -> None:
    position = record(lat, lon).position
    assert position.lat == pytest.approx(lat, abs=1e-8)
    assert position.lon == pytest.approx(lon, abs=1e-8)


@pytest.mark.parametrize(
    "angle",
    [
        (IFDRational(45, 1), IFDRational(30, 1), IFDRational(0, 1)),
        (IFDRational(45, 1), IFDRational(3000, 100)),  # decimal minutes
        (IFDRational(455, 10),),  # decimal degrees
        (IFDRational(44, 1), IFDRational(89, 1), IFDRational(60, 1)),
    ],
)
def test_degrees_minutes_seconds_in_every_split(angle: tuple[IFDRational, ...]) -> None:
    tags = gps_tags(1, 2) | {GPS.GPSLatitude: angle}
    assert read_exif_record(exif_of(tags)).position.lat == pytest.approx(45.5)


@pytest.mark.parametrize(
    ("ref", "expected"), [(b"\0", 520.0), (b"\x01", -520.0), (None, 520.0)], ids=["above", "below", "not said"]
)
def test_altitude_below_sea_level_is_negative(ref: bytes | None, expected: float) -> None:
    further = {} if ref is None else {"GPSAltitudeRef": ref}
    assert record(GPSAltitude=IFDRational(5200, 10), **further).altitude_m == expected


def test_true_heading() -> None:
    found = record(GPSImgDirection=IFDRational(36000, 100), GPSImgDirectionRef="T")
    assert found.heading_deg == 0.0
    assert "heading_reference" not in found.metadata


def test_magnetic_heading_is_kept_and_said() -> None:
    found = record(GPSImgDirection=IFDRational(23150, 100), GPSImgDirectionRef="M")
    assert found.heading_deg == 231.5
    assert found.metadata["heading_reference"] == "magnetic"


@pytest.mark.parametrize("direction", [NOTHING, IFDRational(65535, 1)])
def test_no_or_impossible_heading_is_missing(direction: IFDRational) -> None:
    found = record(GPSImgDirection=direction, GPSImgDirectionRef="M", GPSAltitude=NOTHING)
    assert found.heading_deg is None
    assert found.altitude_m is None
    assert "heading_reference" not in found.metadata


def test_position_error_and_camera_go_to_the_metadata() -> None:
    assert record(GPSHPositioningError=IFDRational(475, 100)).metadata == {"position_error_m": "4.75", "camera": "Test"}


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ({}, datetime(2026, 5, 31, 14, 5, 9)),
        ({"OffsetTimeOriginal": "+05:30"}, datetime(2026, 5, 31, 14, 5, 9, tzinfo=timezone(timedelta(hours=5.5)))),
        ({"OffsetTime": "-03:00"}, datetime(2026, 5, 31, 14, 5, 9, tzinfo=timezone(timedelta(hours=-3)))),
        (
            {"OffsetTimeOriginal": "+01:00", "OffsetTime": "+09:00"},
            datetime(2026, 5, 31, 14, 5, 9, tzinfo=timezone(timedelta(hours=1))),
        ),
        ({"OffsetTimeOriginal": "   :  "}, datetime(2026, 5, 31, 14, 5, 9)),
        ({"OffsetTimeOriginal": "Z"}, datetime(2026, 5, 31, 14, 5, 9, tzinfo=UTC)),
        ({"SubsecTimeOriginal": "25"}, datetime(2026, 5, 31, 14, 5, 9, 250_000)),
    ],
)
def test_time_and_its_offset(details: dict[str, str], expected: datetime) -> None:
    found = record(details={"DateTimeOriginal": "2026:05:31 14:05:09"} | details).captured_at
    assert found == expected
    assert found is not None
    assert found.tzinfo == expected.tzinfo


@pytest.mark.parametrize("text", ["0000:00:00 00:00:00", "    :  :     :  :  ", "yesterday", ""])
def test_no_time(text: str) -> None:
    assert record(details={"DateTimeOriginal": text}).captured_at is None


def test_gps_time_stands_in_for_a_missing_time() -> None:
    stamp = (IFDRational(23), IFDRational(59), IFDRational(61, 2))
    assert record(GPSDateStamp="2026:05:31", GPSTimeStamp=stamp).captured_at == datetime(
        2026, 5, 31, 23, 59, 30, 500_000, UTC
    )
    assert record(GPSDateStamp="2026:05:31", GPSTimeStamp=(NOTHING,) * 3).captured_at is None
    assert record(GPSDateStamp="", GPSTimeStamp=stamp).captured_at is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({GPS.GPSLatitude: (NOTHING,) * 3}, "its GPS latitude is empty"),
        ({GPS.GPSLongitude: (IFDRational(11), IFDRational(5), NOTHING)}, "its GPS longitude is empty"),
        ({GPS.GPSLatitudeRef: ""}, "its GPS latitude does not say N or S"),
        ({GPS.GPSLongitudeRef: "N"}, "its GPS longitude does not say E or W"),
        ({GPS.GPSLatitude: (IFDRational(95),)}, "its GPS position 95, 2 is outside the Earth"),
        ({GPS.GPSLongitude: (IFDRational(181),)}, "its GPS position 1, 181 is outside the Earth"),
    ],
)
def test_half_or_impossible_positions(change: dict[int, Any], reason: str) -> None:
    assert refusal(gps_tags(1, 2) | change) == reason


def test_the_position_that_means_none() -> None:
    assert refusal(gps_tags(0, 0)) == "its GPS position is 0, 0, which cameras write when they have none"


def test_no_position_at_all() -> None:
    assert refusal({}) == "no GPS position in its EXIF"
    assert refusal({GPS.GPSAltitude: IFDRational(5)}) == "no GPS position in its EXIF"
