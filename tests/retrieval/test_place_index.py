import hashlib
import json
import shutil
import tempfile
from datetime import datetime, timedelta, timezone
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import __version__
from retrieval.bundle import Bundle
from retrieval.describer import Describer
from retrieval.errors import IndexNotFoundError, ModelIndexMismatchError, ParameterError, PlaceIndexError
from retrieval.geo import GeoPrior
from retrieval.images import read_image
from retrieval.index.manifest import Bounds, BundleIdentity, PlaceIndexManifest, Source
from retrieval.index.place_index import PlaceIndex
from retrieval.index.reference_table import REFERENCE_SCHEMA, ReferenceTable, write_reference_table
from retrieval.index.vectors.candidates import StoredVectors
from retrieval.index.vectors.exact import ExactVectors
from tests.conftest import PublishedPlaces
from tests.hypothesis_profiles import examples
from tests.retrieval.other_bundle import change_manifest, flip_byte, record_again, write_other_bundle
from tests.retrieval.refusal import refused
from tests.retrieval.scattered import Scatter, priors, scatters, surely_inside
from tests.retrieval.slow_search import assert_k_best

AGAIN = "Copy the artefact again from where it was made, or make it again."


def table_of(lat: np.ndarray, lon: np.ndarray, **columns: list) -> pa.Table:
    count = len(lat)
    ids = [f"{row}.jpg" for row in range(count)]
    values = {name: [None] * count for name in REFERENCE_SCHEMA.names}
    return pa.Table.from_pydict(
        {**values, "id": ids, "path": ids, "lat": lat, "lon": lon, **columns}, schema=REFERENCE_SCHEMA
    )


def index_of(lat: np.ndarray, lon: np.ndarray, descriptors: np.ndarray, storage: str, **columns: list) -> PlaceIndex:
    """A place index in memory."""
    manifest = PlaceIndexManifest(
        name="scatter",
        version="1",
        bundle=BundleIdentity(name="none", fingerprint="0" * 64),
        descriptor_dim=descriptors.shape[1],
        storage=storage,
        count=len(lat),
        bounds=Bounds(lat_min=-90.0, lat_max=90.0, lon_min=-180.0, lon_max=180.0),
        source=Source(spec="test:scatter", root="/photos"),
        files={},
    )
    vectors = ExactVectors.from_descriptors([descriptors], descriptors.shape[1], storage)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "references.parquet"
        write_reference_table(table_of(lat, lon, **columns), np.arange(len(lat)), path)
        return PlaceIndex(Path("scatter"), manifest, StoredVectors(vectors), ReferenceTable(path))


def unit_rows(count: int, seed: int, dim: int = 12) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def version(published: PublishedPlaces, tmp_path: Path) -> Path:
    """A copy of a published version that may be damaged."""
    return shutil.copytree(PlaceIndex.open(published.indexes / published.name).folder, tmp_path / "version")


# Search


@settings(max_examples=examples(100))
@given(
    scatters,
    st.lists(st.none() | priors(), min_size=1, max_size=20),
    st.sampled_from(["fp32", "fp16"]),
    st.sampled_from([1, 3, 10, 1000]),
)
def test_search_is_the_slow_search_under_any_mix_of_priors(
    scatter: Scatter, asked: list[GeoPrior | None], storage: str, k: int
) -> None:
    lat, lon = scatter.positions()
    index, queries = index_of(lat, lon, unit_rows(len(lat), 1), storage), unit_rows(len(asked), 2)
    result = index.search(queries, k, asked)
    assert result.rows.shape == result.scores.shape == (len(asked), k)
    kept = index.descriptors(np.arange(len(lat))).astype(np.float64)
    for query, prior, rows, scores in zip(queries, asked, result.rows, result.scores, strict=True):
        inside, border = (np.arange(len(lat)), []) if prior is None else surely_inside(lat, lon, prior)
        # Rows on the border may be in or out; then those that are in belong to what is searched.
        allowed = np.union1d(inside, np.intersect1d(rows, border)).astype(np.int64)
        assert_k_best(rows, scores, kept @ query, allowed, k)


def test_a_prior_without_references_has_no_matches() -> None:
    index = index_of(np.full(30, 48.0), np.full(30, 11.0), unit_rows(30, 1), "fp16")
    result = index.search(unit_rows(2, 2), 5, [GeoPrior(-48.0, 11.0, 1000.0), None])
    assert (result.rows[0] == -1).all()
    assert (result.scores[0] == -np.inf).all()
    assert (result.rows[1] >= 0).all()


def test_no_queries_have_no_matches() -> None:
    index = index_of(np.full(30, 48.0), np.full(30, 11.0), unit_rows(30, 1), "fp16")
    assert index.search(np.empty((0, 12), np.float32), 5).rows.shape == (0, 5)
    assert index.search(np.empty((0, 12), np.float32), 5, []).rows.shape == (0, 5)


def test_references_at_one_place_with_one_descriptor_are_found_in_the_same_order_every_time() -> None:
    index = index_of(np.full(300, 48.0), np.full(300, 11.0), np.repeat(unit_rows(1, 1), 300, axis=0), "fp16")
    first = index.search(unit_rows(1, 1), 10).rows
    prior = GeoPrior(48.0, 11.0, 10.0)
    for asked in ([None], [prior], None):
        assert np.array_equal(index.search(unit_rows(1, 1), 10, asked).rows, first)


def test_k_below_1_is_refused(published: PublishedPlaces) -> None:
    index = PlaceIndex.open(published.indexes / published.name)
    with refused(ParameterError, "k is 0, below 1. Ask for at least one match.", "validation_error"):
        index.search(index.descriptors(np.array([0])), 0)


@pytest.mark.parametrize("shape", [(12,), (2, 7), (1, 2, 12)])
def test_descriptors_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    index = index_of(np.full(3, 48.0), np.full(3, 11.0), unit_rows(3, 1), "fp32")
    text = f"descriptors are {shape}, the index holds (N, 12). Describe the queries with the index's bundle."
    with refused(ParameterError, text, "validation_error"):
        index.search(np.zeros(shape, np.float32), 1)


# A published index


def test_each_reference_photo_finds_its_own_id_first(
    published: PublishedPlaces, describer: Describer, bundle: Bundle
) -> None:
    """Rows were put in another order on the way; ids, positions and vectors stayed together."""
    index = PlaceIndex.open(published.indexes / published.name)
    rows = published.places.rows
    queries = describer.describe([read_image(row.path, bundle.preprocessing) for row in rows])
    result = index.search(queries, 3)
    found = index.references(result.rows[:, 0])
    assert [reference.id for reference in found] == [row.id for row in rows]
    assert [reference.position for reference in found] == [row.position for row in rows]
    assert [reference.path for reference in found] == [row.path for row in rows]
    np.testing.assert_allclose(result.scores[:, 0], 1.0, atol=2e-3)


def test_an_index_states_what_it_is(published: PublishedPlaces, bundle: Bundle) -> None:
    index = PlaceIndex.open(published.indexes / published.name)
    assert (index.name, index.count) == ("places", 12)
    assert index.version == index.folder.name
    assert index.manifest.bundle == BundleIdentity(name=bundle.name, fingerprint=bundle.fingerprint, held=True)
    assert index.manifest.bounds.lat_min == index.manifest.bounds.lat_max == 48.0
    assert index.manifest.bounds.lon_min == 11.0
    assert index.manifest.bounds.lon_max == pytest.approx(11.0 + 1100.0 / 74_400.0)
    assert index.manifest.source.root == str(published.places.root.resolve())
    index.check_bundle(bundle)


def test_one_version_can_be_opened_by_its_own_folder(published: PublishedPlaces, version: Path) -> None:
    assert PlaceIndex.open(version).manifest == PlaceIndex.open(published.indexes / published.name).manifest


def test_every_column_of_a_reference_comes_back() -> None:
    taken = datetime(2026, 3, 1, 12, 30, 1, tzinfo=timezone(timedelta(hours=2)))
    index = index_of(
        np.array([48.0, 49.0]),
        np.array([11.0, 12.0]),
        unit_rows(2, 1),
        "fp32",
        path=["a.jpg", "/elsewhere/b.jpg"],
        altitude_m=[519.5, None],
        heading_deg=[0.0, None],
        captured_at=[taken.isoformat(), None],
        session=["drive", None],
        metadata=[json.dumps({"camera": "größte"}), None],
    )
    second, first = index.references([1, 0])
    assert first.path == Path("/photos/a.jpg")
    assert (first.altitude_m, first.heading_deg, first.captured_at) == (519.5, 0.0, taken)
    assert (first.session, first.metadata) == ("drive", {"camera": "größte"})
    assert second.path == Path("/elsewhere/b.jpg")
    assert (second.altitude_m, second.heading_deg, second.captured_at, second.session) == (None, None, None, None)
    assert second.metadata == {}


@pytest.mark.parametrize("rows", [[-1], [12], [0, 11, 12]])
def test_there_is_no_reference_beyond_the_rows(published: PublishedPlaces, rows: list[int]) -> None:
    with pytest.raises(IndexError, match=f"rows {rows[0]} to {rows[-1]} of 12"):
        PlaceIndex.open(published.indexes / published.name).references(rows)


def test_no_rows_have_no_references(published: PublishedPlaces) -> None:
    assert PlaceIndex.open(published.indexes / published.name).references([]) == []


def test_a_row_is_found_by_its_reference_id(published: PublishedPlaces) -> None:
    index = PlaceIndex.open(published.indexes / published.name)
    references = index.references(range(index.count))
    assert [index.row_of(reference.id) for reference in references] == list(range(12))


def test_an_unknown_reference_id_is_refused(published: PublishedPlaces) -> None:
    text = "the index places has no reference '../secret'. Take a reference_id from an answer."
    with refused(IndexNotFoundError, text, "reference_not_found"):
        PlaceIndex.open(published.indexes / published.name).row_of("../secret")


def test_an_index_of_another_bundle_is_refused(published: PublishedPlaces, bundle: Bundle, tmp_path: Path) -> None:
    other = write_other_bundle(bundle, tmp_path / "other")
    index = PlaceIndex.open(published.indexes / published.name)
    text = (
        f"{index.folder}: the index was described with bundle {bundle.name} ({bundle.fingerprint[:12]}), "
        f"not with other ({other.fingerprint[:12]}). "
        "Leave out --bundle, for the index holds its own; or index the photos again with this one."
    )
    with refused(ModelIndexMismatchError, text, "model_index_mismatch"):
        index.check_bundle(other)
    with refused(ModelIndexMismatchError, text, "model_index_mismatch"):
        index.open_bundle(other.folder)


def test_another_bundle_of_the_same_name_is_told_as_such(
    published: PublishedPlaces, bundle: Bundle, tmp_path: Path
) -> None:
    other = write_other_bundle(bundle, tmp_path / "other", name=bundle.name)
    with pytest.raises(ModelIndexMismatchError) as caught:
        PlaceIndex.open(published.indexes / published.name).open_bundle(other.folder)
    assert caught.value.what == (
        f"the index was described with bundle {bundle.name} ({bundle.fingerprint[:12]}), "
        f"not with another of that name ({other.fingerprint[:12]})"
    )


# Damage


def test_nothing_published_is_refused(tmp_path: Path) -> None:
    text = f"{tmp_path / 'x'}: there is no published place index. Publish one: sightfix index SPEC --name x."
    with refused(IndexNotFoundError, text, "index_not_found"):
        PlaceIndex.open(tmp_path / "x")
    (tmp_path / "x" / "versions").mkdir(parents=True)
    with refused(IndexNotFoundError, text, "index_not_found"):
        PlaceIndex.open(tmp_path / "x")


def test_a_folder_that_is_no_index_is_refused(tmp_path: Path) -> None:
    text = (
        f"{tmp_path}: there is no readable manifest.json (No such file or directory). Give the folder of a place-index."
    )
    with refused(PlaceIndexError, text, "place_index_damaged"):
        PlaceIndex.open(tmp_path)


def test_an_unknown_format_version_is_refused(version: Path) -> None:
    change_manifest(version, {"format_version": 9})
    text = (
        f"{version / 'manifest.json'}: format version 9 is unknown to sightfix {__version__} (it reads 1, 2 and 3). "
        "Install a matching sightfix, or make the place-index again with this one."
    )
    with refused(PlaceIndexError, text, "place_index_damaged"):
        PlaceIndex.open(version)


def test_a_bundle_is_no_place_index(bundle: Bundle) -> None:
    text = f"{bundle.folder / 'manifest.json'}: this is a bundle, not a place-index."
    with refused(PlaceIndexError, text, "place_index_damaged"):
        PlaceIndex.open(bundle.folder)


@pytest.mark.parametrize("name", ["vectors.faiss", "references.parquet"])
@pytest.mark.parametrize("place", [0, -1])
def test_a_flipped_byte_in_any_file_is_refused(version: Path, name: str, place: int) -> None:
    recorded = PlaceIndex.open(version).manifest.files[name].sha256
    flip_byte(version / name, place)
    found = hashlib.sha256((version / name).read_bytes()).hexdigest()
    text = (
        f"{version / name}: the file is damaged: its SHA-256 is {found[:12]}…, "
        f"its manifest says {recorded[:12]}…. {AGAIN}"
    )
    with refused(PlaceIndexError, text, "place_index_damaged"):
        PlaceIndex.open(version)


@pytest.mark.parametrize("name", ["vectors.faiss", "references.parquet"])
def test_a_truncated_file_is_refused(version: Path, name: str) -> None:
    data = (version / name).read_bytes()
    (version / name).write_bytes(data[:-100])
    text = f"{version / name}: the file has {len(data) - 100} bytes, its manifest says {len(data)}. {AGAIN}"
    with refused(PlaceIndexError, text, "place_index_damaged"):
        PlaceIndex.open(version)


@pytest.mark.parametrize("name", ["vectors.faiss", "references.parquet"])
def test_a_missing_file_is_refused(version: Path, name: str) -> None:
    (version / name).unlink()
    text = f"{version / name}: the file cannot be read (No such file or directory). {AGAIN}"
    with refused(PlaceIndexError, text, "place_index_damaged"):
        PlaceIndex.open(version)


@pytest.mark.parametrize("name", ["vectors.faiss", "references.parquet"])
def test_a_manifest_that_forgot_a_file_is_refused(version: Path, name: str) -> None:
    files = json.loads((version / "manifest.json").read_text())["files"]
    del files[name]
    change_manifest(version, {"files": files})
    text = f"{version}: the manifest names no {name}. Build it again."
    with refused(PlaceIndexError, text, "place_index_damaged"):
        PlaceIndex.open(version)


@pytest.mark.parametrize("name", ["vectors.faiss", "references.parquet"])
def test_a_changed_hash_in_the_manifest_is_refused(version: Path, name: str) -> None:
    found = hashlib.sha256((version / name).read_bytes()).hexdigest()
    change_manifest(version, {f"files/{name}/sha256": "0" * 64})
    text = (
        f"{version / name}: the file is damaged: its SHA-256 is {found[:12]}…, its manifest says 000000000000…. {AGAIN}"
    )
    with refused(PlaceIndexError, text, "place_index_damaged"):
        PlaceIndex.open(version)


def test_a_changed_bundle_fingerprint_in_the_manifest_is_refused_by_the_bundle(version: Path, bundle: Bundle) -> None:
    change_manifest(version, {"bundle/fingerprint": "0" * 64})
    with pytest.raises(ModelIndexMismatchError):
        PlaceIndex.open(version).check_bundle(bundle)


@pytest.mark.parametrize("change", [{"metric": "l2"}, {"index_type": "annoy"}, {"storage": "int4"}, {"count": 0}])
def test_a_manifest_of_an_unknown_kind_of_index_is_refused(version: Path, change: dict) -> None:
    change_manifest(version, change)
    with pytest.raises(PlaceIndexError, match=f"the manifest is damaged at {next(iter(change))} "):
        PlaceIndex.open(version)


def test_parts_that_do_not_belong_together_are_refused(version: Path, bundle: Bundle) -> None:
    change_manifest(version, {"count": 11})
    text = (
        f"{version}: 12 vectors of {bundle.descriptor_dim} numbers, 12 references and a manifest of "
        f"11 × {bundle.descriptor_dim} do not belong together. Build the index again."
    )
    with refused(PlaceIndexError, text, "place_index_damaged"):
        PlaceIndex.open(version)


def test_another_storage_than_the_manifest_says_is_refused(version: Path) -> None:
    change_manifest(version, {"storage": "fp32"})
    text = f"{version / 'vectors.faiss'}: the vectors are not an exact fp32 index."
    with refused(PlaceIndexError, text, "place_index_damaged"):
        PlaceIndex.open(version)


def test_vectors_of_another_index_type_are_refused(version: Path, bundle: Bundle) -> None:
    faiss.write_index(faiss.IndexHNSWFlat(bundle.descriptor_dim, 8), str(version / "vectors.faiss"))
    record_again(version, "vectors.faiss")
    text = f"{version / 'vectors.faiss'}: the vectors are not an exact fp16 index."
    with refused(PlaceIndexError, text, "place_index_damaged"):
        PlaceIndex.open(version)


def test_a_table_that_is_no_table_is_refused(version: Path) -> None:
    (version / "references.parquet").write_bytes(b"PAR1 no PAR1")
    record_again(version, "references.parquet")
    with pytest.raises(PlaceIndexError) as caught:
        PlaceIndex.open(version)
    assert str(caught.value).startswith(f"{version / 'references.parquet'}: the reference table cannot be read (")
    assert str(caught.value).endswith("). Build the index again.")


def test_a_table_of_other_columns_is_refused(version: Path) -> None:
    table = pq.read_table(version / "references.parquet")
    pq.write_table(table.drop_columns(["session"]), version / "references.parquet")
    record_again(version, "references.parquet")
    text = f"{version / 'references.parquet'}: the reference table has other columns than it should."
    with refused(PlaceIndexError, text, "place_index_damaged"):
        PlaceIndex.open(version)


def test_a_flip_of_any_byte_of_the_manifest_is_refused(published: PublishedPlaces, tmp_path: Path) -> None:
    version = tmp_path / "version"
    shutil.copytree(next((published.indexes / published.name / "versions").glob("2*")), version)
    whole = (version / "manifest.json").read_bytes()
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1
        (version / "manifest.json").write_bytes(flipped)
        with pytest.raises(PlaceIndexError):
            PlaceIndex.open(version)


def test_an_index_of_format_version_1_is_still_read(version: Path) -> None:
    """Written before there were types, whitening, recall, calibration and hashes of photos."""
    table = pq.read_table(version / "references.parquet")
    pq.write_table(table.drop_columns(["content_sha256"]), version / "references.parquet")
    record_again(version, "references.parquet")
    manifest = json.loads((version / "manifest.json").read_text())
    for name in ("candidates", "recall", "whitening", "calibration", "describing"):
        manifest.pop(name, None)
    text = json.dumps({**manifest, "format_version": 1}).encode()
    (version / "manifest.json").write_bytes(text)
    (version / "manifest.sha256").write_text(hashlib.sha256(text).hexdigest() + "\n")
    index = PlaceIndex.open(version)
    assert index.manifest.format_version == 1
    assert index.references([0])[0].id == index.references(np.array([0]))[0].id
    assert index.search(index.descriptors(np.array([3])), 1).rows.tolist() == [[3]]


def test_a_version_pruned_while_it_is_opened_gives_way_to_the_next(
    published: PublishedPlaces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "places"
    shutil.copytree(published.indexes / "places", index)
    first = (index / "CURRENT").read_text().strip()
    read = PlaceIndexManifest.read

    def published_and_pruned(folder: Path, error_type: type[PlaceIndexError]) -> PlaceIndexManifest:
        monkeypatch.setattr(PlaceIndexManifest, "read", read)
        shutil.copytree(index / "versions" / first, index / "versions" / "next")
        (index / "CURRENT").write_text("next\n")
        shutil.rmtree(index / "versions" / first)
        return read(folder, error_type)

    monkeypatch.setattr(PlaceIndexManifest, "read", published_and_pruned)
    assert PlaceIndex.open(index).folder == index / "versions" / "next"
    (index / "versions" / "next" / "vectors.faiss").unlink()
    with pytest.raises(PlaceIndexError, match="cannot be read"):
        PlaceIndex.open(index)
