"""The options `--eval NAME --eval-database SPEC --eval-queries SPEC`, which name photos to measure recall on."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retrieval.evaluation.eval_set import EvalSet


def open_eval_sets(names: Sequence[str], databases: Sequence[str], queries: Sequence[str]) -> "list[EvalSet]":
    """Open evaluation sets as the command line names them.

    Args:
        names: of the sets, for people.
        databases: a spec of the photos to find for each.
        queries: a spec of the photos to localize for each.

    Raises:
        ParameterError: not the same number of each.
        ReferenceDataError: a spec cannot be read.
    """
    from retrieval.errors import ParameterError
    from retrieval.evaluation.eval_set import EvalSet
    from retrieval.references import open_references

    if not len(names) == len(databases) == len(queries):
        raise ParameterError(
            f"there are {len(names)} --eval, {len(databases)} --eval-database and {len(queries)} --eval-queries",
            remedy="Give the three for each evaluation set, in the same order",
        )
    return [
        EvalSet(name, tuple(open_references(database)), tuple(open_references(asked)))
        for name, database, asked in zip(names, databases, queries, strict=True)
    ]
