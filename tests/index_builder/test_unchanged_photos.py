"""Photos whose content did not change are not described again, wherever they lie now."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from index_builder.describing import DescribeSettings, ReusableDescriptors
from index_builder.index_design import IndexDesign
from index_builder.update import UpdateSettings, append_references, build_index, remove_references
from index_builder.update_observer import Update
from retrieval.bundle import Bundle
from retrieval.describer import Describer
from retrieval.images import ImageLimits
from retrieval.index.place_index import PlaceIndex
from retrieval.index.reference_table import read_references
from tests.index_builder.counting_describer import CountingDescriber
from tests.index_builder.recording_observer import RecordingObserver, StoppedError, stop_at
from tests.places import Places, make_places, pattern
from tests.retrieval.other_bundle import write_other_bundle

IN_THE_CHECK = 2 * 4


@pytest.fixture(scope="module")
def counting() -> CountingDescriber:
    return CountingDescriber()


def settings(**changes) -> UpdateSettings:
    base = UpdateSettings(describe=DescribeSettings(batch_size=2, decode_threads=1), part_photos=4)
    return replace(base, **changes)


def build(tmp_path: Path, places: Places, describer: Describer, observer=None, **changes) -> Update:
    return build_index(places, describer, tmp_path / "indexes", "town", settings(**changes), observer=observer)


def described(counting: CountingDescriber, before: int) -> int:
    return counting.described - before - IN_THE_CHECK


def vectors_by_id(folder: Path) -> dict[str, bytes]:
    index = PlaceIndex.open(folder)
    stored = index.descriptors(np.arange(index.count))
    ids = [reference.id for reference in index.references(range(index.count))]
    return {name: vector.tobytes() for name, vector in zip(ids, stored, strict=True)}


def test_the_table_holds_the_sha256_of_each_photo(tmp_path: Path, describer: Describer) -> None:
    places = make_places(tmp_path, 3)
    table = read_references(build(tmp_path, places, describer).folder / "references.parquet")
    found = dict(zip(table["id"].to_pylist(), table["content_sha256"].to_pylist(), strict=True))
    assert found == {row.id: hashlib.sha256(row.path.read_bytes()).hexdigest() for row in places.rows}


@pytest.mark.parametrize("storage", ["fp16", "fp32"])
def test_only_what_changed_is_described(tmp_path: Path, counting: CountingDescriber, storage: str) -> None:
    """Eleven photos in three parts: one edited in place, one renamed, one moved on the map, one new, one gone."""
    places = make_places(tmp_path, 11)
    design = IndexDesign(storage=storage)
    old = vectors_by_id(build(tmp_path, places, counting, design=design).folder)
    pattern(77).save(places.rows[2].path, quality=92)
    renamed = places.rows[4].path.rename(tmp_path / "photos" / "renamed.jpg")
    places.rows[4] = replace(places.rows[4], path=renamed, id="photos/renamed.jpg")
    places.rows[6] = replace(places.rows[6], heading_deg=12.0)
    pattern(78).save(tmp_path / "photos" / "new.jpg", quality=92)
    places.rows[10] = replace(places.rows[10], path=tmp_path / "photos" / "new.jpg", id="photos/new.jpg")
    before = counting.described
    built = build(tmp_path, places, counting, design=design)
    assert described(counting, before) == 2
    assert (built.taken_over, built.added, built.replaced, built.removed, built.count) == (9, 2, 9, 2, 11)
    new = vectors_by_id(built.folder)
    assert new["photos/renamed.jpg"] == old["photos/0004.jpg"]
    same = {f"photos/{number:04d}.jpg" for number in (0, 1, 3, 5, 6, 7, 8, 9)}
    assert {name for name in old if new.get(name) == old[name]} == same
    index = PlaceIndex.open(built.folder)
    assert index.references([index.row_of("photos/0006.jpg")])[0].heading_deg == 12.0
    whole = build_index(places, counting, tmp_path / "anew", "town", settings(design=design))
    for name, vector in vectors_by_id(whole.folder).items():
        assert np.frombuffer(vector, np.float32) @ np.frombuffer(new[name], np.float32) > 0.9999


def test_describe_again_describes_everything(tmp_path: Path, counting: CountingDescriber) -> None:
    places = make_places(tmp_path, 5)
    build(tmp_path, places, counting)
    before = counting.described
    assert build(tmp_path, places, counting, describe_again=True).taken_over == 0
    assert described(counting, before) == 5


@pytest.mark.parametrize(
    ("first", "then", "taken_over"),
    [
        ({}, {"design": IndexDesign(storage="fp16", type="exact")}, 5),
        ({"design": IndexDesign(storage="fp32")}, {"design": IndexDesign(storage="int8")}, 5),
        ({}, {"design": IndexDesign(storage="fp32")}, 0),
        ({}, {"design": IndexDesign(storage="int8")}, 0),
        ({"design": IndexDesign(storage="int8")}, {"design": IndexDesign(storage="int8")}, 0),
        ({}, {"describe": DescribeSettings(limits=ImageLimits(max_pixels=10_000))}, 0),
    ],
    ids=str,
)
def test_what_may_be_taken_over(tmp_path: Path, describer: Describer, first, then, taken_over: int) -> None:
    """Only what comes out as if it had been described anew: other roundings and limits do not."""
    places = make_places(tmp_path, 5)
    build(tmp_path, places, describer, **first)
    assert build(tmp_path, places, describer, **then).taken_over == taken_over


def test_nothing_of_another_bundle_is_taken_over(tmp_path: Path, describer: Describer, bundle: Bundle) -> None:
    places = make_places(tmp_path, 3)
    build(tmp_path, places, describer)
    other = Describer(write_other_bundle(bundle, tmp_path / "bundle"), threads=1)
    assert build(tmp_path, places, other).taken_over == 0


def test_nothing_of_a_damaged_version_is_taken_over(tmp_path: Path, counting: CountingDescriber) -> None:
    places = make_places(tmp_path, 3)
    folder = build(tmp_path, places, counting).folder
    data = bytearray((folder / "vectors.faiss").read_bytes())
    data[-9] ^= 1
    (folder / "vectors.faiss").write_bytes(data)
    assert build(tmp_path, places, counting).taken_over == 0


def test_a_copy_under_another_name_is_appended_without_describing(tmp_path: Path, counting: CountingDescriber) -> None:
    places = make_places(tmp_path, 3)
    build(tmp_path, places, counting)
    copy = tmp_path / "photos" / "copy.jpg"
    shutil.copy(places.rows[1].path, copy)
    places.rows.append(replace(places.rows[1], id="photos/copy.jpg", path=copy))
    before = counting.described
    update = append_references(places, counting, tmp_path / "indexes", "town")
    assert (update.added, update.kept, update.taken_over) == (1, 3, 1)
    assert counting.described - before == 2 * 4, "those of the quality check"
    vectors = vectors_by_id(tmp_path / "indexes" / "town")
    assert vectors["photos/copy.jpg"] == vectors["photos/0001.jpg"]


def test_a_killed_reindex_goes_on_and_takes_over_too(tmp_path: Path, counting: CountingDescriber) -> None:
    places = make_places(tmp_path, 12)
    build(tmp_path, places, counting)
    for number in (1, 6, 11):
        pattern(60 + number).save(places.rows[number].path, quality=92)
    before = counting.described
    with pytest.raises(StoppedError):
        build(tmp_path, places, counting, RecordingObserver(stop_at("part written", 2)))
    built = build(tmp_path, places, counting)
    assert (built.taken_over, described(counting, before)) == (9, 3)


def test_digests_are_found_whatever_their_bytes() -> None:
    """Numpy drops zero bytes at the end of what it sorts."""
    digests = [bytes(32), bytes(31) + b"\x01", b"\x01" + bytes(31), b"\xff" * 31 + b"\x00", b"\xff" * 32]
    order = sorted(digests)
    known = ReusableDescriptors("v", np.array(order, "S32"), np.arange(5, dtype=np.int64))
    assert [known.find(one) for one in order] == [0, 1, 2, 3, 4]
    assert known.find(b"\x02" + bytes(31)) is None
    assert known.find(b"\xff" * 31 + b"\xfe") is None
    assert ReusableDescriptors("v", np.array([], "S32"), np.array([], np.int64)).find(bytes(32)) is None


def test_an_append_with_other_limits_says_that_not_all_is_described_alike(tmp_path: Path, describer: Describer) -> None:
    places = make_places(tmp_path, 3)
    build(tmp_path, Places(places.root, places.rows[:2]), describer)
    limits = DescribeSettings(limits=ImageLimits(max_pixels=10_000))
    into = (describer, tmp_path / "indexes", "town", UpdateSettings(describe=limits))
    remove_references(["photos/0001.jpg"], *into)
    described = PlaceIndex.open(tmp_path / "indexes" / "town").manifest.describing
    assert described is not None
    assert described.max_pixels == ImageLimits().max_pixels
    append_references(places, *into)
    assert PlaceIndex.open(tmp_path / "indexes" / "town").manifest.describing is None
    assert build(tmp_path, places, describer).taken_over == 0
