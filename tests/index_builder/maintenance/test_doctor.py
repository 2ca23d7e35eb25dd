"""Faults are planted among synthetic references whose descriptors follow their positions."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from index_builder.index_design import IndexDesign
from index_builder.maintenance.doctor import DoctorSettings, diagnose
from index_builder.version_writer import VersionContent, write_version
from retrieval.bundle import Bundle
from retrieval.geo import Position, from_local_metres
from retrieval.index.manifest import Source
from retrieval.index.place_index import PlaceIndex
from retrieval.index.reference_table import reference_rows
from retrieval.references.reference import Reference
from sightfix.commands.index_group import diagnosis_json
from sightfix.figures.doctor_page import doctor_page

ORIGIN = Position(48.0, 11.0)
STEP_M = 5.0


def street(count: int, origin: Position = ORIGIN) -> tuple[list[Reference], list[float]]:
    """Two sessions along the same street, a photo every five metres, three seconds apart; and where each was taken."""
    rows, places = [], []
    for session in range(2):
        for step in range(count):
            at = datetime(2026, 5, 4 + session, tzinfo=UTC) + timedelta(seconds=3 * step)
            position = from_local_metres(origin, STEP_M * step, 2.0 * session)
            name = f"{session}/{step:03d}.jpg"
            rows.append(Reference(name, Path(name), position, captured_at=at, session=f"drive-{session}"))
            places.append(STEP_M * step)
    return rows, places


def descriptors_of(places: list[float], dim: int, seed: int = 0) -> np.ndarray:
    """Nearby places look alike: random waves over the street, and some noise."""
    draw = np.random.default_rng(seed)
    frequency, phase = draw.normal(scale=0.08, size=dim), draw.uniform(0, 2 * np.pi, dim)
    waves = np.cos(np.outer(places, frequency) + phase) + 0.05 * draw.normal(size=(len(places), dim))
    return (waves / np.linalg.norm(waves, axis=1, keepdims=True)).astype(np.float32)


def index_of(folder: Path, bundle: Bundle, rows: list[Reference], descriptors: np.ndarray) -> PlaceIndex:
    folder.mkdir(parents=True)
    content = VersionContent(
        name="street",
        version="1",
        bundle=bundle,
        source=Source(spec="test:street", root="/photos"),
        table=reference_rows(rows),
        described=lambda some: descriptors[some],
    )
    write_version(folder, content, IndexDesign(calibrate=False))
    return PlaceIndex.open(folder)


def ids(index: PlaceIndex, rows: list[int] | tuple[int, ...]) -> set[str]:
    return {reference.id for reference in index.references(list(rows))}


def test_a_sound_street_has_nothing(tmp_path: Path, bundle: Bundle) -> None:
    rows, places = street(60)
    found = diagnose(index_of(tmp_path / "v", bundle, rows, descriptors_of(places, bundle.descriptor_dim)))
    assert (found.count, found.examined) == (120, 120)
    assert (found.jumps, found.misplaced, found.gaps) == ([], [], [])
    assert (found.without_heading, found.without_time, found.without_session) == (120, 0, 0)
    assert found.sessions == {"drive-0": 60, "drive-1": 60}


def test_a_photo_thrown_off_its_way_jumps(tmp_path: Path, bundle: Bundle) -> None:
    rows, places = street(60)
    rows[20] = replace(rows[20], position=from_local_metres(ORIGIN, 100.0, 80.0))
    index = index_of(tmp_path / "v", bundle, rows, descriptors_of(places, bundle.descriptor_dim))
    found = diagnose(index)
    assert ids(index, [jump.row for jump in found.jumps]) == {"0/020.jpg"}
    assert found.jumps[0].metres == pytest.approx(80.0, abs=1.0)
    assert found.gaps == []


def test_a_photo_without_time_is_contradicted_by_its_look_alikes(tmp_path: Path, bundle: Bundle) -> None:
    rows, places = street(60)
    rows[10] = replace(rows[10], position=from_local_metres(ORIGIN, 250.0, 1.0), captured_at=None, session=None)
    index = index_of(tmp_path / "v", bundle, rows, descriptors_of(places, bundle.descriptor_dim))
    found = diagnose(index)
    assert ids(index, [one.row for one in found.misplaced]) == {"0/010.jpg"}
    one = found.misplaced[0]
    assert one.metres == pytest.approx(200.0, abs=15.0)
    assert one.score_there > one.score_here + 0.05


def test_look_alikes_on_both_sides_of_the_antimeridian_have_a_middle(tmp_path: Path, bundle: Bundle) -> None:
    origin = from_local_metres(Position(-16.8, 180.0), -50.0, 0.0)
    rows, places = street(60, origin)
    rows[10] = replace(rows[10], position=from_local_metres(origin, 250.0, 1.0), captured_at=None, session=None)
    index = index_of(tmp_path / "v", bundle, rows, descriptors_of(places, bundle.descriptor_dim))
    (one,) = diagnose(index).misplaced
    assert one.metres == pytest.approx(200.0, abs=15.0)
    assert abs(one.lon) > 179.99


def test_copies_are_grouped(tmp_path: Path, bundle: Bundle) -> None:
    rows, places = street(40)
    descriptors = descriptors_of(places, bundle.descriptor_dim)
    copies = [replace(rows[7], id=f"copy/{n}.jpg", path=Path(f"copy/{n}.jpg"), session=None) for n in range(2)]
    both = np.concatenate([descriptors, descriptors[[7, 7]]])
    index = index_of(tmp_path / "v", bundle, [*rows, *copies], both)
    found = diagnose(index, DoctorSettings(copy_spreads=0.0005))
    assert [ids(index, group.rows) for group in found.copies] == [{"0/007.jpg", "copy/0.jpg", "copy/1.jpg"}]
    assert found.copies[0].least_score > 0.9999


def test_a_stretch_without_photos_is_a_gap(tmp_path: Path, bundle: Bundle) -> None:
    rows, places = street(60)
    kept = [number for number in range(120) if not 20 <= number % 60 < 32]
    descriptors = descriptors_of(places, bundle.descriptor_dim)[kept]
    index = index_of(tmp_path / "v", bundle, [rows[number] for number in kept], descriptors)
    found = diagnose(index)
    assert [(gap.session, round(gap.metres)) for gap in found.gaps] == [("drive-0", 65), ("drive-1", 65)]
    assert ids(index, [found.gaps[0].before, found.gaps[0].after]) == {"0/019.jpg", "0/032.jpg"}


def test_a_stretch_that_another_session_fills_is_none(tmp_path: Path, bundle: Bundle) -> None:
    rows, places = street(60)
    kept = [number for number in range(120) if not 20 <= number < 32]
    descriptors = descriptors_of(places, bundle.descriptor_dim)[kept]
    index = index_of(tmp_path / "v", bundle, [rows[number] for number in kept], descriptors)
    assert diagnose(index).gaps == []


def test_large_indexes_are_sampled(tmp_path: Path, bundle: Bundle) -> None:
    rows, places = street(60)
    index = index_of(tmp_path / "v", bundle, rows, descriptors_of(places, bundle.descriptor_dim))
    done: list[int] = []
    assert diagnose(index, DoctorSettings(most_rows=30), done.append).examined == sum(done) == 30


def test_page_and_json_name_what_was_found(tmp_path: Path, bundle: Bundle) -> None:
    rows, places = street(60)
    rows[20] = replace(rows[20], id="<b>.jpg", position=from_local_metres(ORIGIN, 100.0, 80.0))
    index = index_of(tmp_path / "v", bundle, rows, descriptors_of(places, bundle.descriptor_dim))
    found = diagnose(index)
    page = doctor_page(index, found)
    assert "&lt;b&gt;.jpg" in page
    assert "<b>" not in page
    assert page.count('class="dot"') == 120
    assert "http" not in page
    told = json.loads(diagnosis_json(index, found))
    assert told["jumps"][0]["reference"] == "<b>.jpg"
