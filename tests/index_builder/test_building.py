import json
import shutil
import weakref
from collections import namedtuple
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from index_builder import version_writer
from index_builder.describing import DescribeSettings
from index_builder.index_design import IndexDesign
from index_builder.publish import check_free_space
from index_builder.update import UpdateSettings, build_index
from index_builder.update_observer import UpdateObserver
from retrieval.bundle import Bundle
from retrieval.describer import Describer
from retrieval.errors import ParameterError, PlaceIndexError, ReferenceDataError, StorageError
from retrieval.geo import Position, hilbert_key
from retrieval.images import read_image
from retrieval.index.place_index import PlaceIndex
from retrieval.index.vectors.exact import ExactVectors
from retrieval.references.reference import SkippedPhoto
from tests.index_builder.recording_observer import RecordingObserver
from tests.places import Places, make_places
from tests.retrieval.refusal import refused

DiskUsage = namedtuple("DiskUsage", "total used free")


def nothing_published(indexes: Path) -> bool:
    return not indexes.exists() or list(indexes.iterdir()) == []


@pytest.mark.parametrize("storage", ["fp16", "fp32"])
def test_a_built_index_finds_every_photo_it_was_made_of(
    tmp_path: Path, describer: Describer, bundle: Bundle, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows far apart in an order that the curve changes, and copied in pieces that do not divide their number."""
    monkeypatch.setattr(version_writer, "_COPY_ROWS", 5)
    places = make_places(tmp_path, 12)
    rng = np.random.default_rng(3)
    places.rows[:] = [
        replace(row, position=Position(float(rng.uniform(-80, 80)), float(rng.uniform(-180, 180))))
        for row in places.rows
    ]
    settings = UpdateSettings(design=IndexDesign(storage=storage), describe=DescribeSettings(batch_size=5))
    observer = RecordingObserver()
    built = build_index(places, describer, tmp_path / "indexes", "town", settings, observer=observer)
    assert observer.progress[-1] == (12, 0)
    assert not built.unreadable
    index = PlaceIndex.open(tmp_path / "indexes" / "town")
    assert index.folder == built.folder
    assert index.manifest == built.manifest
    assert index.manifest.storage == storage
    keys = hilbert_key(index.lat, index.lon)
    assert (np.diff(keys) > 0).all()
    assert [reference.id for reference in index.references(range(12))] != [row.id for row in places.rows]
    queries = describer.describe([read_image(row.path, bundle.preprocessing) for row in places.rows])
    found = index.search(queries, 1)
    for row, reference in zip(places.rows, index.references(found.rows[:, 0]), strict=True):
        assert (reference.id, reference.position) == (row.id, row.position)
    own = index.descriptors(found.rows[:, 0])
    assert (own * queries).sum(axis=1).min() > 0.999


def test_the_steps_come_in_their_order(tmp_path: Path, describer: Describer) -> None:
    observer = RecordingObserver()
    build_index(make_places(tmp_path, 2), describer, tmp_path / "indexes", "town", observer=observer)
    assert observer.steps == [
        "draft opened",
        "adapted",
        "planned",
        "part written",
        "described",
        "vectors written",
        "references written",
        "bundle written",
        "manifest written",
        "quality checked",
        "version named",
        "current",
    ]


def test_a_version_holds_its_files_and_nothing_else(tmp_path: Path, describer: Describer) -> None:
    built = build_index(make_places(tmp_path, 2), describer, tmp_path / "indexes", "town")
    assert {entry.name for entry in built.folder.iterdir()} == {
        "bundle",
        "manifest.json",
        "manifest.sha256",
        "references.parquet",
        "vectors.faiss",
    }
    town = tmp_path / "indexes" / "town"
    assert {entry.name for entry in town.iterdir()} == {"CURRENT", "versions", ".lock"}
    assert (town / "CURRENT").read_text() == f"{built.folder.name}\n"


def test_every_column_of_a_reference_is_kept(tmp_path: Path, describer: Describer) -> None:
    places = make_places(tmp_path, 1)
    taken = datetime(2026, 5, 4, 3, 2, 1)
    row = replace(
        places.rows[0],
        altitude_m=519.0,
        heading_deg=None,
        captured_at=taken,
        session="drive 1",
        metadata={"camera": "größte", "note": '"quoted", 1'},
    )
    places.rows[:] = [row]
    build_index(places, describer, tmp_path / "indexes", "town")
    assert PlaceIndex.open(tmp_path / "indexes" / "town").references([0]) == [row]


def test_paths_below_the_root_are_kept_relative_and_others_absolute(tmp_path: Path, describer: Describer) -> None:
    places = make_places(tmp_path / "root", 2)
    elsewhere = tmp_path / "elsewhere.jpg"
    shutil.copy(places.rows[1].path, elsewhere)
    places.rows[1] = replace(places.rows[1], path=elsewhere)
    built = build_index(places, describer, tmp_path / "indexes", "town")
    paths = pq.read_table(built.folder / "references.parquet")["path"].to_pylist()
    assert sorted(paths) == sorted(["photos/0000.jpg", str(elsewhere)])


def test_paths_below_a_root_that_is_a_link_are_kept_relative(tmp_path: Path, describer: Describer) -> None:
    """Else the index could not be moved together with its photos."""
    make_places(tmp_path / "disk", 2)
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    built = build_index(make_places(tmp_path / "link", 2), describer, tmp_path / "indexes", "town")
    paths = pq.read_table(built.folder / "references.parquet")["path"].to_pylist()
    assert sorted(paths) == ["photos/0000.jpg", "photos/0001.jpg"]
    assert all(reference.path.is_file() for reference in PlaceIndex.open(built.folder).references([0, 1]))


@pytest.mark.parametrize(
    ("lons", "west", "east"),
    [
        ([10.0, 12.0, 11.0], 10.0, 12.0),
        ([179.0, -179.0, 178.0], 178.0, -179.0),
        ([5.0], 5.0, 5.0),
        ([-180.0, 180.0], 180.0, -180.0),
    ],
)
def test_bounds_are_the_narrowest_even_across_the_antimeridian(
    tmp_path: Path, describer: Describer, lons: list[float], west: float, east: float
) -> None:
    places = make_places(tmp_path, len(lons))
    places.rows[:] = [
        replace(row, position=Position(float(lat), lon))
        for lat, (row, lon) in enumerate(zip(places.rows, lons, strict=True))
    ]
    bounds = build_index(places, describer, tmp_path / "indexes", "town").manifest.bounds
    assert (bounds.lat_min, bounds.lat_max) == (0.0, len(lons) - 1.0)
    assert (bounds.lon_min, bounds.lon_max) == (west, east)


def test_the_manifest_says_where_the_photos_came_from(tmp_path: Path, describer: Describer, bundle: Bundle) -> None:
    places = make_places(tmp_path, 2)
    places.skipped.append(SkippedPhoto(tmp_path / "x.jpg", "no GPS position in its EXIF"))
    manifest = build_index(places, describer, tmp_path / "indexes", "town").manifest
    assert manifest.source.model_dump() == {"spec": "test:places", "root": str(tmp_path.resolve()), "skipped": 1}
    assert manifest.bundle.fingerprint == bundle.fingerprint
    assert manifest.count == 2


# Refusals: nothing is published


def refuse_to_build(places: Places, describer: Describer, indexes: Path, text: str, code: str, **settings) -> None:
    describe = DescribeSettings(**settings)
    with refused(ReferenceDataError, text, code):
        build_index(places, describer, indexes, "town", UpdateSettings(describe=describe))
    assert nothing_published(indexes)


def test_an_empty_source_is_refused(tmp_path: Path, describer: Describer) -> None:
    text = "test:places: there is no photo to index. Look at the source with: sightfix inspect SPEC."
    refuse_to_build(make_places(tmp_path, 0), describer, tmp_path / "indexes", text, "reference_data")


def test_a_source_of_unreadable_photos_only_is_refused(tmp_path: Path, describer: Describer) -> None:
    places = make_places(tmp_path, 3)
    for row in places.rows:
        row.path.write_bytes(b"")
    text = "test:places: there is no photo to index. Look at the source with: sightfix inspect SPEC."
    refuse_to_build(places, describer, tmp_path / "indexes", text, "reference_data", max_unreadable=3)


def test_an_unreadable_photo_is_refused_by_name(tmp_path: Path, describer: Describer) -> None:
    places = make_places(tmp_path, 3)
    places.rows[1].path.write_bytes(b"")
    text = (
        "photos/0001.jpg: the image is empty (0 bytes). So far 1 photo is unreadable, none may be. "
        "Repair or remove what is named, or allow more with --max-unreadable (a job: max_unreadable)."
    )
    refuse_to_build(places, describer, tmp_path / "indexes", text, "too_many_unreadable")


def test_allowed_unreadable_photos_are_left_out_and_reported(tmp_path: Path, describer: Describer) -> None:
    places = make_places(tmp_path, 6)
    for number in (0, 4):
        places.rows[number].path.write_bytes(b"GIF89a")
    settings = UpdateSettings(describe=DescribeSettings(max_unreadable=2, batch_size=2))
    built = build_index(places, describer, tmp_path / "indexes", "town", settings)
    assert [photo.path for photo in built.unreadable] == ["photos/0000.jpg", "photos/0004.jpg"]
    assert [photo.code for photo in built.unreadable] == ["unsupported_media_type"] * 2
    index = PlaceIndex.open(built.folder)
    assert index.count == 4
    left = {reference.id for reference in index.references(range(4))}
    assert left == {f"photos/000{number}.jpg" for number in (1, 2, 3, 5)}


def test_a_reference_without_a_position_is_refused(tmp_path: Path, describer: Describer) -> None:
    places = make_places(tmp_path, 3)
    places.rows[2] = replace(places.rows[2], position=None, plane_m=(1.0, 2.0))
    text = (
        f"{places.rows[2].path}: reference photos/0002.jpg has plane metres but no latitude and longitude. "
        "A place index needs WGS84 positions; give the UTM zone in the spec (zone=33N)."
    )
    refuse_to_build(places, describer, tmp_path / "indexes", text, "reference_data")


def test_two_references_of_one_id_are_refused(tmp_path: Path, describer: Describer) -> None:
    places = make_places(tmp_path, 3)
    places.rows[2] = replace(places.rows[2], id="photos/0000.jpg")
    text = f"{places.rows[2].path}: two references have the id 'photos/0000.jpg'."
    refuse_to_build(places, describer, tmp_path / "indexes", text, "reference_data")


def test_a_name_that_cannot_be_a_folders_is_refused(tmp_path: Path, describer: Describer) -> None:
    text = (
        "'../town' cannot be the name of a place index. "
        "Use up to 64 letters, digits, '.', '_' and '-', starting with a letter or digit."
    )
    with refused(ParameterError, text, "validation_error"):
        build_index(make_places(tmp_path, 1), describer, tmp_path / "indexes", "../town")
    assert nothing_published(tmp_path / "indexes")


def test_vectors_that_do_not_find_themselves_are_not_published(tmp_path: Path, describer: Describer) -> None:
    """The canary: what a broken disk or memory made of the vectors after they were described."""
    places = make_places(tmp_path, 4)

    def spoil(step: str) -> None:
        if step == "references written":
            (draft,) = (tmp_path / "indexes" / "town" / "versions").iterdir()
            spoilt = ExactVectors.read(draft / "vectors.faiss", "fp16").descriptors(np.arange(4)) * 2
            with (draft / "vectors.faiss").open("wb") as file:
                ExactVectors.from_descriptors([spoilt], spoilt.shape[1], "fp16").write(file.write)

    with pytest.raises(PlaceIndexError) as caught:
        build_index(places, describer, tmp_path / "indexes", "town", observer=RecordingObserver(spoil))
    assert caught.value.code == "canary_failed"
    assert str(caught.value) == (
        f"{caught.value.where}: the written index does not find its own references; nothing was published. "
        "Check the disk and the memory of this machine, then build again."
    )
    assert nothing_published(tmp_path / "indexes")


def test_an_error_in_a_callback_leaves_nothing_behind(tmp_path: Path, describer: Describer) -> None:
    class Stopper(UpdateObserver):
        def described(self, done: int, failed: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index(make_places(tmp_path, 2), describer, tmp_path / "indexes", "town", observer=Stopper())
    assert nothing_published(tmp_path / "indexes")


# Room on the disk


def test_too_little_room_is_refused_before_describing(
    tmp_path: Path, describer: Describer, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(10**9, 10**9 - 1_000, 1_000))
    observer = RecordingObserver()
    held = sum(record.size for record in bundle.manifest.files.values())
    needed = (3 * (bundle.descriptor_dim * 6 + 512) + held) / 1e6
    text = (
        f"{tmp_path / 'indexes'}: the index needs about {needed:.1f} MB, the disk has 0.0 MB free. "
        "Free some space or choose another folder (--indexes); nothing was published."
    )
    with refused(StorageError, text, "storage"):
        build_index(make_places(tmp_path, 3), describer, tmp_path / "indexes", "town", observer=observer)
    assert observer.steps == ["draft opened", "adapted"]
    assert nothing_published(tmp_path / "indexes")


def test_room_is_asked_of_the_nearest_folder_that_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(10**9, 0, 2_500_000))
    check_free_space(tmp_path / "a" / "b", 2_500_000)
    text = (
        f"{tmp_path}: the index needs about 3.0 MB, the disk has 2.5 MB free. "
        "Free some space or choose another folder (--indexes); nothing was published."
    )
    with refused(StorageError, text, "storage"):
        check_free_space(tmp_path / "a" / "b", 3_000_000)


def test_metadata_is_text_in_the_table(tmp_path: Path, describer: Describer) -> None:
    places = make_places(tmp_path, 1)
    places.rows[:] = [replace(places.rows[0], metadata={"b": "2", "a": "1"})]
    built = build_index(places, describer, tmp_path / "indexes", "town")
    table = pq.read_table(built.folder / "references.parquet")
    assert json.loads(table["metadata"][0].as_py()) == {"b": "2", "a": "1"}


def test_written_vectors_leave_the_memory_before_they_are_opened(
    tmp_path: Path, describer: Describer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the memory would have to hold a large index twice."""
    written: list[weakref.ref[ExactVectors]] = []
    write, read = version_writer._write_exact, ExactVectors.read

    def remembered(*arguments: Any) -> ExactVectors:
        vectors = write(*arguments)
        written.append(weakref.ref(vectors))
        return vectors

    def alone(*arguments: Any, **options: Any) -> ExactVectors:
        assert [one() for one in written] == [None]
        return read(*arguments, **options)

    monkeypatch.setattr(version_writer, "_write_exact", remembered)
    monkeypatch.setattr(ExactVectors, "read", alone)
    build_index(make_places(tmp_path, 3), describer, tmp_path / "indexes", "town")
    assert len(written) == 1
