"""Evaluate checkpoints on several sets, and keep what was found, so that nothing is trained or described twice."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from retrieval.artefact import replace_file, storage_errors
from retrieval.errors import ArtefactError, ParameterError
from retrieval.evaluation import Protocol, exact_ranking, first_hits
from retrieval.evaluation.eval_set import EvalSet, Truth
from retrieval.images import Preprocessing
from retrieval.references.reference import Reference
from training.checkpoint import ENCODER_NAME, Checkpoint, open_checkpoint, save_encoder
from training.comparison.definition import ComparisonError
from training.comparison.report import UNTRAINED, ComparedRow
from training.encoder import Encoder, build_encoder, describe_cached
from training.heat_maps import DEFAULT_TOP, condensation
from training.photos.cache import PhotoCache, fill_photo_cache
from training.recipe_settings import Recipe
from training.run.observing import RunObserver
from training.run.train import TrainingPhotos

HEAT_QUERIES: Final = 200
HEAT_TOP: Final = DEFAULT_TOP
RUN_RECORD_NAME: Final = "run.json"
_ADDED_LATER: Final = ("truncate_after", "aggregation", "layers", "centroids", "sharpness")
_PAIRS_AT_ONCE: Final = 16


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
            no energy. Empty where heat maps do not know the backbone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    key: EvaluationKey
    ranked: int
    first_hit: tuple[tuple[int, ...], ...]
    heat_rows: tuple[int, ...]
    heat_activation: tuple[float | None, ...]
    heat_match: tuple[float | None, ...]


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


@dataclass(frozen=True)
class EvalPhotos:
    """The photos of all evaluation sets, decoded once; sets may share photos.

    Attributes:
        cache: each distinct photo once.
        rows: by evaluation set, the cache's rows of its database and of its queries.
    """

    cache: PhotoCache
    rows: Mapping[str, tuple[NDArray[np.int64], NDArray[np.int64]]]

    @classmethod
    def decode(
        cls, eval_sets: Sequence[EvalSet], image: Preprocessing, folder: Path, observer: RunObserver
    ) -> "EvalPhotos":
        """Decode them, or find them in the folder of decoded photos.

        Raises:
            ImageError, ReferenceDataError: a photo cannot be decoded; it is named.
        """
        distinct: dict[Path, int] = {}
        unique: list[Reference] = []

        def row(reference: Reference) -> int:
            if reference.path not in distinct:
                distinct[reference.path] = len(unique)
                # Ids are unique within one database only.
                unique.append(replace(reference, id=str(reference.path)))
            return distinct[reference.path]

        rows = {
            photos.name: (
                np.array([row(reference) for reference in photos.database], np.int64),
                np.array([row(reference) for reference in photos.queries], np.int64),
            )
            for photos in eval_sets
        }
        with observer.work("Decoding the evaluation sets", len(unique)) as advance:
            return cls(fill_photo_cache(folder, unique, image, on_progress=advance), rows)


def evaluate_encoder(
    encoder: Encoder,
    photos: EvalPhotos,
    truths: Mapping[str, Truth],
    keys: Mapping[str, EvaluationKey],
    observer: RunObserver,
) -> dict[str, EvaluationRecord]:
    """Evaluate an encoder on several sets; each photo is described once.

    Args:
        encoder: on the device to compute on.
        photos: decoded with the encoder's preprocessing.
        truths: of all evaluation sets, by name.
        keys: of those to evaluate.
        observer: receives progress.

    Raises:
        ComparisonError: the descriptors are not finite.
    """
    wanted = np.unique(np.concatenate([rows for name in keys for rows in photos.rows[name]]))
    with observer.work("Describing the evaluation sets", len(wanted)) as advance:
        descriptors = describe_cached(encoder, photos.cache, wanted, on_progress=advance)
    if not np.isfinite(descriptors).all():
        raise ComparisonError(
            "the descriptors are not finite: training has diverged",
            remedy="Lower optimiser.learning_rate, or set training.clip_norm",
            code="diverged",
        )
    records = {}
    for name, key in keys.items():
        database, queries = (descriptors[np.searchsorted(wanted, rows)] for rows in photos.rows[name])
        truth = truths[name]
        ranked = min(max(key.recall_at), len(database))
        rows, _ = exact_ranking(database, queries, ranked)
        heat_rows, activation, match = _heat(encoder, photos, truth, name, observer)
        records[name] = EvaluationRecord(
            key=key,
            ranked=ranked,
            first_hit=tuple(
                tuple(first_hits(truth.ground, rows, radius).tolist()) for radius in truth.protocol.radii_m
            ),
            heat_rows=tuple(heat_rows.tolist()),
            heat_activation=_known(activation),
            heat_match=_known(match),
        )
    return records


def _heat(
    encoder: Encoder, photos: EvalPhotos, truth: Truth, name: str, observer: RunObserver
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Condensation on some queries, each with its nearest true photo; empty where heat maps do not know the backbone.

    Returns:
        The (H,) queries, and the (H,) share of energy of their activation maps and of their match maps.
    """
    sample = truth.sample(HEAT_QUERIES)
    database, queries = photos.rows[name]
    ours, theirs = queries[sample], database[truth.nearest(sample)]
    activation, match = np.empty(len(sample)), np.empty(len(sample))
    try:
        with observer.work(f"Heat maps on {name}", len(sample), "pairs") as advance:
            for begin in range(0, len(sample), _PAIRS_AT_ONCE):
                part = slice(begin, begin + _PAIRS_AT_ONCE)
                found = condensation(
                    encoder, photos.cache.rows(ours[part]), photos.cache.rows(theirs[part]), top=HEAT_TOP
                )
                activation[part], match[part] = found.activation, found.match
                advance(len(found.match))
    except ParameterError:
        return sample[:0], activation[:0], match[:0]
    return sample, activation, match


def _known(shares: NDArray[np.float64]) -> tuple[float | None, ...]:
    return tuple(float(share) if np.isfinite(share) else None for share in shares)


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


def checkpoint_hash(checkpoint: Checkpoint) -> str:
    """SHA-256 in hex of all that decides its descriptors: the weights and what is done to a photo before."""
    manifest = checkpoint.manifest
    parts = (
        manifest.files[ENCODER_NAME].sha256,
        manifest.preprocessing.model_dump_json(),
        manifest.normalisation.model_dump_json(),
        checkpoint.recipe.network.model_dump_json(),
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def network_hash(recipe: Recipe) -> str:
    """Twelve hex digits that stand for a recipe's network and image settings."""
    network = recipe.network
    # Settings that were added later count where they are used only, so that earlier comparisons are found.
    unused = {key for key in _ADDED_LATER if getattr(network, key) == type(network).model_fields[key].default}
    settings = f"{network.model_dump_json(exclude=unused)}\n{recipe.image.model_dump_json()}"
    return hashlib.sha256(settings.encode()).hexdigest()[:12]


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


def untrained_checkpoint(recipe: Recipe, folder: Path) -> Checkpoint:
    """The recipe's encoder before training, saved, or opened where it was saved before.

    New layers are drawn as training with seed 0 draws them.

    Raises:
        SightfixError: the net cannot be built; see `build_encoder`.
        StorageError: the disk refuses.
    """
    try:
        checkpoint = open_checkpoint(folder)
        if network_hash(checkpoint.recipe) == network_hash(recipe):
            return checkpoint
    except ArtefactError:
        pass
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    try:
        encoder = build_encoder(recipe.network, recipe.image)
    finally:
        torch.random.set_rng_state(state)
    return save_encoder(folder, encoder, recipe)


def checkpoint_row(checkpoint: Checkpoint, label: str, folder: str) -> ComparedRow:
    """The row of a checkpoint; one that was never trained is `untrained`, whatever its recipe would do."""
    manifest = checkpoint.manifest
    image = manifest.preprocessing
    return ComparedRow(
        label=label,
        method=manifest.provenance.objective or UNTRAINED,
        backbone=checkpoint.recipe.network.backbone,
        size=f"{manifest.descriptor_dim}-D, {image.height}×{image.width}",
        folder=folder,
    )
