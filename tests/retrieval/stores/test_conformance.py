"""What every store must do: the folders, and Milvus with exact, list and graph indexes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from index_builder.maintenance.versions import list_versions, verify_version
from index_builder.push import PushSettings, push_version
from retrieval.bundle import Bundle
from retrieval.errors import IndexNotFoundError, ModelIndexMismatchError, ParameterError
from retrieval.index.milvus.collection import MilvusType
from retrieval.index.milvus.store import MilvusStore
from retrieval.index.place_index import PlaceIndex
from retrieval.index.searchable import PlaceIndexStore, SearchablePlaceIndex
from retrieval.index.stores import open_store
from tests.retrieval.other_bundle import write_other_bundle
from tests.retrieval.stores.made_index import PRIORS, MadeIndex, make_index

pytestmark = pytest.mark.usefixtures("milvus_polled_often")

K = 7
KINDS = ["folder", "FLAT", "IVF_FLAT", "HNSW"]


@dataclass
class Stored:
    """A store with two versions of one index, the second of them whitened and current."""

    store: PlaceIndexStore
    publish: Callable[[PlaceIndex], None]
    first: MadeIndex
    second: MadeIndex

    def opened(self, made: MadeIndex) -> SearchablePlaceIndex:
        return self.store.open("town", made.index.version)


@pytest.fixture(scope="module", params=KINDS)
def stored(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, bundle: Bundle
) -> Iterator[Stored]:
    folder = tmp_path_factory.mktemp("stores")
    first = make_index(folder / "indexes", bundle, seed=1)
    second = make_index(folder / "indexes", bundle, seed=2, count=40, whitened=32)
    kind: str = request.param
    if kind == "folder":
        yield Stored(open_store(None, folder / "indexes"), lambda _: None, first, second)
        return
    type_: MilvusType = kind  # type: ignore[assignment]
    store = open_store(f"milvus://{folder}/milvus.db", folder)
    assert isinstance(store, MilvusStore)

    def publish(index: PlaceIndex) -> None:
        push_version(index, store, PushSettings(type=type_, recall=0.9, queries=64))

    publish(first.index)
    publish(second.index)
    yield Stored(store, publish, first, second)
    store.close()


def test_what_is_published_is_listed(stored: Stored) -> None:
    versions = [stored.first.index.version, stored.second.index.version]
    assert stored.store.names() == ["town"]
    assert stored.store.versions("town") == versions
    assert stored.store.current("town") == versions[1]
    assert stored.store.find(None) == "town"
    assert stored.store.find_version("town", None) == versions[1]
    assert stored.store.find_version("town", versions[0][:-1]) == versions[0]
    here = stored.first.index.manifest
    assert stored.store.manifest("town", versions[0]).model_copy(update={"bundle": here.bundle}) == here
    assert stored.store.open("town").version == versions[1]
    listed = list_versions(stored.store, "town")
    assert [(one.version, one.current, one.problem) for one in listed] == [
        (versions[0], False, None),
        (versions[1], True, None),
    ]


def test_nothing_else_is(stored: Stored) -> None:
    with pytest.raises(IndexNotFoundError, match="there is no place index 'city'"):
        stored.store.find("city")
    with pytest.raises(IndexNotFoundError, match="no published place index"):
        stored.store.current("city")
    assert stored.store.versions("city") == []
    with pytest.raises(IndexNotFoundError, match="has no version '2020'") as refusal:
        stored.store.activate("town", "2020")
    assert refusal.value.code == "version_not_found"
    with pytest.raises(ParameterError, match="cannot be the name of a place index"):
        stored.store.current("../town")
    assert stored.store.current("town") == stored.second.index.version


@pytest.mark.parametrize("which", ["first", "second"])
def test_search_finds_what_is_most_alike(stored: Stored, which: str) -> None:
    made: MadeIndex = getattr(stored, which)
    index = stored.opened(made)
    queries = _queries(index)
    found = index.search(queries, K)
    assert found.rows.shape == found.scores.shape == (len(queries), K)
    asked = index.whitened(queries)
    right = 0
    for query, rows, scores in zip(asked, found.rows, found.scores, strict=True):
        # Whatever was found, the score is that row's own cosine.
        np.testing.assert_allclose(scores, made.descriptors[rows] @ query, atol=2e-5)
        assert list(scores) == sorted(scores, reverse=True)
        right += sum(score >= made.best(query, K, None)[-1] - 1e-5 for score in scores)
    # Made-up queries lie further away than what an approximate index was tuned on.
    assert right == found.rows.size if index.searches_exactly else right >= 0.7 * found.rows.size


@pytest.mark.parametrize("prior", PRIORS, ids=str)
def test_inside_a_prior_search_is_exact(stored: Stored, prior: object) -> None:
    index = stored.opened(stored.first)
    queries = _queries(index)
    found = index.search(queries, K, [prior] * len(queries))
    for query, rows, scores in zip(queries, found.rows, found.scores, strict=True):
        best = stored.first.best(query, K, prior)
        np.testing.assert_allclose(scores[: len(best)], best, atol=2e-5)
        assert (rows[len(best) :] == -1).all()
        assert np.isneginf(scores[len(best) :]).all()


def test_a_batch_has_queries_with_and_without_priors(stored: Stored) -> None:
    index = stored.opened(stored.first)
    queries = _queries(index)[:3]
    together = index.search(queries, K, [PRIORS[0], None, PRIORS[1]])
    for place, prior in enumerate([PRIORS[0], None, PRIORS[1]]):
        alone = index.search(queries[place : place + 1], K, [prior])
        np.testing.assert_array_equal(together.rows[place], alone.rows[0])
        np.testing.assert_allclose(together.scores[place], alone.scores[0], atol=1e-6)


def test_more_matches_than_references_are_filled_up(stored: Stored) -> None:
    index = stored.opened(stored.second)
    found = index.search(_queries(index)[:1], index.count + 5)
    assert (found.rows[0] >= 0).sum() == index.count if index.searches_exactly else (found.rows[0] >= 0).any()
    assert (found.rows[0, -5:] == -1).all()


def test_rows_are_what_was_published(stored: Stored) -> None:
    index, local = stored.opened(stored.first), stored.first.index
    rows = np.array([5, 0, 599, 5, 300])
    assert index.count == 600
    assert index.references(rows) == local.references(rows)
    np.testing.assert_array_equal(index.descriptors(rows), local.descriptors(rows))
    np.testing.assert_array_equal(index.positions(rows), local.positions(rows))
    np.testing.assert_array_equal(index.all_positions(), (local.lat, local.lon))
    for reference, row in zip(index.references(rows), rows, strict=True):
        assert index.row_of(reference.id) == row
    with pytest.raises(IndexNotFoundError, match="has no reference 'x'"):
        index.row_of("x")
    with pytest.raises(IndexError):
        index.references([600])


def test_descriptors_of_another_bundle_are_refused(stored: Stored, bundle: Bundle, tmp_path: Path) -> None:
    index = stored.opened(stored.first)
    with pytest.raises(ModelIndexMismatchError, match="described with bundle"):
        index.check_bundle(write_other_bundle(bundle, tmp_path / "other"))
    with pytest.raises(ParameterError, match="the index holds"):
        index.search(np.ones((1, 3), np.float32), 1)


def test_every_version_is_whole(stored: Stored) -> None:
    for version in stored.store.versions("town"):
        verdict = verify_version(stored.store, "town", version, photos=True)
        assert verdict.whole, verdict.problem
        assert verdict.missing_photos == stored.store.open("town", version).count


def test_going_back_and_forth_while_a_version_is_open(stored: Stored) -> None:
    before, after = stored.first.index.version, stored.second.index.version
    opened = stored.store.open("town")
    assert stored.store.roll_back("town") == (after, before)
    assert (stored.store.current("town"), stored.store.open("town").version) == (before, before)
    with pytest.raises(IndexNotFoundError, match=f"there is no version before {before}"):
        stored.store.roll_back("town")
    found = opened.search(_queries(opened), K)  # what is open stays so
    assert (opened.version, bool((found.rows >= 0).all())) == (after, True)
    stored.store.activate("town", after)
    assert stored.store.current("town") == after


def test_old_versions_go_and_the_current_one_stays(stored: Stored, bundle: Bundle) -> None:
    """Last, for it leaves less than it found."""
    third = make_index(Path(stored.first.index.manifest.source.root), bundle, seed=3, count=20)
    stored.publish(third.index)
    stored.store.activate("town", stored.second.index.version)
    assert stored.store.prune("town", 2) == [stored.first.index.version]
    assert stored.store.versions("town") == [stored.second.index.version, third.index.version]
    # The newest may be about to become current.
    assert stored.store.prune("town", 1) == []
    assert stored.store.current("town") == stored.second.index.version
    with pytest.raises(IndexNotFoundError, match="has no version") as refusal:
        stored.store.open("town", stored.first.index.version)
    assert refusal.value.code == "version_not_found"
    stored.store.activate("town", third.index.version)
    assert stored.store.prune("town", 1) == [stored.second.index.version]
    assert stored.store.open("town").search(_queries(stored.store.open("town")), 1).rows.min() >= 0


def _queries(index: SearchablePlaceIndex) -> np.ndarray:
    draw = np.random.default_rng(7)
    queries = draw.normal(size=(6, index.manifest.query_dim)).astype(np.float32)
    unit: np.ndarray = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    return unit
