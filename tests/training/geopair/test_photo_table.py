from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from retrieval.geo import EARTH_RADIUS_M, haversine_m
from retrieval.geo import Position as At
from retrieval.references.reference import Reference
from training.geopair import GeoPairError, PhotoTable


def photo(name: str, position: At | None, **more) -> Reference:
    return Reference(name, Path(name), position, captured_at=datetime(2024, 5, 1), **more)


def test_a_stream_becomes_columns() -> None:
    stream = (
        photo(f"{row}.jpg", At(31.0, 34.0 + row * 1e-4), heading_deg=heading, session=session)
        for row, (heading, session) in enumerate([(10.0, "east"), (None, None), (359.5, "west"), (0.0, "east")])
    )
    table = PhotoTable.from_references(stream)
    assert len(table) == 4
    assert (table.points.dtype, table.points.shape) == (np.float64, (4, 3))
    assert (table.headings_deg.dtype, table.sessions.dtype) == (np.float32, np.int32)
    np.testing.assert_array_equal(table.headings_deg, np.array([10, np.nan, 359.5, 0], np.float32))
    assert table.sessions.tolist() == [0, -1, 1, 0]
    step = np.linalg.norm(table.points[1] - table.points[0]) * EARTH_RADIUS_M
    assert step == pytest.approx(float(haversine_m(31.0, 34.0, 31.0, 34.0001)), abs=1e-6)


def test_nothing_becomes_an_empty_table() -> None:
    table = PhotoTable.from_references([])
    assert (table.points.shape, len(table)) == ((0, 3), 0)


def test_plane_metres_stay_metres() -> None:
    table = PhotoTable.from_references(
        [photo("a", None, plane_m=(500_000.0, 4_000_000.0)), photo("b", None, plane_m=(500_003.0, 4_000_004.0))]
    )
    assert np.linalg.norm(table.points[1] - table.points[0]) * EARTH_RADIUS_M == pytest.approx(5.0, abs=1e-6)


def test_degrees_are_used_where_all_have_them() -> None:
    rows = [photo("a", At(0, 0), plane_m=(0, 0)), photo("b", At(0, 1e-4))]
    assert np.linalg.norm(PhotoTable.from_references(rows).points, axis=1) == pytest.approx([1.0, 1.0])


def test_degrees_and_metres_do_not_mix() -> None:
    with pytest.raises(GeoPairError, match=r"reference 'b' has no latitude and longitude, and 'a' no plane") as error:
        PhotoTable.from_references([photo("a", At(0, 0)), photo("b", None, plane_m=(0, 0))])
    assert error.value.code == "mixed_positions"


def test_a_photo_must_lie_somewhere() -> None:
    with pytest.raises(GeoPairError, match="row 1 of the references has no position"):
        PhotoTable.from_references([photo("a", None, plane_m=(0, 0)), photo("b", None, plane_m=(np.nan, 0))])
