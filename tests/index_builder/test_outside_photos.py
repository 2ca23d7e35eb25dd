from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from index_builder.calibration import queries as held_out
from index_builder.calibration.queries import PAUSE_S, DescribedIndex, OutsidePhotos, OutsideSearch
from retrieval.errors import ParameterError
from retrieval.geo import haversine_m
from tests.index_builder.made_up_street import MADE_UP_BUNDLE, made_up_street


def outside(index: DescribedIndex) -> OutsidePhotos:
    every = np.arange(index.count)
    return OutsidePhotos.from_references(index.references(every), index.descriptors(every))


def spanned(every: np.ndarray, own: float) -> list[float]:
    """The instants from the first to the last photo taken in one go with this one, every ten seconds."""
    first = last = own
    for _ in every:
        near = [at for at in every if first - PAUSE_S <= at <= last + PAUSE_S]
        first, last = min([*near, first]), max([*near, last])
    return [] if np.isnan(own) else [*np.arange(first, last, 10.0), last]


def left_to_find(index: DescribedIndex, photos: OutsidePhotos, place: int, away_m: float | None) -> np.ndarray:
    """The rows that one photo may find, row by row."""
    allowed = []
    for row in range(index.count):
        reference = index.references(np.array([row]))[0]
        own, seconds = photos.sessions[place], photos.seconds[place]
        taken = reference.captured_at
        soon = taken is not None and any(
            abs(taken.timestamp() - at) <= PAUSE_S for at in spanned(photos.seconds, seconds)
        )
        apart = not soon and (not own or own != reference.session)
        metres = haversine_m(photos.lat[place], photos.lon[place], index.lat[row], index.lon[row])
        copy = index.descriptors(np.array([row]))[0] @ photos.descriptors[place] > 1.0 - 3e-3
        if apart and not copy and (away_m is None or metres > away_m):
            allowed.append(row)
    return np.array(allowed)


@pytest.mark.parametrize("away_m", [None, 200.0])
@pytest.mark.parametrize("block", [8192, 37])
def test_search_agrees_with_one_row_at_a_time(
    monkeypatch: pytest.MonkeyPatch, away_m: float | None, block: int
) -> None:
    """Of the index's own sessions, of others, without a session, and with nothing known at all."""
    monkeypatch.setattr(held_out, "_BLOCK", block)
    index = made_up_street(3, 40)
    photos = outside(made_up_street(4, 3, seed=5))
    photos = replace(
        photos,
        sessions=[*photos.sessions[:6], None, None, "drive-9", None, "", "drive-1"],
        seconds=np.array([*photos.seconds[:9], np.nan, photos.seconds[4], np.nan]),
    )
    found = OutsideSearch.of(index, photos).search(12, away_m)
    for place in range(photos.count):
        allowed = left_to_find(index, photos, place, away_m)
        scores = index.descriptors(allowed).astype(np.float64) @ photos.descriptors[place]
        best = np.argsort(-scores, kind="stable")[:12]
        np.testing.assert_array_equal(found.rows[place], allowed[best])
        np.testing.assert_allclose(found.scores[place], scores[best], atol=1e-5)
        centre = index.descriptors(allowed).astype(np.float64).mean(axis=0)
        around = index.descriptors(allowed[best]) - centre
        own = photos.descriptors[place] - centre
        centred = around @ own / np.linalg.norm(own) / np.linalg.norm(around, axis=1)
        np.testing.assert_allclose(found.centred[place], centred, atol=1e-4)
        assert found.remained[place] == len(allowed)


@pytest.mark.parametrize("block", [8192, 7])
def test_a_place_is_known_from_other_occasions_only(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(held_out, "_BLOCK", block)
    index, photos = made_up_street(1, 40), outside(made_up_street(1, 40))
    assert not OutsideSearch.of(index, photos).known(25.0).any(), "all of them are of drive-0"
    renamed = replace(photos, sessions=["another"] * 40)
    assert not OutsideSearch.of(index, renamed).known(25.0).any(), "all of them were taken at the same time"
    later = replace(
        outside(made_up_street(1, 40, seed=3)),
        sessions=["another"] * 40,
        seconds=photos.seconds + 86_400.0,
        lat=photos.lat + np.where(np.arange(40) < 10, 0.0, 0.01),
    )
    known = [
        (haversine_m(later.lat[place], later.lon[place], index.lat, index.lon) <= 25.0).any() for place in range(40)
    ]
    assert 0 < sum(known) <= 10
    np.testing.assert_array_equal(OutsideSearch.of(index, later).known(25.0), known)


@pytest.mark.parametrize("bits", ["fp32", "fp16", "int8"])
def test_copies_are_left_out_however_the_index_stores_them(bits: str) -> None:
    """Photos of which nothing is known but where they were taken, in an index that holds them."""
    made = made_up_street(1, 40, names=False, times=False, street_m=4_000.0)
    every = np.arange(40)
    stored = made.descriptors(every)
    if bits == "fp16":
        stored = stored.astype(np.float16).astype(np.float32)
    elif bits == "int8":
        stored = np.round(stored * 255.0 / 0.4).astype(np.float32) / 255.0 * 0.4
    index, photos = DescribedIndex(made.references(every), stored, MADE_UP_BUNDLE), outside(made)
    search = OutsideSearch.of(index, photos)
    assert not (search.search(5).rows == every[:, None]).any()
    near = haversine_m(index.lat[:, None], index.lon[:, None], index.lat[None], index.lon[None]) <= 25.0
    np.testing.assert_array_equal(search.known(25.0), near.sum(axis=1) > 1)
    assert search.indexed_undated().all()
    moved = replace(photos, lat=photos.lat + 0.001)
    assert not OutsideSearch.of(index, moved).indexed_undated().any()
    named = replace(photos, sessions=["robot"] * 40)
    assert OutsideSearch.of(index, named).indexed_undated().all(), "the references have no session"


def test_what_is_known_of_copies_is_enough() -> None:
    index = made_up_street(2, 20)
    assert not OutsideSearch.of(index, outside(index)).indexed_undated().any()
    without_times = replace(outside(index), seconds=np.full(40, np.nan))
    assert not OutsideSearch.of(index, without_times).indexed_undated().any()
    without_sessions = replace(outside(index), sessions=[None] * 40)
    assert not OutsideSearch.of(index, without_sessions).indexed_undated().any()


def test_occasions_are_sessions_or_blocks_of_time() -> None:
    photos = outside(made_up_street(2, 4))
    np.testing.assert_array_equal(photos.occasions, [0, 0, 0, 0, 1, 1, 1, 1])
    unnamed = replace(photos, sessions=[None] * 8)
    np.testing.assert_array_equal(unnamed.occasions, [0, 0, 0, 0, 1, 1, 1, 1])
    unknown = replace(unnamed, seconds=np.full(8, np.nan))
    assert set(unknown.occasions) == {0}
    mixed = replace(photos, sessions=["drive-0"] * 4 + [None] * 4)
    np.testing.assert_array_equal(mixed.occasions, [0, 0, 0, 0, 1, 1, 1, 1])


def test_what_was_written_is_read_bit_by_bit(tmp_path: Path) -> None:
    photos = outside(made_up_street(2, 3))
    photos = replace(photos, sessions=["a", None, "b", "b", None, "ü"], seconds=np.array([*photos.seconds[:5], np.nan]))
    photos.write(tmp_path / "photos.parquet")
    read = OutsidePhotos.read(tmp_path / "photos.parquet")
    assert read.sessions == photos.sessions
    for name in ("descriptors", "lat", "lon", "seconds"):
        np.testing.assert_array_equal(getattr(read, name), getattr(photos, name))
    assert read.descriptors.dtype == np.float32


def test_a_photo_without_a_position_is_refused() -> None:
    index = made_up_street(1, 3)
    without = [replace(reference, position=None) for reference in index.references(np.arange(3))]
    with pytest.raises(ParameterError, match="no position in degrees"):
        OutsidePhotos.from_references(without, index.descriptors(np.arange(3)))
