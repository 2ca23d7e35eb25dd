"""Train a recipe on geo-tagged photos: decode them once, pair them, and run to the end."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from retrieval.artefact import storage_errors
from retrieval.errors import counted
from retrieval.references.reference import Reference
from training.checkpoint import remove_checkpoint
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
        observer: receives progress, notes and summaries of epochs.

    Raises:
        ReferenceDataError: more photos cannot be decoded than allowed; they are named.
        SightfixError: see `TrainingRun` and its `run`.
    """
    settings, observer = settings or TrainSettings(), observer or RunObserver()
    if settings.restart:
        _remove_run(folder)
    lists = [photos.training]
    if photos.validation is not None:
        lists += [photos.validation.database, photos.validation.queries]
    caches = []
    for references in lists:
        with observer.work("Decoding", len(references)) as advance:
            cache = fill_photo_cache(
                settings.cache,
                references,
                recipe.image,
                max_unreadable=settings.max_unreadable,
                on_progress=advance,
                on_wait=observer.note,
            )
        _note_left_out(cache, observer)
        caches.append(cache)
    validation = None
    if photos.validation is not None:
        validation = Validation(caches[1], caches[2], recipe.validation.radius_m)
        if photos.validation.note:
            observer.note(photos.validation.note)
    run = TrainingRun(
        recipe, caches[0], validation, folder, photos_name=photos.name, device=settings.device, observer=observer
    )
    return run.run()


def _note_left_out(cache: PhotoCache, observer: RunObserver) -> None:
    for photo in cache.unreadable[:_LEFT_OUT_SHOWN]:
        observer.note(f"left out: {photo.path}: {photo.reason}")
    more = len(cache.unreadable) - _LEFT_OUT_SHOWN
    if more > 0:
        observer.note(f"left out: {counted(more, 'more photo')}")


def _remove_run(folder: Path) -> None:
    for name in (BEST_NAME, LAST_NAME):
        remove_checkpoint(folder / name)
    with storage_errors(folder):
        if (folder / TENSORBOARD_NAME).exists():
            shutil.rmtree(folder / TENSORBOARD_NAME)
        for name in (STEPS_NAME, EPOCHS_NAME):
            (folder / name).unlink(missing_ok=True)
