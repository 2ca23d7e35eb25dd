"""`sightfix index` again after a failure: what was described is used, what no longer fits is not."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from index_builder.describing import DescribeSettings
from index_builder.index_design import IndexDesign
from index_builder.parts import PartRecord
from index_builder.publish import WORK_NAME
from index_builder.update import UpdateSettings, build_index
from retrieval.errors import IndexNotFoundError, PlaceIndexError, ReferenceDataError
from retrieval.geo import Position
from retrieval.index.folder import current_version
from retrieval.index.place_index import PlaceIndex
from retrieval.index.vectors.exact import ExactVectors
from tests.index_builder.counting_describer import CountingDescriber
from tests.index_builder.recording_observer import RecordingObserver, StoppedError, stop_at
from tests.places import Places, make_places

IN_THE_CHECK = 2 * 4


@pytest.fixture(scope="module")
def counting() -> CountingDescriber:
    return CountingDescriber()


def settings(**changes) -> UpdateSettings:
    describe = DescribeSettings(batch_size=2, decode_threads=1, **changes)
    return UpdateSettings(describe=describe, part_photos=4)


def build(
    tmp_path: Path, places: Places, describer: CountingDescriber, observer: RecordingObserver | None = None, **changes
):
    return build_index(places, describer, tmp_path / "indexes", "town", settings(**changes), observer=observer)


def stop_after_parts(tmp_path: Path, places: Places, describer: CountingDescriber, count: int, **changes) -> None:
    with pytest.raises(StoppedError):
        build(tmp_path, places, describer, RecordingObserver(stop_at("part written", count)), **changes)


def files(tmp_path: Path) -> tuple[bytes, bytes]:
    folder = tmp_path / "indexes" / "town"
    version = folder / "versions" / current_version(folder)
    return (version / "vectors.faiss").read_bytes(), (version / "references.parquet").read_bytes()


def scattered(folder: Path, count: int) -> Places:
    places = make_places(folder, count)
    rng = np.random.default_rng(5)
    places.rows[:] = [
        replace(row, position=Position(float(rng.uniform(-80, 80)), float(rng.uniform(-180, 180))))
        for row in places.rows
    ]
    return places


def test_the_result_is_the_one_of_an_uninterrupted_build(tmp_path: Path, counting: CountingDescriber) -> None:
    places = scattered(tmp_path / "photos", 10)
    build(tmp_path / "whole", places, counting)
    before = counting.described
    for count in (1, 1):
        stop_after_parts(tmp_path / "cut", places, counting, count)
    observer = RecordingObserver()
    build(tmp_path / "cut", places, counting, observer)
    assert counting.described - before == 10 + IN_THE_CHECK
    assert [done for done, _ in observer.progress] == [8, 10], "first what was there"
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert not (tmp_path / "cut/indexes/town" / WORK_NAME).exists()


def test_a_photo_that_changes_between_is_described_again(tmp_path: Path, counting: CountingDescriber) -> None:
    places = make_places(tmp_path, 8)
    stop_after_parts(tmp_path, places, counting, 2)
    before = counting.described
    os.utime(places.rows[5].path, ns=(1, 1))
    built = build(tmp_path, places, counting)
    assert counting.described - before == 4 + IN_THE_CHECK
    assert built.manifest.count == 8


def test_a_photo_that_is_repaired_between_is_in_the_index(tmp_path: Path, counting: CountingDescriber) -> None:
    """The part that holds it was written without it."""
    places = make_places(tmp_path, 12)
    whole = places.rows[1].path.read_bytes()
    for number in (1, 9):
        places.rows[number].path.write_bytes(b"")
    with pytest.raises(ReferenceDataError, match="So far 2 photos are unreadable, 1 may be") as info:
        build(tmp_path, places, counting, max_unreadable=1)
    assert info.value.where == "photos/0001.jpg"
    places.rows[1].path.write_bytes(whole)
    before = counting.described
    built = build(tmp_path, places, counting, max_unreadable=1)
    assert counting.described - before == 4 + 3 + IN_THE_CHECK, "of three parts the second was whole and fits"
    assert (built.manifest.count, [one.path for one in built.unreadable]) == (11, ["photos/0009.jpg"])


def test_parts_of_another_source_are_removed_before_the_work_begins(
    tmp_path: Path, counting: CountingDescriber
) -> None:
    stop_after_parts(tmp_path, make_places(tmp_path / "a", 12), counting, 3)
    work = tmp_path / "indexes/town" / WORK_NAME
    assert len(list(work.glob("part-*"))) == 6
    seen: list[int] = []
    observer = RecordingObserver(
        lambda step: seen.append(len(list(work.glob("part-*")))) if step == "planned" else None
    )
    built = build(tmp_path, make_places(tmp_path / "b", 3, first_seed=40), counting, observer)
    assert (seen, built.manifest.count) == ([0], 3)


def test_work_that_is_not_done_is_no_index(tmp_path: Path, counting: CountingDescriber) -> None:
    stop_after_parts(tmp_path, make_places(tmp_path, 8), counting, 1)
    with pytest.raises(IndexNotFoundError, match="there is no published place index"):
        PlaceIndex.open(tmp_path / "indexes" / "town")
    assert list((tmp_path / "indexes").glob("*/CURRENT")) == []


def test_what_does_not_find_itself_is_not_gone_on_from(tmp_path: Path, counting: CountingDescriber) -> None:
    """Else each further run would fail for the same reason."""
    places = make_places(tmp_path, 5)

    def spoil(step: str) -> None:
        if step == "references written":
            (draft,) = (tmp_path / "indexes/town/versions").glob(".tmp-*")
            spoilt = ExactVectors.read(draft / "vectors.faiss", "fp16").descriptors(np.arange(5)) * 2
            with (draft / "vectors.faiss").open("wb") as file:
                ExactVectors.from_descriptors([spoilt], spoilt.shape[1], "fp16").write(file.write)

    with pytest.raises(PlaceIndexError, match="does not find its own references"):
        build_index(places, counting, tmp_path / "indexes", "town", settings(), observer=RecordingObserver(spoil))
    assert list((tmp_path / "indexes").iterdir()) == []


def test_the_recall_that_is_not_reached_costs_no_describing(tmp_path: Path, counting: CountingDescriber) -> None:
    places = make_places(tmp_path, 6)
    wanted = replace(settings(), design=IndexDesign(type="ivf"))

    def stop(step: str) -> None:
        if step == "described":
            raise PlaceIndexError("not reached", code="gate_failed")

    with pytest.raises(PlaceIndexError):
        build_index(places, counting, tmp_path / "indexes", "town", wanted, observer=RecordingObserver(stop))
    before = counting.described
    build(tmp_path, places, counting)
    assert counting.described - before == IN_THE_CHECK


def test_a_part_says_what_is_in_it(tmp_path: Path, counting: CountingDescriber) -> None:
    places = make_places(tmp_path, 4)
    places.rows[2].path.write_bytes(b"")
    stop_after_parts(tmp_path, places, counting, 1, max_unreadable=1)
    work = tmp_path / "indexes/town" / WORK_NAME
    record = PartRecord.model_validate_json((work / "part-000000.json").read_bytes())
    assert (record.offsets, record.base_rows, record.base) == ([0, 1, 3], [-1, -1, -1], None)
    assert [one.path for one in record.unreadable] == ["photos/0002.jpg"]
    vectors = np.load(work / "part-000000.npy")
    assert (vectors.shape, vectors.dtype) == ((3, counting.bundle.descriptor_dim), np.float32)
