"""Train a recipe on geo-tagged photos: decode them once, pair them, and run to the end."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from retrieval.artefact import storage_errors
from retrieval.references.reference import Reference
from training.photos.cache import PhotoCache, fill_photo_cache
from training.photos.hold_out import ValidationPhotos
from training.recipe_settings import Recipe
from training.run.device import DeviceSettings
from training.run.observing import EPOCHS_NAME, STEPS_NAME, TENSORBOARD_NAME, RunObserver
from training.run.training_run import BEST_NAME, LAST_NAME, RunResult, TrainingRun
from training.run.validation import Validation

DEFAULT_CACHE: Final = Path("photo-cache")

_LEFT_OUT_SHOWN: Final = 5


@dataclass(frozen=True)
class TrainingPhotos:
    """What a run trains on and is validated on.

    Attributes:
        name: what the checkpoint shall say it was trained on.
        training: geo-tagged photos, at least one pair of them within the recipe's radius.
        validation: photos to measure recall on, or None.
    """

    name: str
    training: Sequence[Reference]
    validation: ValidationPhotos | None = None


@dataclass(frozen=True)
class TrainSettings:
    """How a run is carried out; nothing here changes what it learns, but for the device's rounding.

    Attributes:
        cache: folder of decoded photos, shared by all runs.
        device: where to compute.
        max_unreadable: photos that may be left out as undecodable.
        restart: begin anew, and remove what the folder holds of an earlier run.
    """

    cache: Path = DEFAULT_CACHE
    device: DeviceSettings = field(default_factory=DeviceSettings)
    max_unreadable: int = 0
    restart: bool = False


def train(
    recipe: Recipe,
    photos: TrainingPhotos,
    folder: Path,
    settings: TrainSettings | None = None,
    observer: RunObserver | None = None,
) -> RunResult:
    """Train a recipe, or go on with an interrupted run of the same recipe and photos.

    Args:
        recipe: decides everything but the photos.
        photos: to train and to validate on.
        folder: of the run; see `TrainingRun`.
        settings: device, cache, what may be left out.
        observer: is told what happens.

    Raises:
        ReferenceDataError: more photos cannot be decoded than allowed; they are named.
        SightfixError: see `TrainingRun` and its `run`.
    """
    settings, observer = settings or TrainSettings(), observer or RunObserver()
    if settings.restart:
        _remove_run(folder)
    cached = _decode(photos.training, recipe, settings, observer)
    validation = None
    if photos.validation is not None:
        validation = Validation(
            _decode(photos.validation.database, recipe, settings, observer),
            _decode(photos.validation.queries, recipe, settings, observer),
            recipe.validation.radius_m,
        )
        if photos.validation.note:
            observer.note(photos.validation.note)
    run = TrainingRun(
        recipe, cached, validation, folder, photos_name=photos.name, device=settings.device, observer=observer
    )
    return run.run()


def _decode(
    references: Sequence[Reference], recipe: Recipe, settings: TrainSettings, observer: RunObserver
) -> PhotoCache:
    with observer.work("Decoding", len(references)) as advance:
        cache = fill_photo_cache(
            settings.cache,
            references,
            recipe.image,
            max_unreadable=settings.max_unreadable,
            on_progress=advance,
            on_wait=observer.note,
        )
    for photo in cache.unreadable[:_LEFT_OUT_SHOWN]:
        observer.note(f"left out: {photo.error}")
    if len(cache.unreadable) > _LEFT_OUT_SHOWN:
        observer.note(f"left out: {len(cache.unreadable) - _LEFT_OUT_SHOWN} more photos")
    return cache


def _remove_run(folder: Path) -> None:
    with storage_errors(folder):
        for name in (BEST_NAME, LAST_NAME, f".previous-{BEST_NAME}", f".previous-{LAST_NAME}", TENSORBOARD_NAME):
            if (folder / name).exists():
                shutil.rmtree(folder / name)
        for name in (STEPS_NAME, EPOCHS_NAME):
            (folder / name).unlink(missing_ok=True)
