import numpy as np
import pytest

from index_builder import index_design as choosing
from index_builder.index_design import IndexDesign, choose_parameters, lists_for, parameters_for, query_cost
from retrieval.errors import ParameterError
from retrieval.index.vectors.exact import ExactVectors

DIM = 32


@pytest.fixture(scope="module")
def exact() -> ExactVectors:
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(200, DIM))[draw.integers(0, 200, 6000)] + 0.3 * draw.normal(size=(6000, DIM))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return ExactVectors.from_descriptors([rows.astype(np.float32)], DIM, "fp16")


def test_few_references_are_searched_exactly() -> None:
    few = ExactVectors.from_descriptors([np.eye(DIM, dtype=np.float32)], DIM, "fp16")
    parameters, choices = choose_parameters(few, "auto", IndexDesign(type="auto", latency_ms=0.0))
    assert parameters is None
    assert [(one.type, one.recall, one.memory_bytes) for one in choices] == [("exact", 1.0, DIM * DIM * 2)]


def test_exact_search_that_is_quick_enough_is_taken(exact: ExactVectors) -> None:
    parameters, choices = choose_parameters(exact, "auto", IndexDesign(type="auto", latency_ms=1e6))
    assert parameters is None
    assert choices[0].verdict == "taken: quick enough, and always right"


def test_all_types_are_tried_where_exact_search_is_too_slow(
    exact: ExactVectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "_TRIAL_ROWS", 3000)
    parameters, choices = choose_parameters(exact, "auto", IndexDesign(type="auto", latency_ms=0.0, recall=0.9))
    assert [one.type for one in choices] == ["exact", "ivf", "ivf-int8", "ivf-pq-fast", "hnsw"]
    taken = [one for one in choices if one.verdict.startswith("taken")]
    assert len(taken) == 1
    assert taken[0].recall >= 0.9
    assert all(taken[0].latency_ms <= one.latency_ms for one in choices if one.recall >= 0.9)
    assert (parameters.type if parameters else "exact") == taken[0].type


def test_memory_rules_types_out(exact: ExactVectors, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only codes fit into a third of what the stored descriptors take."""
    monkeypatch.setattr(choosing, "_TRIAL_ROWS", 3000)
    limit = 6000 * DIM * 2 // 2
    design = IndexDesign(type="auto", latency_ms=1e6, recall=0.5, memory_bytes=limit)
    parameters, choices = choose_parameters(exact, "auto", design)
    assert parameters is not None
    assert parameters.type == "ivf-pq-fast"
    assert {one.verdict for one in choices if one.memory_bytes > limit} == {"needs more than 0.000192 GB"}


def test_nothing_that_fits_is_an_error(exact: ExactVectors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "_TRIAL_ROWS", 2000)
    with pytest.raises(ParameterError, match=r"no type of index fits into .* recall of 95%: ivf-pq-fast needs"):
        choose_parameters(exact, "auto", IndexDesign(type="auto", memory_bytes=1000))


def test_a_type_that_is_named_is_not_questioned(exact: ExactVectors) -> None:
    assert choose_parameters(exact, "hnsw", IndexDesign(memory_bytes=1)) == (parameters_for("hnsw", 6000, DIM), [])
    assert choose_parameters(exact, "exact", IndexDesign()) == (None, [])


@pytest.mark.parametrize(("rows", "lists"), [(1, 1), (39, 1), (400, 8), (6000, 128), (10**6, 4096), (10**9, 65536)])
def test_lists_grow_with_the_root_and_are_trained_on_39_rows(rows: int, lists: int) -> None:
    assert lists_for(rows) == lists


def test_a_graph_on_all_rows_is_foreseen_as_it_was_measured() -> None:
    """With hnsw a query took 0.24 ms on 30,000 of a million references and 3.56 ms on all, at the same recall."""
    tuned = parameters_for("hnsw", 30_000, 512)
    assert 0.24 * query_cost(tuned, 1_000_000, 512) / query_cost(tuned, 30_000, 512) == pytest.approx(3.56, rel=0.2)
