"""Evaluation of a ranking: recall@N beside chance, position error in metres, and intervals that know about groups."""

from retrieval.evaluation.bootstrap import Bootstrap, place_groups, session_groups
from retrieval.evaluation.evaluation import Evaluation, evaluate, evaluation_work
from retrieval.evaluation.fixes import Fixes
from retrieval.evaluation.positions import Positions, chance_at, count_positives, first_hits, hits_at
from retrieval.evaluation.protocol import CONVENTIONS, GROUPINGS, BeforeReranking, Protocol, Ranked, exact_ranking
from retrieval.evaluation.report import Convention, EvaluationReport, Grouping
from retrieval.evaluation.tables import plain_text, report_tables

__all__ = [
    "CONVENTIONS",
    "GROUPINGS",
    "BeforeReranking",
    "Bootstrap",
    "Convention",
    "Evaluation",
    "EvaluationReport",
    "Fixes",
    "Grouping",
    "Positions",
    "Protocol",
    "Ranked",
    "chance_at",
    "count_positives",
    "evaluate",
    "evaluation_work",
    "exact_ranking",
    "first_hits",
    "hits_at",
    "place_groups",
    "plain_text",
    "report_tables",
    "session_groups",
]
