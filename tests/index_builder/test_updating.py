"""Append, remove, make anew: what is described, what is taken over bit by bit, and what is refused."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from index_builder.describing import DescribeSettings
from index_builder.index_design import IndexDesign
from index_builder.publish import draft_version, finish_publishing
from index_builder.quality import QualitySettings
from index_builder.update import UpdateSettings, append_references, build_index, remove_references
from index_builder.update_observer import Update
from retrieval.artefact import replace_file
from retrieval.bundle import Bundle
from retrieval.describer import Describer
from retrieval.errors import (
    IndexNotFoundError,
    ModelIndexMismatchError,
    PlaceIndexError,
    ReferenceDataError,
    StorageError,
)
from retrieval.geo import Position, hilbert_key
from retrieval.index.folder import published_versions
from retrieval.index.place_index import PlaceIndex
from retrieval.index.vectors.exact import ExactVectors
from retrieval.references.reference import SkippedPhoto
from tests.index_builder.counting_describer import CountingDescriber
from tests.index_builder.recording_observer import RecordingObserver, StoppedError, stop_at
from tests.places import Places, make_places
from tests.retrieval.other_bundle import write_other_bundle

SMALL = UpdateSettings(
    describe=DescribeSettings(batch_size=2, decode_threads=1), part_photos=2, quality=QualitySettings()
)


class Updater:
    """The three updates of one index, with one work folder."""

    def __init__(
        self, folder: Path, describer: Describer, observer: RecordingObserver | None = None, **changes: Any
    ) -> None:
        self._into = (describer, folder / "indexes", "town", replace(SMALL, **changes))
        self._options = {"work": folder / "work", "observer": observer}

    def build(self, places: Places) -> Update:
        return build_index(places, *self._into, **self._options)

    def append(self, places: Places) -> Update:
        return append_references(places, *self._into, **self._options)

    def remove(self, reference_ids: list[str] | None) -> Update:
        return remove_references(reference_ids, *self._into, **self._options)


def updater(tmp_path: Path, describer: Describer, observer: RecordingObserver | None = None, **changes: Any) -> Updater:
    return Updater(tmp_path, describer, observer, **changes)


def first(places: Places, count: int) -> Places:
    return Places(places.root, places.rows[:count])


def town(tmp_path: Path) -> PlaceIndex:
    return PlaceIndex.open(tmp_path / "indexes" / "town")


def ids_of(index: PlaceIndex) -> list[str]:
    return [reference.id for reference in index.references(range(index.count))]


def vectors_by_id(index: PlaceIndex) -> dict[str, bytes]:
    stored = index.descriptors(np.arange(index.count))
    return {name: vector.tobytes() for name, vector in zip(ids_of(index), stored, strict=True)}


@pytest.fixture(scope="module")
def counting() -> CountingDescriber:
    return CountingDescriber()


def scattered(folder: Path, count: int) -> Places:
    places = make_places(folder, count)
    rng = np.random.default_rng(7)
    places.rows[:] = [
        replace(row, position=Position(float(rng.uniform(-80, 80)), float(rng.uniform(-180, 180))))
        for row in places.rows
    ]
    return places


@pytest.mark.parametrize("storage", ["fp16", "fp32"])
def test_append_describes_what_is_new_and_keeps_the_rest_bit_by_bit(
    tmp_path: Path, counting: CountingDescriber, storage: str
) -> None:
    places = scattered(tmp_path, 9)
    settings = UpdateSettings(design=IndexDesign(storage=storage))
    build_index(first(places, 6), counting, tmp_path / "indexes", "town", settings)
    before = vectors_by_id(town(tmp_path))
    observer = RecordingObserver()
    update = updater(tmp_path, counting, observer).append(places)
    assert observer.totals == [3]
    assert (update.added, update.kept, update.replaced, update.removed, update.count) == (3, 6, 0, 0, 9)
    after = town(tmp_path)
    assert after.version == update.version
    assert after.manifest.storage == storage
    assert set(ids_of(after)) == {row.id for row in places.rows}
    assert (np.diff(hilbert_key(after.lat, after.lon)) > 0).all()
    now = vectors_by_id(after)
    assert {name: now[name] for name in before} == before
    assert {ref.path for ref in after.references(range(9))} == {row.path for row in places.rows}
    assert update.quality is not None
    assert (update.quality.canaries, update.quality.self_matches, update.quality.recall) == (9, 9, 1.0)


def test_an_appended_index_is_the_one_that_would_have_been_built(tmp_path: Path, describer: Describer) -> None:
    places = scattered(tmp_path, 7)
    build_index(first(places, 4), describer, tmp_path / "indexes", "town")
    updater(tmp_path, describer).append(places)
    built = build_index(places, describer, tmp_path / "other", "town")
    other = PlaceIndex.open(built.folder)
    assert ids_of(town(tmp_path)) == ids_of(other)
    assert pq.read_table(town(tmp_path).folder / "references.parquet").equals(
        pq.read_table(built.folder / "references.parquet")
    )


def test_every_fp16_number_survives_another_storing() -> None:
    """What append and remove rest on: an fp16 vector read as fp32 and stored again as fp16 is the same."""
    numbers = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = numbers[np.isfinite(numbers)].astype(np.float32)
    rows = finite[: len(finite) // 32 * 32].reshape(-1, 32)
    stored = ExactVectors.from_descriptors([rows], 32, "fp16")
    assert np.array_equal(stored.descriptors(np.arange(len(rows))), rows)


def test_append_of_what_is_there_makes_no_version(tmp_path: Path, counting: CountingDescriber) -> None:
    places = make_places(tmp_path, 3)
    version = build_index(places, counting, tmp_path / "indexes", "town").folder.name
    before = counting.described
    update = updater(tmp_path, counting).append(places)
    assert counting.described == before
    assert (update.version, update.kept, update.added, update.quality) == (version, 3, 0, None)
    assert published_versions(tmp_path / "indexes" / "town") == [version]


def test_a_row_that_says_something_else_is_described_again(tmp_path: Path, describer: Describer) -> None:
    places = make_places(tmp_path, 4)
    build_index(places, describer, tmp_path / "indexes", "town")
    places.rows[2] = replace(places.rows[2], position=Position(10.0, 20.0))
    observer = RecordingObserver()
    update = updater(tmp_path, describer, observer).append(first(places, 3))
    assert (update.replaced, update.kept, update.added, update.removed, observer.totals) == (1, 3, 0, 0, [1])
    after = town(tmp_path)
    assert after.references([after.row_of("photos/0002.jpg")])[0].position == Position(10.0, 20.0)


def test_describe_again_takes_photos_that_were_edited_in_place(tmp_path: Path, describer: Describer) -> None:
    places = make_places(tmp_path, 3)
    build_index(places, describer, tmp_path / "indexes", "town")
    before = vectors_by_id(town(tmp_path))
    make_places(tmp_path / "edited", 1, first_seed=99)
    shutil.copy(tmp_path / "edited/photos/0000.jpg", places.rows[1].path)
    update = updater(tmp_path, describer, describe_again=True).append(places)
    assert (update.replaced, update.kept) == (3, 0)
    after = vectors_by_id(town(tmp_path))
    assert [name for name in before if before[name] != after[name]] == ["photos/0001.jpg"]


def test_append_from_another_root_keeps_the_first_root(tmp_path: Path, describer: Describer) -> None:
    build_index(make_places(tmp_path / "a", 2), describer, tmp_path / "indexes", "town")
    more = make_places(tmp_path / "b", 3, first_seed=10)
    more.rows[:] = [replace(row, id=f"b/{row.id}") for row in more.rows]
    more.spec = "test:more"
    updater(tmp_path, describer).append(more)
    after = town(tmp_path)
    assert after.manifest.source.spec == "test:places + test:more"
    assert after.manifest.source.root == str((tmp_path / "a").resolve())
    assert all(reference.path.is_file() for reference in after.references(range(5)))


def test_the_same_id_for_another_photo_is_refused(tmp_path: Path, describer: Describer) -> None:
    build_index(make_places(tmp_path / "a", 2), describer, tmp_path / "indexes", "town")
    with pytest.raises(
        ReferenceDataError, match=r"has a reference 'photos/0000.jpg' already, of another photo"
    ) as info:
        updater(tmp_path, describer).append(make_places(tmp_path / "b", 2, first_seed=10))
    assert info.value.code == "reference_id_conflict"
    assert town(tmp_path).count == 2


def test_the_same_photo_through_a_link_is_no_other_photo(tmp_path: Path, describer: Describer) -> None:
    build_index(make_places(tmp_path / "a", 2), describer, tmp_path / "indexes", "town")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    places = make_places(tmp_path / "link", 3)
    update = updater(tmp_path, describer).append(places)
    assert (update.added, update.kept) == (1, 2)


def test_remove_by_id(tmp_path: Path, counting: CountingDescriber) -> None:
    places = scattered(tmp_path, 6)
    build_index(places, counting, tmp_path / "indexes", "town")
    before = vectors_by_id(town(tmp_path))
    observer = RecordingObserver()
    gone = ["photos/0001.jpg", "photos/0004.jpg"]
    update = updater(tmp_path, counting, observer).remove([*gone, gone[0]])
    assert (update.removed, update.kept, update.count, observer.totals) == (2, 4, 4, [0])
    assert vectors_by_id(town(tmp_path)) == {name: vector for name, vector in before.items() if name not in gone}


def test_remove_what_is_missing(tmp_path: Path, describer: Describer) -> None:
    places = make_places(tmp_path, 4)
    build_index(places, describer, tmp_path / "indexes", "town")
    places.rows[0].path.unlink()
    update = updater(tmp_path, describer).remove(None)
    assert (update.removed, update.count) == (1, 3)
    assert updater(tmp_path, describer).remove(None).version == update.version


def test_a_root_that_is_gone_removes_nothing(tmp_path: Path, describer: Describer) -> None:
    build_index(make_places(tmp_path / "photos", 2), describer, tmp_path / "indexes", "town")
    (tmp_path / "photos").rename(tmp_path / "unmounted")
    with pytest.raises(ReferenceDataError, match="the folder of all photos is gone") as info:
        updater(tmp_path, describer).remove(None)
    assert info.value.code == "source_unavailable"


@pytest.mark.parametrize(
    ("ids", "error", "code"),
    [
        (["photos/0000.jpg", "nobody"], IndexNotFoundError, "reference_not_found"),
        (["photos/0000.jpg", "photos/0001.jpg"], ReferenceDataError, "index_would_be_empty"),
    ],
)
def test_removals_that_are_refused(tmp_path: Path, describer: Describer, ids, error, code) -> None:
    build_index(make_places(tmp_path, 2), describer, tmp_path / "indexes", "town")
    with pytest.raises(error) as info:
        updater(tmp_path, describer).remove(ids)
    assert info.value.code == code
    assert town(tmp_path).count == 2


def test_append_and_remove_refuse_another_bundle_and_a_full_update_may_change_it(
    tmp_path: Path, describer: Describer, bundle: Bundle
) -> None:
    places = make_places(tmp_path, 3)
    build_index(first(places, 2), describer, tmp_path / "indexes", "town")
    other = Describer(write_other_bundle(bundle, tmp_path / "bundle"), threads=1)
    with pytest.raises(ModelIndexMismatchError):
        updater(tmp_path, other).append(places)
    with pytest.raises(ModelIndexMismatchError):
        updater(tmp_path, other).remove(["photos/0000.jpg"])
    update = updater(tmp_path, other).build(places)
    assert (update.added, update.replaced, update.removed) == (1, 2, 0)
    assert town(tmp_path).manifest.bundle.fingerprint == other.bundle.fingerprint


@pytest.mark.parametrize("kind", ["append", "remove"])
def test_there_must_be_an_index_to_change(tmp_path: Path, describer: Describer, kind: str) -> None:
    update = updater(tmp_path, describer)
    places = make_places(tmp_path, 2)
    with pytest.raises(IndexNotFoundError, match="there is no published place index"):
        update.append(places) if kind == "append" else update.remove(["a"])
    assert list((tmp_path / "indexes").iterdir()) == []


def test_a_full_update_replaces_everything_and_counts_by_id(tmp_path: Path, describer: Describer) -> None:
    places = make_places(tmp_path, 5)
    build_index(first(places, 3), describer, tmp_path / "indexes", "town")
    update = updater(tmp_path, describer, design=IndexDesign(storage="fp32")).build(Places(tmp_path, places.rows[1:]))
    assert (update.added, update.replaced, update.removed, update.kept, update.count) == (2, 2, 1, 0, 4)
    assert town(tmp_path).manifest.storage == "fp32"


def test_a_full_update_repairs_what_cannot_be_opened(tmp_path: Path, describer: Describer) -> None:
    places = make_places(tmp_path, 2)
    build_index(places, describer, tmp_path / "indexes", "town")
    (tmp_path / "indexes/town/CURRENT").write_text("nothing\n")
    assert updater(tmp_path, describer).build(places).base is None
    assert town(tmp_path).count == 2


# What is left out


def test_photos_left_out_are_reported_with_their_path_and_reason(tmp_path: Path, describer: Describer) -> None:
    places = make_places(tmp_path, 5)
    places.rows[1].path.write_bytes(b"no photo")
    places.rows[3].path.unlink()
    places.skipped.append(SkippedPhoto(tmp_path / "photos/x.jpg", "no GPS position in its EXIF"))
    observer = RecordingObserver()
    settings = DescribeSettings(batch_size=2, decode_threads=1, max_unreadable=2)
    update = updater(tmp_path, describer, observer, describe=settings).build(places)
    assert (len(update.unreadable), update.skipped, update.count) == (2, 1, 3)
    assert [(one.path, one.code) for one in observer.skipped] == [("photos/x.jpg", "skipped")]
    assert [(one.path, one.code) for one in observer.failures] == [
        ("photos/0001.jpg", "unsupported_media_type"),
        ("photos/0003.jpg", "image_unreadable"),
    ]
    assert observer.progress[-1] == (5, 2)
    assert set(ids_of(town(tmp_path))) == {"photos/0000.jpg", "photos/0002.jpg", "photos/0004.jpg"}


def test_too_many_unreadable_photos_are_reported_before_the_work_stops(tmp_path: Path, describer: Describer) -> None:
    places = make_places(tmp_path, 6)
    for number in (2, 3):
        places.rows[number].path.write_bytes(b"")
    observer = RecordingObserver()
    settings = DescribeSettings(batch_size=2, decode_threads=1, max_unreadable=1)
    with pytest.raises(ReferenceDataError, match="So far 2 photos are unreadable, 1 may be") as info:
        updater(tmp_path, describer, observer, describe=settings).build(places)
    assert info.value.code == "too_many_unreadable"
    assert len(observer.failures) == 2
    assert not published_versions(tmp_path / "indexes" / "town")


def test_append_of_unreadable_photos_only_makes_no_version(tmp_path: Path, describer: Describer) -> None:
    places = make_places(tmp_path, 3)
    version = build_index(first(places, 2), describer, tmp_path / "indexes", "town").folder.name
    places.rows[2].path.write_bytes(b"")
    settings = DescribeSettings(batch_size=2, decode_threads=1, max_unreadable=1)
    update = updater(tmp_path, describer, describe=settings).append(places)
    assert (update.version, len(update.unreadable)) == (version, 1)


# StoppedError, and gone on


def test_what_was_described_is_not_described_again(tmp_path: Path, counting: CountingDescriber) -> None:
    places = make_places(tmp_path, 7)
    start = counting.described
    with pytest.raises(StoppedError):
        updater(tmp_path, counting, RecordingObserver(stop_at("part written", 2))).build(places)
    assert counting.described - start == 4
    observer = RecordingObserver()
    updater(tmp_path, counting, observer).build(places)
    in_the_check = 2 * 7  # each photo as it is, and its middle
    assert counting.described - start == 7 + in_the_check
    assert observer.progress[0] == (4, 0)
    assert observer.progress[-1] == (7, 0)
    assert town(tmp_path).count == 7


def test_a_damaged_or_half_written_part_is_described_again(tmp_path: Path, counting: CountingDescriber) -> None:
    places = make_places(tmp_path, 6)
    with pytest.raises(StoppedError):
        updater(tmp_path, counting, RecordingObserver(stop_at("described"))).build(places)
    work = tmp_path / "work"
    (work / "part-000000.json").unlink()
    (work / "part-000001.npy").write_bytes((work / "part-000001.npy").read_bytes()[:500])
    start = counting.described
    updater(tmp_path, counting).build(places)
    assert counting.described - start == 4 + 2 * 6


def test_parts_of_another_bundle_do_not_count(tmp_path: Path, counting: CountingDescriber, bundle: Bundle) -> None:
    places = make_places(tmp_path, 4)
    with pytest.raises(StoppedError):
        updater(tmp_path, counting, RecordingObserver(stop_at("described"))).build(places)
    other = Describer(write_other_bundle(bundle, tmp_path / "bundle"), threads=1)
    observer = RecordingObserver()
    updater(tmp_path, other, observer).build(places)
    assert observer.steps.count("part written") == 2
    assert town(tmp_path).manifest.bundle.fingerprint == other.bundle.fingerprint


def test_photos_that_come_after_the_listing_wait_for_the_next_update(tmp_path: Path, describer: Describer) -> None:
    places = make_places(tmp_path, 4)
    with pytest.raises(StoppedError):
        updater(tmp_path, describer, RecordingObserver(stop_at("part written"))).build(first(places, 3))
    assert updater(tmp_path, describer).build(places).count == 3


@pytest.mark.parametrize("step", ["planned", "part written", "described", "manifest written", "quality checked"])
def test_an_update_that_is_stopped_publishes_nothing_and_leaves_no_draft(
    tmp_path: Path, describer: Describer, step
) -> None:
    places = make_places(tmp_path, 4)
    version = build_index(first(places, 2), describer, tmp_path / "indexes", "town").folder.name
    with pytest.raises(StoppedError):
        updater(tmp_path, describer, RecordingObserver(stop_at(step))).append(places)
    folder = tmp_path / "indexes" / "town"
    assert town(tmp_path).version == version
    assert [entry.name for entry in (folder / "versions").iterdir()] == [version]


def test_a_version_that_became_current_meanwhile_is_not_overruled(tmp_path: Path, describer: Describer) -> None:
    places = make_places(tmp_path, 4)
    old = build_index(first(places, 2), describer, tmp_path / "indexes", "town").folder.name
    build_index(first(places, 3), describer, tmp_path / "indexes", "town")

    def roll_back(step: str) -> None:
        if step == "described":
            replace_file(tmp_path / "indexes/town/CURRENT", f"{old}\n".encode())

    with pytest.raises(PlaceIndexError, match="another version became current") as info:
        updater(tmp_path, describer, RecordingObserver(roll_back)).append(places)
    assert info.value.code == "version_conflict"
    assert town(tmp_path).version == old


def test_an_index_is_built_by_one_at_a_time(tmp_path: Path, describer: Describer) -> None:
    build_index(make_places(tmp_path, 2), describer, tmp_path / "indexes", "town")
    with draft_version(tmp_path / "indexes", "town"), pytest.raises(StorageError) as info:
        updater(tmp_path, describer).build(make_places(tmp_path, 2))
    assert info.value.code == "build_in_progress"


def test_a_full_disk_under_the_parts_is_an_error(tmp_path: Path, describer: Describer) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / ".part-000001.npy.tmp").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="No space left on device") as info:
        updater(tmp_path, describer).build(make_places(tmp_path, 4))
    assert info.value.where == str(tmp_path / "work")
    assert not published_versions(tmp_path / "indexes" / "town")


# Published beside the current version


def test_a_version_that_is_not_activated_stays_beside_the_current_one(tmp_path: Path, describer: Describer) -> None:
    places = make_places(tmp_path, 3)
    old = build_index(first(places, 2), describer, tmp_path / "indexes", "town").folder.name
    update = updater(tmp_path, describer, activate=False, keep=1).append(places)
    assert not update.activated
    assert town(tmp_path).version == old
    assert published_versions(tmp_path / "indexes" / "town") == [old, update.version]
    assert PlaceIndex.open(tmp_path / "indexes/town/versions" / update.version).count == 3


def test_old_versions_are_kept(tmp_path: Path, describer: Describer) -> None:
    places = make_places(tmp_path, 4)
    for count in (1, 2, 3, 4):
        work = tmp_path / str(count) / "work"
        build_index(first(places, count), describer, tmp_path / "indexes", "town", SMALL, work=work)
    versions = published_versions(tmp_path / "indexes" / "town")
    assert [PlaceIndex.open(tmp_path / "indexes/town/versions" / name).count for name in versions] == [2, 3, 4]


def test_finishing_a_publish_that_was_killed(tmp_path: Path, describer: Describer) -> None:
    indexes, places = tmp_path / "indexes", make_places(tmp_path, 3)
    old = build_index(first(places, 2), describer, indexes, "town").folder.name
    new = updater(tmp_path, describer, activate=False).append(places).version
    assert not finish_publishing(indexes, "town", "2026-never", base=old, activate=True)
    assert not finish_publishing(indexes, "town", new, base="another", activate=True)
    assert finish_publishing(indexes, "town", new, base=old, activate=False)
    assert town(tmp_path).version == old
    for _ in range(2):
        assert finish_publishing(indexes, "town", new, base=old, activate=True)
        assert town(tmp_path).version == new
    assert published_versions(indexes / "town") == [old, new]
