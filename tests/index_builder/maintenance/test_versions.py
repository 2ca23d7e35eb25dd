import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from index_builder.index_design import IndexDesign
from index_builder.maintenance.parquet import export_index, import_index, stored_as
from index_builder.maintenance.versions import (
    as_table,
    bytes_on_disk,
    compare_versions,
    find_version,
    list_versions,
    verify_version,
)
from index_builder.update import UpdateSettings, build_index
from retrieval.bundle import Bundle
from retrieval.describer import Describer
from retrieval.errors import IndexNotFoundError, ModelIndexMismatchError, ParameterError, ReferenceDataError
from retrieval.geo import Position
from retrieval.index.folder import current_version
from retrieval.index.place_index import PlaceIndex
from retrieval.index.stores import FolderStore
from tests.conftest import Places, make_places
from tests.retrieval.other_bundle import flip_byte, write_other_bundle
from tests.retrieval.refusal import refused
from tests.whitened_index import whiten


@pytest.fixture
def town(tmp_path: Path, describer: Describer) -> tuple[Path, Places]:
    """An index of two versions: eight places, then the first six."""
    places = make_places(tmp_path / "photos", 8)
    build_index(places, describer, tmp_path / "indexes", "town")
    build_index(Places(places.root, places.rows[:6]), describer, tmp_path / "indexes", "town")
    return tmp_path / "indexes" / "town", places


def test_versions_are_listed_with_what_is_wrong(town: tuple[Path, Places]) -> None:
    folder, _ = town
    first, second = list_versions(FolderStore(folder.parent), folder.name)
    assert (first.current, second.current) == (False, True)
    assert [one.manifest.count for one in (first, second) if one.manifest] == [8, 6]
    flip_byte(folder / "versions" / first.version / "manifest.json")
    damaged = list_versions(FolderStore(folder.parent), folder.name)[0]
    assert damaged.manifest is None
    assert "damaged" in str(damaged.problem)


def test_the_bundle_counts_in_the_size_of_each_version_and_once_in_that_of_the_index(
    town: tuple[Path, Places], bundle: Bundle
) -> None:
    folder, _ = town
    store = FolderStore(folder.parent)
    first, second = list_versions(store, folder.name)
    graph = bundle.graph_path("fp32").stat().st_size
    assert min(first.bytes, second.bytes) > graph
    together = bytes_on_disk(store, folder.name)
    assert together is not None
    # All of the bundle but its manifest, which each version writes, is shared.
    shared = sum(record.size for record in bundle.manifest.files.values())
    assert together == first.bytes + second.bytes - shared
    assert graph < together < 2 * graph


def test_a_rollback_goes_back_one_and_no_further(town: tuple[Path, Places]) -> None:
    folder, _ = town
    first, second = (one.version for one in list_versions(FolderStore(folder.parent), folder.name))
    store = FolderStore(folder.parent)
    assert store.roll_back(folder.name) == (second, first)
    assert current_version(folder) == first
    with pytest.raises(IndexNotFoundError, match=f"there is no version before {first}"):
        store.roll_back(folder.name)


def test_versions_are_found_by_their_beginning(town: tuple[Path, Places]) -> None:
    folder, _ = town
    first, second = (one.version for one in list_versions(FolderStore(folder.parent), folder.name))
    assert find_version(folder, None).name == second
    assert find_version(folder, first).name == first
    assert find_version(folder, first[:-2]).name == first
    with pytest.raises(ParameterError, match="begins several versions"):
        find_version(folder, "20")
    with pytest.raises(IndexNotFoundError, match="has no version 'x'"):
        find_version(folder, "x")


def test_whole_and_damaged_versions_are_recognised(town: tuple[Path, Places]) -> None:
    folder, _ = town
    store, version = FolderStore(folder.parent), find_version(folder, None)
    verdict = verify_version(store, folder.name, version.name)
    assert (verdict.whole, verdict.checked) == (True, "2 files by hash, its bundle, 6 references, self-match")
    flip_byte(version / "vectors.faiss")
    verdict = verify_version(store, folder.name, version.name)
    assert not verdict.whole
    assert "its SHA-256 is" in str(verdict.problem)


def test_photos_that_are_gone_are_counted(town: tuple[Path, Places]) -> None:
    folder, places = town
    places.rows[2].path.unlink()
    verdict = verify_version(FolderStore(folder.parent), folder.name, find_version(folder, None).name, photos=True)
    assert (verdict.whole, verdict.missing_photos, verdict.missing) == (True, 1, (places.rows[2].id,))


def test_differences_are_counted_and_named(town: tuple[Path, Places], tmp_path: Path, describer: Describer) -> None:
    folder, places = town
    first, second = (
        folder / "versions" / one.version for one in list_versions(FolderStore(folder.parent), folder.name)
    )
    same = compare_versions(first, second)
    assert (same.unchanged, same.count("removed"), same.count("added"), same.comparable) == (6, 2, 0, True)
    assert {change.id for change in same.changes} == {row.id for row in places.rows[6:]}
    moved = replace(places.rows[0], position=Position(places.rows[0].position.lat + 0.001, places.rows[0].position.lon))
    build_index(Places(places.root, [moved, *places.rows[1:]]), describer, tmp_path / "indexes", "town")
    found = compare_versions(second, find_version(folder, None))
    assert (found.count("added"), found.count("moved"), found.unchanged) == (2, 1, 5)
    change = next(one for one in found.changes if one.kind == "moved")
    assert change.metres == pytest.approx(111.2, abs=0.5)
    assert as_table(found).column("change").to_pylist() == [one.kind for one in found.changes]


def test_a_photo_that_was_edited_was_described_again(
    town: tuple[Path, Places], tmp_path: Path, describer: Describer
) -> None:
    folder, places = town
    before = find_version(folder, None)
    places.rows[1].path.write_bytes(places.rows[7].path.read_bytes())
    build_index(Places(places.root, places.rows[:6]), describer, tmp_path / "indexes", "town")
    found = compare_versions(before, find_version(folder, None))
    assert [(one.id, one.kind) for one in found.changes] == [(places.rows[1].id, "described again")]
    assert found.changes[0].similarity is not None
    assert found.changes[0].similarity < 0.999


def test_a_photo_stored_again_in_other_steps_is_unchanged(tmp_path: Path, describer: Describer) -> None:
    """The steps of int8 are those of the version's own descriptors."""
    places = make_places(tmp_path / "photos", 8)
    settings = UpdateSettings(design=IndexDesign(storage="int8"))
    first = build_index(places, describer, tmp_path / "indexes", "town", settings).folder
    second = build_index(Places(places.root, places.rows[:5]), describer, tmp_path / "indexes", "town", settings).folder
    found = compare_versions(first, second)
    assert (found.unchanged, found.count("removed"), found.count("described again")) == (5, 3, 0)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("storage", ["fp16", "fp32"])
def test_an_exported_index_is_imported_bit_by_bit(
    tmp_path: Path, describer: Describer, bundle: Bundle, storage: str, told: bool
) -> None:
    design = IndexDesign(storage=storage)  # type: ignore[arg-type]
    built = build_index(
        make_places(tmp_path / "photos", 7), describer, tmp_path / "indexes", "town", UpdateSettings(design=design)
    )
    index = PlaceIndex.open(built.folder)
    assert export_index(index, tmp_path / "town.parquet") == 7
    assert stored_as(tmp_path / "town.parquet") == storage
    manifest = import_index(tmp_path / "town.parquet", bundle, tmp_path / "other", "copy", design if told else None)
    again = PlaceIndex.open(tmp_path / "other" / "copy")
    assert again.manifest == manifest
    every = np.arange(7)
    np.testing.assert_array_equal(again.descriptors(every), index.descriptors(every))
    assert again.references(every) == index.references(every)


def test_an_import_may_say_where_the_photos_lie_now(tmp_path: Path, describer: Describer, bundle: Bundle) -> None:
    index = PlaceIndex.open(
        build_index(make_places(tmp_path / "photos", 3), describer, tmp_path / "indexes", "town").folder
    )
    export_index(index, tmp_path / "town.parquet")
    (tmp_path / "photos").rename(tmp_path / "moved")
    import_index(tmp_path / "town.parquet", bundle, tmp_path / "indexes", "town", root=tmp_path / "moved")
    opened = PlaceIndex.open(tmp_path / "indexes" / "town")
    assert all(reference.path.is_file() for reference in opened.references([0, 1, 2]))


def _changed(path: Path, **columns: object) -> None:
    table = pq.read_table(path)
    for name, change in columns.items():
        place = table.schema.get_field_index(name)
        values = table.column(name).to_pylist()
        values[1] = change(values) if callable(change) else change
        import pyarrow as pa

        table = table.set_column(
            place, table.schema.field(name).with_nullable(True), pa.array(values, table.schema.field(name).type)
        )
    pq.write_table(table, path)


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("id", lambda values: values[0], "row 1: the id 'place-00.jpg' stands there twice"),
        ("lat", 91.0, r"row 1 \(.*\): latitude 91, longitude .* are no position"),
        ("lon", -181.0, r"row 1 \(.*\): latitude .*, longitude -181 are no position"),
        ("lon", 360.0, r"row 1 \(.*\): latitude .*, longitude 360 are no position"),
        ("captured_at", "yesterday", r"row 1 \(.*\): captured_at 'yesterday' is no time of ISO 8601"),
        ("id", None, "row 1: it has no id"),
        ("lat", None, "row 1: it has no lat"),
        ("metadata", "[1]", r"row 1 \(.*\): metadata is no JSON object"),
        ("descriptor", lambda values: [2 * v for v in values[1]], r"row 1: the descriptor has length 2[.\d]*, not 1"),
        ("descriptor", lambda values: [float("nan")] * len(values[1]), "row 1: the descriptor has length nan, not 1"),
    ],
)
def test_rows_that_no_index_can_hold_are_named(
    tmp_path: Path, describer: Describer, bundle: Bundle, column: str, value: object, text: str
) -> None:
    folder = build_index(make_places(tmp_path / "photos", 3), describer, tmp_path / "indexes", "town").folder
    path = tmp_path / "town.parquet"
    export_index(PlaceIndex.open(folder), path)
    text = text.replace("place-00.jpg", str(pq.read_table(path)["id"][0]))
    _changed(path, **{column: value})
    with pytest.raises(ReferenceDataError, match=text):
        import_index(path, bundle, tmp_path / "other", "copy")
    assert not (tmp_path / "other" / "copy" / "CURRENT").exists()


def test_longitudes_beyond_180_are_those_of_the_west(tmp_path: Path, describer: Describer, bundle: Bundle) -> None:
    folder = build_index(make_places(tmp_path / "photos", 3), describer, tmp_path / "indexes", "town").folder
    path = tmp_path / "town.parquet"
    export_index(PlaceIndex.open(folder), path)
    _changed(path, lon=190.0)
    import_index(path, bundle, tmp_path / "other", "copy")
    index = PlaceIndex.open(tmp_path / "other" / "copy")
    assert -170.0 in index.lon.tolist()
    assert index.manifest.bounds.lon_max == -170.0


def test_files_of_others_are_refused(tmp_path: Path, describer: Describer, bundle: Bundle) -> None:
    path = tmp_path / "town.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(ReferenceDataError, match="the file cannot be read"):
        import_index(path, bundle, tmp_path, "copy")
    folder = build_index(make_places(tmp_path / "photos", 3), describer, tmp_path / "indexes", "town").folder
    pq.write_table(pq.read_table(folder / "references.parquet"), path)
    text = f"{path}: the file does not say which bundle described its rows. Write it with: sightfix index export."
    with refused(ReferenceDataError, text, "reference_data"):
        import_index(path, bundle, tmp_path, "copy")
    export_index(PlaceIndex.open(folder), path)
    told = json.loads(pq.read_schema(path).metadata[b"sightfix"])
    assert (told["index"], told["descriptor_dim"]) == ("town", bundle.descriptor_dim)
    other = Describer(write_other_bundle(bundle, tmp_path / "bundle"), threads=1).bundle
    with pytest.raises(ModelIndexMismatchError, match="the descriptors are of bundle"):
        import_index(path, other, tmp_path, "copy")


def test_whitened_descriptors_are_not_exported(tmp_path: Path, describer: Describer) -> None:
    folder = build_index(make_places(tmp_path / "photos", 12), describer, tmp_path / "indexes", "town").folder
    whiten(folder, 4)
    with pytest.raises(ParameterError, match="the stored descriptors are whitened"):
        export_index(PlaceIndex.open(folder), tmp_path / "town.parquet")
