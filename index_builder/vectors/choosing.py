"""``--type auto``: try the types of index on a sample of the references, and take what fits best."""

import math
import time
from dataclasses import dataclass
from typing import Final

import numpy as np

from index_builder.vectors.design import IndexDesign, lists_for, parameters_for
from index_builder.vectors.recall import hold_out, tune
from index_builder.vectors.sizing import memory_bytes
from index_builder.vectors.training import build_candidates, sample_of
from retrieval.errors import ParameterError
from retrieval.vectors.candidates import CandidateParameters
from retrieval.vectors.exact import ExactVectors
from retrieval.vectors.index_types import ApproximateType, IndexType, WantedType
from retrieval.vectors.stored import StoredVectors

# With fewer rows nothing is gained that anyone would notice.
_FEWEST_ROWS: Final = 5_000
_TRIED: Final[tuple[ApproximateType, ...]] = ("ivf", "ivf-int8", "ivf-pq-fast", "hnsw")
_TRIAL_ROWS: Final = 30_000
_TIMED: Final = 9
# How a graph's query time grows with the rows at the same recall, as a power.
_GRAPH_GROWTH: Final = 0.75


@dataclass(frozen=True, slots=True)
class Choice:
    """A type of index that was considered.

    Attributes:
        type: of index.
        recall: recall@10 against exact search, measured on the sample; 1 for exact search.
        latency_ms: of one query on this machine; for approximate types worked out from the sample for all rows.
        memory_bytes: in RAM, for all rows.
        verdict: why it was taken or not, a few words.
    """

    type: IndexType
    recall: float
    latency_ms: float
    memory_bytes: int
    verdict: str


def choose_parameters(
    exact: ExactVectors, wanted: WantedType, design: IndexDesign
) -> tuple[CandidateParameters | None, list[Choice]]:
    """The parameters to build with, None for exact search; and what was considered on the way.

    Exact search is taken where it is quick enough: it is always right, and has nothing to tune. Else the quickest type
    that reaches the recall on a sample of the references and fits into the memory.

    Args:
        exact: all stored descriptors.
        wanted: a type, or ``auto``.
        design: the goals.

    Raises:
        ParameterError: nothing fits into the memory.
    """
    rows, dim = exact.count, exact.dim
    if wanted == "exact":
        return None, []
    if wanted != "auto":
        return parameters_for(wanted, rows, dim), []
    limit = math.inf if design.memory_bytes is None else design.memory_bytes
    first = Choice("exact", 1.0, _exact_ms(exact), rows * exact.bytes_per_row, "")
    if first.memory_bytes <= limit and (rows < _FEWEST_ROWS or first.latency_ms <= design.latency_ms):
        return None, [_judged(first, "taken: quick enough, and always right")]
    return _choose_by_trial(exact, first, design, limit)


def _choose_by_trial(
    exact: ExactVectors, first: Choice, design: IndexDesign, limit: float
) -> tuple[CandidateParameters | None, list[Choice]]:
    tried = [first, *(_try(type_, exact, design) for type_ in _TRIED)]
    fitting = [one for one in tried if one.recall >= design.recall and one.memory_bytes <= limit]
    if not fitting:
        least = min(tried, key=lambda one: one.memory_bytes)
        raise ParameterError(
            f"no type of index fits into {limit / 1e9:.3g} GB with a recall of {design.recall:.0%}: "
            f"{least.type} needs {least.memory_bytes / 1e9:.3g} GB and reached {least.recall:.1%}",
            remedy="Give more memory, whiten the descriptors to fewer numbers, or ask for less recall",
        )
    taken = min(fitting, key=lambda one: one.latency_ms)
    judged = [_judged(one, _verdict(one, taken, design, limit)) for one in tried]
    if taken.type == "exact":
        return None, judged
    return parameters_for(taken.type, exact.count, exact.dim), judged


def _try(type_: ApproximateType, exact: ExactVectors, design: IndexDesign) -> Choice:
    """Build a type on a sample and tune it."""
    sample = sample_of(exact.count, _TRIAL_ROWS)
    some = exact.empty_alike()
    some.add(exact.descriptors(sample))
    candidates = build_candidates(some, parameters_for(type_, some.count, some.dim))
    tuned, report = tune(StoredVectors(some, candidates), hold_out(some), design.recall)
    growth = query_cost(tuned, exact.count, exact.dim) / query_cost(tuned, some.count, some.dim)
    final = parameters_for(type_, exact.count, exact.dim)
    return Choice(type_, report.at_10, report.milliseconds * growth, memory_bytes(final, exact.count, exact.dim), "")


def query_cost(tuned: CandidateParameters, rows: int, dim: int) -> float:
    """What a query costs on so many rows, in numbers compared, if the same share of the lists is looked at.

    That is careful: the more lists, the smaller the share that holds the nearest rows. A graph's steps grow with the
    logarithm, but for the same recall more of them are wanted: from 30,000 to a million rows of 512 numbers it took 15
    times as long, rows to the power of 0.77.
    """
    if tuned.lists is None:
        return float(rows**_GRAPH_GROWTH)
    share = tuned.effort / tuned.lists
    return dim * (lists_for(rows) + share * rows + 10 * tuned.rerank)


def _verdict(one: Choice, taken: Choice, design: IndexDesign, limit: float) -> str:
    if one is taken:
        return "taken: the quickest that meets the goals"
    if one.recall < design.recall:
        return f"recall below {design.recall:.0%}"
    if one.memory_bytes > limit:
        return f"needs more than {limit / 1e9:.3g} GB"
    return "slower"


def _judged(choice: Choice, verdict: str) -> Choice:
    return Choice(choice.type, choice.recall, choice.latency_ms, choice.memory_bytes, verdict)


def _exact_ms(exact: ExactVectors) -> float:
    queries = exact.descriptors(sample_of(exact.count, _TIMED))
    times = []
    for query in queries:
        started = time.perf_counter()
        exact.search(query[None], 10)
        times.append(time.perf_counter() - started)
    return float(np.median(times)) * 1e3
