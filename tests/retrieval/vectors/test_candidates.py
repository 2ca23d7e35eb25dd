from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from index_builder.index_design import build_candidates, parameters_for
from retrieval.errors import ParameterError, PlaceIndexError
from retrieval.index.vectors import candidates as stored_module
from retrieval.index.vectors.candidates import (
    INDEX_TYPES,
    CandidateParameters,
    Candidates,
    StoredVectors,
    code_parts_for,
)
from retrieval.index.vectors.exact import ExactVectors
from tests.retrieval.refusal import refused
from tests.retrieval.slow_search import assert_k_best

TYPES = [name for name in INDEX_TYPES if name != "exact"]
DIM = 32
ROWS = 3000


def clustered(rows: int, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    places = draw.normal(size=(60, DIM))
    out = places[draw.integers(0, 60, rows)] + 0.4 * draw.normal(size=(rows, DIM))
    return (out / np.linalg.norm(out, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def exact() -> ExactVectors:
    return ExactVectors.from_descriptors([clustered(ROWS)], DIM, "fp16")


@pytest.fixture(scope="module", params=TYPES)
def candidates(request: pytest.FixtureRequest, exact: ExactVectors) -> Candidates:
    return build_candidates(exact, parameters_for(request.param, ROWS, DIM))


def widest(candidates: Candidates) -> Candidates:
    """Searched so widely that every row is seen."""
    first = candidates.parameters
    return candidates.with_parameters(first.model_copy(update={"effort": first.lists or 2000, "rerank": 300}))


def test_searched_widely_every_type_is_the_slow_search(exact: ExactVectors, candidates: Candidates) -> None:
    vectors, queries = StoredVectors(exact, widest(candidates)), clustered(20, seed=1)
    rows, scores = vectors.search(queries, 10)
    true = exact.descriptors(np.arange(ROWS)).astype(np.float64)
    for place, query in enumerate(queries):
        assert_k_best(rows[place], scores[place], true @ query, np.arange(ROWS), 10)


def test_effort_counts_for_one_call_only(exact: ExactVectors, candidates: Candidates) -> None:
    """Least effort finds less than the most, and the shared index stays as it was."""
    vectors, queries = StoredVectors(exact, candidates), clustered(200, seed=1)
    best = exact.search(queries, 10)[0]
    narrow, wide = (vectors.search(queries, 10, effort=effort)[0] for effort in (1, 2000))
    again = vectors.search(queries, 10, effort=1)[0]
    assert np.array_equal(narrow, again)
    shares = [
        np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(found, best, strict=True)]) for found in (narrow, wide)
    ]
    assert shares[0] < shares[1] or shares[0] == 1.0
    assert shares[1] > 0.7


def test_scores_are_those_of_the_stored_descriptors(exact: ExactVectors, candidates: Candidates) -> None:
    """Also where the candidates' own codes are coarse."""
    queries = clustered(5, seed=1)
    rows, scores = StoredVectors(exact, candidates).search(queries, 5)
    for place, query in enumerate(queries):
        found = rows[place] >= 0
        np.testing.assert_allclose(scores[place][found], exact.descriptors(rows[place][found]) @ query, atol=1e-3)


@pytest.mark.parametrize("memory_map", [False, True])
def test_a_written_file_is_read_again(candidates: Candidates, memory_map: bool, tmp_path: Path) -> None:
    path = tmp_path / "candidates.faiss"
    with path.open("wb") as file:
        candidates.write(file.write)
    read = Candidates.read(path, candidates.parameters, memory_map=memory_map)
    assert (read.count, read.dim) == (ROWS, DIM)
    queries = clustered(7, seed=1)
    for ours, theirs in zip(read.search(queries, 5), candidates.search(queries, 5), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("type_", TYPES)
def test_another_type_of_index_is_refused(type_: str, exact: ExactVectors, tmp_path: Path) -> None:
    path = tmp_path / "candidates.faiss"
    faiss.write_index(faiss.IndexFlatIP(DIM), str(path))
    text = f"{path}: the candidates are not an index of type {type_}."
    with refused(PlaceIndexError, text, "place_index_damaged"):
        Candidates.read(path, parameters_for(type_, ROWS, DIM))


@pytest.mark.parametrize("type_", TYPES)
def test_many_rows_inside_a_prior_are_searched_by_candidates_and_checked(
    type_: str, exact: ExactVectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_module, "EXACT_PRIOR_ROWS", 100)
    candidates = build_candidates(exact, parameters_for(type_, ROWS, DIM))
    vectors = StoredVectors(exact, candidates.with_parameters(candidates.parameters.model_copy(update={"rerank": 20})))
    monkeypatch.setattr(exact, "search_rows", _only_few(exact))
    inside, queries = np.arange(500, 2500), clustered(20, seed=1)
    best = exact.descriptors(inside) @ queries.T
    least = np.sort(best, axis=0)[-10]
    right = 0
    for query, enough in zip(queries, least, strict=True):
        rows, scores = vectors.search_rows(query, 10, inside)
        assert ((rows >= 500) & (rows < 2500)).all()
        np.testing.assert_allclose(scores, exact.descriptors(rows) @ query, atol=1e-3)
        right += int((scores >= enough - 1e-3).sum())
    assert right >= 160


def _only_few(exact: ExactVectors) -> Any:
    """Exact search among rows, of candidates only: scanning all that are inside would hide what candidates find."""
    search_rows = exact.search_rows

    def search(query: np.ndarray, k: int, rows: np.ndarray) -> Any:
        assert len(rows) < 2000
        return search_rows(query, k, rows)

    return search


@pytest.mark.parametrize(("inside", "effort", "wider"), [(2000, None, 12), (1500, None, 16), (2000, 10, 15)])
def test_the_fewer_rows_a_prior_holds_the_more_lists_are_looked_at(
    inside: int, effort: int | None, wider: int, exact: ExactVectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index of which a half is inside shows in twice as many lists as many rows inside as without a prior."""
    monkeypatch.setattr(stored_module, "EXACT_PRIOR_ROWS", 100)
    vectors = StoredVectors(exact, build_candidates(exact, parameters_for("ivf", ROWS, DIM)))
    efforts: list[int | None] = []
    search = Candidates.search

    def told(self: Candidates, queries: Any, k: int, *, effort: int | None = None, among: Any = None) -> Any:
        efforts.append(effort)
        return search(self, queries, k, effort=effort, among=among)

    monkeypatch.setattr(Candidates, "search", told)
    vectors.search_rows(clustered(1, seed=1)[0], 10, np.arange(inside), effort=effort)
    assert efforts == [wider]


@pytest.mark.parametrize("type_", TYPES)
def test_rows_inside_are_scanned_where_candidates_would_cost_more(
    type_: str, exact: ExactVectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_module, "EXACT_PRIOR_ROWS", 10)
    vectors = StoredVectors(exact, build_candidates(exact, parameters_for(type_, ROWS, DIM)))
    inside = np.arange(0, ROWS, 50)
    true = exact.descriptors(np.arange(ROWS)).astype(np.float64)
    for query in clustered(20, seed=1):
        rows, scores = vectors.search_rows(query, 10, inside)
        assert_k_best(rows, scores, true @ query, inside, 10)


def test_candidates_that_ignore_a_prior_are_not_believed(
    exact: ExactVectors, candidates: Candidates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As FAISS's classic GPU indexes do, without a word (faiss issue 3924)."""
    monkeypatch.setattr(stored_module, "EXACT_PRIOR_ROWS", 10)
    search = Candidates.search
    monkeypatch.setattr(
        Candidates, "search", lambda self, queries, k, effort=None, among=None: search(self, queries, k, effort=effort)
    )
    query, inside = clustered(1, seed=1)[0], np.arange(0, ROWS, 7)
    rows, scores = StoredVectors(exact, candidates).search_rows(query, 10, inside)
    true = exact.descriptors(np.arange(ROWS)).astype(np.float64) @ query
    assert_k_best(rows, scores, true, inside, 10)


def test_more_lists_than_rows_are_refused() -> None:
    parameters = CandidateParameters(type="ivf", lists=64, effort=1)
    text = "10 references are too few for 64 lists. Use fewer lists, or --type exact, which is fast with so few."
    with refused(ParameterError, text, "validation_error"):
        Candidates.train(parameters, clustered(10))


def test_fewer_rows_than_values_of_a_code_are_refused() -> None:
    parameters = CandidateParameters(type="ivf-pq", lists=2, code_parts=8, effort=1)
    text = "100 references are too few for codes of 256 values. Use --type exact, which is fast with so few."
    with refused(ParameterError, text, "validation_error"):
        Candidates.train(parameters, clustered(100))


def test_codes_that_do_not_divide_the_descriptor_are_refused() -> None:
    parameters = CandidateParameters(type="ivf-pq", lists=4, code_parts=7, effort=1)
    text = "codes of 7 parts do not divide a descriptor of 32 numbers. Use a divisor of 32."
    with refused(ParameterError, text, "validation_error"):
        Candidates.train(parameters, clustered(300))


@pytest.mark.parametrize(("dim", "parts"), [(512, 128), (1280, 320), (256, 64), (6, 1), (1023, 93), (7, 1)])
def test_code_parts_divide_any_descriptor(dim: int, parts: int) -> None:
    assert code_parts_for(dim, 4) == parts
