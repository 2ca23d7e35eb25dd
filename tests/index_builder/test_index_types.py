"""Indexes of every type, built, opened, searched, appended to."""

from pathlib import Path

import numpy as np
import pytest

from index_builder.index_design import IndexDesign
from index_builder.update import UpdateSettings, append_references, build_index
from retrieval.describer import Describer
from retrieval.errors import PlaceIndexError
from retrieval.geo import GeoPrior, haversine_m
from retrieval.images import read_image
from retrieval.index.place_index import PlaceIndex
from retrieval.index.vectors.candidates import INDEX_TYPES
from retrieval.localize.evidence import score_spread
from retrieval.localize.localizer import Localizer
from tests.conftest import Places
from tests.index_builder.test_updating import scattered
from tests.whitened_index import whiten

TYPES = list(INDEX_TYPES)
# Codes of 256 values need as many rows.
ROWS = {name: 260 if name == "ivf-pq" else 60 for name in TYPES}


def build(tmp_path: Path, describer: Describer, design: IndexDesign, count: int = 60) -> tuple[Places, PlaceIndex]:
    places = scattered(tmp_path / "photos", count)
    built = build_index(places, describer, tmp_path / "indexes", "town", UpdateSettings(design=design))
    return places, PlaceIndex.open(built.folder)


@pytest.fixture(scope="module", params=TYPES)
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, describer: Describer
) -> tuple[str, Places, PlaceIndex]:
    """An index of each type."""
    type_ = request.param
    return type_, *build(tmp_path_factory.mktemp(type_), describer, IndexDesign(type=type_, recall=0.9), ROWS[type_])


def test_an_index_of_every_type_answers(built: tuple[str, Places, PlaceIndex], describer: Describer) -> None:
    type_, places, index = built
    manifest = index.manifest
    assert manifest.index_type == type_
    assert (manifest.recall is None) == (manifest.candidates is None) == (type_ == "exact")
    if manifest.recall is not None:
        assert manifest.recall.at_10 >= 0.9
        assert manifest.recall.queries == ROWS[type_] // 2  # the other half was tuned with
    queries = describer.describe([read_image(row.path, describer.bundle.preprocessing) for row in places.rows[:8]])
    found = index.search(queries, 3)
    ids = [index.references(rows[:1])[0].id for rows in found.rows]
    assert sum(name == row.id for name, row in zip(ids, places.rows, strict=False)) >= 7
    located = Localizer(describer, index).localize_file(places.rows[0].path)
    assert located.place_index.type_name == type_
    assert located.matches[0].reference.id == places.rows[0].id


def test_priors_are_exact_for_every_type(built: tuple[str, Places, PlaceIndex]) -> None:
    _, _, index = built
    prior = GeoPrior(float(index.lat[20]), float(index.lon[20]), 60_000.0)
    inside = np.flatnonzero(haversine_m(prior.lat, prior.lon, index.lat, index.lon) <= prior.radius_m)
    query = index.descriptors(np.array([3]))
    found = index.search(query, 5, [prior])
    scores = index.descriptors(inside) @ query[0]
    wanted = np.sort(scores)[::-1][:5]
    np.testing.assert_allclose(found.scores[0][: len(wanted)], wanted, atol=1e-3)
    assert set(found.rows[0][found.rows[0] >= 0]) <= set(inside.tolist())


def test_whitened_descriptors_find_the_same_photos(tmp_path: Path, describer: Describer) -> None:
    places, built = build(tmp_path, describer, IndexDesign())
    index = whiten(built.folder, 8)
    manifest = index.manifest
    assert manifest.whitening is not None
    assert (manifest.descriptor_dim, manifest.query_dim) == (8, describer.bundle.descriptor_dim)
    assert 0.5 < manifest.whitening.explained <= 1.0
    assert index.score_stretch == manifest.whitening.score_stretch > 1.0
    located = Localizer(describer, index).localize_file(places.rows[7].path)
    assert located.matches[0].reference.id == places.rows[7].id
    assert located.matches[0].score == pytest.approx(1.0, abs=1e-2)


@pytest.mark.parametrize(
    "design",
    [
        IndexDesign(storage="int8"),
        IndexDesign(type="ivf", recall=0.9),
        IndexDesign(type="hnsw"),
        IndexDesign(type="ivf-int8", storage="fp32", recall=0.8),
    ],
    ids=["int8", "ivf", "hnsw", "ivf-int8"],
)
def test_appending_keeps_the_design_and_every_stored_bit(
    tmp_path: Path, describer: Describer, design: IndexDesign
) -> None:
    places, old = build(tmp_path, describer, design, 50)
    more = scattered(tmp_path / "photos", 60)
    assert append_references(more, describer, tmp_path / "indexes", "town", work=tmp_path / "work").count == 60
    new = PlaceIndex.open(tmp_path / "indexes" / "town")
    assert new.manifest.score_spread == score_spread(new.vectors.exact) != old.manifest.score_spread
    for name in ("index_type", "storage", "whitening", "descriptor_dim"):
        assert getattr(new.manifest, name) == getattr(old.manifest, name)
    for row in places.rows:
        ours, theirs = (index.descriptors(np.array([index.row_of(row.id)])) for index in (old, new))
        np.testing.assert_array_equal(ours, theirs)


def test_appending_to_a_whitened_index_keeps_its_map_and_every_stored_bit(tmp_path: Path, describer: Describer) -> None:
    places, built = build(tmp_path, describer, IndexDesign(), 50)
    old = whiten(built.folder, 8)
    append_references(scattered(tmp_path / "photos", 60), describer, tmp_path / "indexes", "town")
    new = PlaceIndex.open(tmp_path / "indexes" / "town")
    assert (new.count, new.manifest.whitening) == (60, old.manifest.whitening)
    assert new.score_stretch != old.score_stretch  # measured now
    for row in places.rows:
        ours, theirs = (index.descriptors(np.array([index.row_of(row.id)])) for index in (old, new))
        np.testing.assert_array_equal(ours, theirs)


def test_a_memory_mapped_index_answers_the_same(tmp_path: Path, describer: Describer) -> None:
    _, index = build(tmp_path, describer, IndexDesign(type="ivf", recall=0.9))
    mapped = PlaceIndex.open(index.folder, memory_map=True)
    queries = np.random.default_rng(0).normal(size=(9, describer.bundle.descriptor_dim)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    priors = [None, GeoPrior(float(index.lat[0]), float(index.lon[0]), 30_000.0)] * 4 + [None]
    ours, theirs = index.search(queries, 7, priors), mapped.search(queries, 7, priors)
    np.testing.assert_array_equal(ours.rows, theirs.rows)
    np.testing.assert_array_equal(ours.scores, theirs.scores)


def test_a_recall_that_cannot_be_reached_publishes_nothing(
    tmp_path: Path, describer: Describer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from index_builder import quality as recall

    monkeypatch.setattr(recall, "_efforts", lambda _: [1])
    places = scattered(tmp_path / "photos", 300)
    settings = UpdateSettings(design=IndexDesign(type="ivf-pq-fast", recall=1.0))
    with pytest.raises(PlaceIndexError, match=r"100.0% are wanted; nothing was published") as caught:
        build_index(places, describer, tmp_path / "indexes", "town", settings)
    assert caught.value.code == "gate_failed"
