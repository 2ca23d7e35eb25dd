"""What is kept of one checkpoint on one evaluation set, so that nothing is described twice."""

from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from retrieval.artefact import replace_file, storage_errors
from retrieval.evaluation import Protocol

HEAT_QUERIES: Final = 200
HEAT_TOP: Final = 0.10


class EvaluationKey(BaseModel):
    """What an evaluation depends on; where any of it changes, the checkpoint is evaluated anew.

    Attributes:
        encoder: SHA-256 of weights and preprocessing.
        photos: SHA-256 of the evaluation set's ids and positions.
        radii_m, recall_at: the protocol.
        heat_queries, heat_top: how condensation was measured: on how many queries, on which share of locations.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: str
    photos: str
    radii_m: tuple[float, ...]
    recall_at: tuple[int, ...]
    heat_queries: int = HEAT_QUERIES
    heat_top: float = HEAT_TOP

    @classmethod
    def of(cls, encoder: str, photos: str, protocol: Protocol) -> "EvaluationKey":
        """The key of a checkpoint on an evaluation set by a protocol."""
        return cls(encoder=encoder, photos=photos, radii_m=protocol.radii_m, recall_at=protocol.recall_at)


class EvaluationRecord(BaseModel):
    """One checkpoint on one evaluation set, query by query.

    Attributes:
        key: what it depends on.
        ranked: how many matches were ranked per query.
        first_hit: by radius, by query: rank (0 = best) of the first true match, `ranked` where there is none.
        heat_rows: queries whose heat maps were measured.
        heat_activation, heat_match: of each of these the share of energy in the top locations; None where a map has
            no energy. Empty where the backbone cannot be looked into.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    key: EvaluationKey
    ranked: int
    first_hit: tuple[tuple[int, ...], ...]
    heat_rows: tuple[int, ...]
    heat_activation: tuple[float | None, ...]
    heat_match: tuple[float | None, ...]


def read_evaluation(path: Path, key: EvaluationKey) -> EvaluationRecord | None:
    """The record of a key; None where there is none, it is of another key, or of another version."""
    try:
        record = EvaluationRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return record if record.key == key else None


def write_record(path: Path, record: BaseModel) -> None:
    """Write a record in one step.

    Raises:
        StorageError: the disk refuses.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, record.model_dump_json().encode() + b"\n")
