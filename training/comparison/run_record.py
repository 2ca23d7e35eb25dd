"""What is kept of a finished run, so that it is not opened for training again."""

import hashlib
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from retrieval.errors import ArtefactError
from training.checkpoint import Checkpoint, open_checkpoint
from training.comparison.checkpoints import checkpoint_hash
from training.recipe_settings import Recipe
from training.train import TrainingPhotos

RUN_RECORD_NAME: Final = "run.json"


class RunRecord(BaseModel):
    """A finished run.

    Attributes:
        recipe: with its seed.
        photos: hash of what it was trained and validated on.
        checkpoint: name of the evaluated checkpoint within the run's folder.
        encoder: hash of that checkpoint.
        evaluated_epoch: after which it was saved.
        trained_epochs: of the whole run.
        made_with: machine and versions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    recipe: Recipe
    photos: str
    checkpoint: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    encoder: str
    evaluated_epoch: int
    trained_epochs: int
    made_with: str


def training_photos_hash(photos: TrainingPhotos) -> str:
    """SHA-256 in hex of ids, positions and sessions of all photos that a run is given, in order."""
    digest = hashlib.sha256()
    validation = photos.validation
    for part in (photos.training, *((validation.database, validation.queries) if validation else ())):
        for reference in part:
            digest.update(
                f"{reference.id}\n{reference.position}\n{reference.plane_m}\n{reference.session}\n"
                f"{reference.heading_deg}\n".encode()
            )
        digest.update(b"\0")
    return digest.hexdigest()


def finished_run(folder: Path, recipe: Recipe, photos: str) -> tuple[RunRecord, Checkpoint] | None:
    """The record of a finished run and its checkpoint; None where training has something left to do, or to refuse.

    Args:
        folder: of the run.
        recipe: with its seed.
        photos: from `training_photos_hash`.
    """
    try:
        record = RunRecord.model_validate_json((folder / RUN_RECORD_NAME).read_bytes())
        if record.recipe != recipe or record.photos != photos:
            return None
        checkpoint = open_checkpoint(folder / record.checkpoint)
    except (OSError, ValidationError, ArtefactError):
        return None
    return (record, checkpoint) if checkpoint_hash(checkpoint) == record.encoder else None
