"""Calibrate a published index again, on photos of known position like its later queries."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from index_builder.calibration.calibrating import (
    WITHIN_M,
    CalibrationSettings,
    Localized,
    Trials,
    calibration_of,
    fit_calibration,
    fit_method,
    make_trials,
    match_photos,
)
from index_builder.calibration.queries import OutsidePhotos
from index_builder.publish import DEFAULT_KEEP, draft_version, hold_bundle, remove_old_versions
from retrieval.artefact import link_or_copy, record_files
from retrieval.bundle import Bundle
from retrieval.evaluation import Bootstrap, Fixes, Positions, place_groups
from retrieval.evaluation.fixes import confidence_report
from retrieval.geo import Float64Array
from retrieval.index.place_index import CALIBRATION_PHOTOS_NAME, PlaceIndex
from retrieval.localize.calibration import Calibration, HeldOut, MethodCalibration
from retrieval.localize.evidence import FixSettings

Split = Literal["occasions", "squares", "stretches"]

# Photos of one occasion are judged by calibrations fitted on other squares of this side.
_SQUARE_M: Final = 100.0
_FOLDS: Final = 5
_MOST_FOLDS: Final = 10
# What a calibration that judges is fitted to, at the least.
_LEAST_PHOTOS: Final = 50
_LEAST_OF_A_KIND: Final = 10


@dataclass(frozen=True, slots=True)
class Judgement:
    """How a calibration did on photos that it was not fitted to.

    Attributes:
        stated_share: mean confidence.
        calibration_error: see `ConfidenceReport`.
        radius_share: how many truths lay within the radius; it should be 0.68.
    """

    stated_share: float
    calibration_error: float
    radius_share: float


@dataclass(frozen=True, slots=True)
class PhotoCheck:
    """How an index does on photos of known position.

    Attributes:
        photos: how many were localized.
        occasions: how many sessions or blocks of time they come from.
        right_share: how many fixes lay within 25 m.
        error_if_calibrated: the calibration error that right confidences would show with so few photos.
        before: the calibration that was in force; None where there was none.
        before_held_out: what that one was fitted to; if photos, perhaps these.
        now: calibrations fitted on some parts and judged on the others; None where no parts are large enough.
        split: what the parts are; None without them.
    """

    photos: int
    occasions: int
    right_share: float
    error_if_calibrated: float | None
    before: Judgement | None
    before_held_out: HeldOut | None
    now: Judgement | None
    split: Split | None


@dataclass(frozen=True, slots=True)
class Recalibrated:
    """What recalibrating did.

    Attributes:
        name, version: of the index, and the new version.
        calibration: in force now; None where its references allow none.
        check: on the photos; None without photos.
        not_pruned: why old versions could not be removed, or None.
    """

    name: str
    version: str
    calibration: Calibration | None
    check: PhotoCheck | None
    not_pruned: str | None = None


def recalibrate(
    indexes: Path,
    name: str,
    photos: OutsidePhotos | None = None,
    bundle: Bundle | None = None,
    *,
    keep: int = DEFAULT_KEEP,
) -> Recalibrated:
    """Publish a new version that differs from the current one in its calibration alone.

    Its other files are the current version's, by hard links where the disk allows. The photos are kept with it (their
    descriptors, positions and times), and whatever updates the index calibrates on them again.

    Args:
        indexes: the folder of all indexes.
        name: of this index.
        photos: not whitened; None goes back to its own references.
        bundle: that described them; the new version holds it, or what the current one holds.
        keep: how many versions remain.

    Raises:
        IndexNotFoundError: there is no such index.
        ModelIndexMismatchError: another bundle described the current version.
        BundleError: the bundle that the current version holds is damaged.
        ParameterError: the photos allow no calibration (``not_calibrated``).
        StorageError: the disk refuses, or another process is building this index.
    """
    with draft_version(indexes, name) as draft:
        base = PlaceIndex.open(draft.index_folder)
        if bundle is not None:
            base.check_bundle(bundle)
        check = None
        if photos is None:
            calibration = fit_calibration(base)
        else:
            settings = CalibrationSettings()
            whitened = replace(photos, descriptors=base.whitened(photos.descriptors))
            matched = match_photos(base, whitened, settings)
            calibration = calibration_of(base, matched, settings)
            check = check_on_matches(base, matched, base.manifest.calibration, settings)
        files = {file: record for file, record in base.manifest.files.items() if file != CALIBRATION_PHOTOS_NAME}
        for file in files:
            link_or_copy(base.folder / file, draft.folder / file)
        if photos is not None:
            photos.write(draft.folder / CALIBRATION_PHOTOS_NAME)
            files |= record_files(draft.folder, [CALIBRATION_PHOTOS_NAME])
        held = bundle or base.held_bundle()
        if held is not None:
            hold_bundle(draft.folder, held)
        base.manifest.model_copy(
            update={
                "format_version": 3,
                "version": draft.version,
                "bundle": base.manifest.bundle.model_copy(update={"held": held is not None}),
                "calibration": calibration,
                "calibration_photos": 0 if photos is None else photos.count,
                "files": files,
            }
        ).write(draft.folder)
        # What is linked was compared with its hashes above; not in the memory twice.
        PlaceIndex.open(draft.folder, memory_map=True)
        draft.name_version()
        draft.make_current()
        not_pruned = remove_old_versions(draft.index_folder, keep)
    return Recalibrated(name, draft.version, calibration, check, not_pruned)


def check_on_matches(
    index: PlaceIndex, photos: Localized, before: Calibration | None, settings: CalibrationSettings
) -> PhotoCheck:
    """How right the confidence is, before and after calibrating on these photos, on photos left out of it.

    Args:
        index: which.
        photos: and what the index finds for them.
        before: the calibration in force.
        settings: of the calibration.
    """
    made = FixSettings()
    seen = make_trials(index, photos.lat, photos.lon, photos.here, made)
    unseen = make_trials(index, photos.lat, photos.lon, photos.away, made)
    lost = photos.away.remained >= settings.min_queries
    now, if_calibrated = None, None
    split, parts = _parts(photos, seen.error_m <= WITHIN_M)
    if split is not None:
        confidence, radius_m = np.empty(photos.count), np.empty(photos.count)
        for part in np.unique(parts):
            rest = parts != part
            fitted = fit_method(_some(seen, rest), _some(unseen, rest & lost), settings)
            confidence[~rest], radius_m[~rest] = _stated(fitted, _some(seen, ~rest))
        now, if_calibrated = _judge(photos, seen, confidence, radius_m)
    known = before.of_method(made) if before is not None and before.holds_for(made) else None
    return PhotoCheck(
        photos=photos.count,
        occasions=int(np.unique(photos.occasion).size),
        right_share=float((seen.error_m <= WITHIN_M).mean()),
        error_if_calibrated=if_calibrated,
        before=None if known is None else _judge(photos, seen, *_stated(known, seen))[0],
        before_held_out=before.held_out if before is not None else None,
        now=now,
        split=split,
    )


def _parts(photos: Localized, right: NDArray[np.bool_]) -> tuple[Split | None, NDArray[np.int64]]:
    """Which photos are judged together, by what was fitted to all the others: the first split that leaves enough."""
    squares = place_groups(Positions.from_degrees(photos.lat, photos.lon), _SQUARE_M)
    splits: list[tuple[Split, NDArray[np.int64]]] = [
        ("occasions", balanced(photos.occasion, _MOST_FOLDS)),
        ("squares", balanced(squares, _FOLDS)),
        ("stretches", np.arange(photos.count) * _FOLDS // photos.count),
    ]
    for split, parts in splits:
        rests = [parts != part for part in np.unique(parts)]
        if all(
            rest.sum() >= _LEAST_PHOTOS and min(right[rest].sum(), (~right[rest]).sum()) >= _LEAST_OF_A_KIND
            for rest in rests
        ):
            return split, parts
    return None, np.zeros(photos.count, np.int64)


def balanced(labels: NDArray[np.int64], folds: int) -> NDArray[np.int64]:
    """Put whole labels into at most so many folds of about as many photos: (Q,) labels 0..L-1 → (Q,) folds."""
    sizes = np.bincount(labels)
    fold, filled = np.zeros(len(sizes), np.int64), np.zeros(folds, np.int64)
    for label in np.argsort(-sizes, kind="stable"):
        fold[label] = int(np.argmin(filled))
        filled[fold[label]] += sizes[label]
    return np.asarray(fold[labels])


def _stated(method: MethodCalibration, trials: Trials) -> tuple[Float64Array, Float64Array]:
    confidence = method.confidences(trials.evidence)
    return confidence, method.radii_m(confidence)


def _judge(
    photos: Localized, seen: Trials, confidence: Float64Array, radius_m: Float64Array
) -> tuple[Judgement, float]:
    fixes = Fixes(photos.lat, photos.lon, confidence, radius_m)
    report = confidence_report(fixes, seen.error_m, np.arange(photos.count), Bootstrap(resamples=1))
    assert report is not None
    held = float((seen.error_m <= radius_m).mean())
    error = report.calibration_error.value
    assert error is not None
    return Judgement(float(confidence.mean()), error, held), report.calibration_error_if_honest


def _some(trials: Trials, which: NDArray[np.bool_]) -> Trials:
    return Trials(trials.evidence[which], trials.error_m[which], trials.familiarity[which])
