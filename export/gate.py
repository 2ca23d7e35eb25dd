"""The gate of lower precisions: how far from fp32 a graph may describe real photos, and still be written."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.bundle import Precision, PrecisionReport, RecallChange
from retrieval.errors import BundleError, ParameterError

MIN_PHOTOS: Final = 64

# Cosine to the fp32 descriptor of the worst photo.
MIN_COSINE: Final[dict[Precision, float]] = {"fp16": 0.9999, "int8": 0.99}

# Share of the solvable queries, on any evaluation set.
MAX_RECALL_LOSS: Final = 0.01

# fp16 rounds at 0.0005; what an L2 norm in fp32 has made is nearer to 1 than this.
_LENGTH_TOLERANCE: Final = 1e-3


def require_photos(count: int, precision: Precision) -> None:
    """Refuse to judge by a handful of photos, before any work is done.

    Args:
        count: photos given.
        precision: to be judged.

    Raises:
        ParameterError: fewer than `MIN_PHOTOS` (``too_few_photos``).
    """
    if count < MIN_PHOTOS:
        raise ParameterError(
            f"{count} photo{'' if count == 1 else 's'} cannot prove an {precision} graph, {MIN_PHOTOS} are needed",
            remedy=f"Give {MIN_PHOTOS - count} more photos of the place, such as some of those you will index",
            code="too_few_photos",
        )


def cosines(fp32: NDArray[np.float32], lower: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine of each photo's two descriptors.

    Args:
        fp32, lower: (N, D) float32 of the same photos.

    Returns:
        (N,) float64; NaN where a descriptor is not finite or has no length.
    """
    one, other = fp32.astype(np.float64), lower.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        return np.asarray((one * other).sum(axis=1) / lengths, np.float64)


def judge_precision(
    precision: Precision,
    fp32: NDArray[np.float32],
    lower: NDArray[np.float32],
    *,
    calibration_images: int = 0,
    kept_in_fp32: Sequence[str] = (),
) -> PrecisionReport:
    """Measure how far a graph of lower precision is from fp32.

    Args:
        precision: of the graph.
        fp32, lower: (N, D) float32 descriptors of the same photos, N ≥ `MIN_PHOTOS`.
        calibration_images: how many photos it was calibrated on.
        kept_in_fp32: names of layers that were left in fp32.

    Raises:
        ParameterError: too few photos (``too_few_photos``).
        BundleError: a descriptor is not finite or not of unit length (``descriptor_not_finite``): no loss to accept,
            but a graph that does not work.
    """
    require_photos(len(fp32), precision)
    lengths = np.linalg.norm(lower.astype(np.float64), axis=1)
    # Not `>`: a NaN must not pass.
    broken = np.flatnonzero(~(np.abs(lengths - 1.0) <= _LENGTH_TOLERANCE))
    if len(broken):
        raise BundleError(
            f"the {precision} graph describes photo {broken[0] + 1} of {len(fp32)} by a vector of length "
            f"{lengths[broken[0]]:.3g}, which must be 1; so it does {len(broken)} photos",
            remedy=f"Leave {precision} out: the network's values do not fit into it",
            code="descriptor_not_finite",
        )
    measured = cosines(fp32, lower)
    return PrecisionReport(
        images=len(measured),
        min_cosine=float(measured.min()),
        mean_cosine=float(measured.mean()),
        threshold=MIN_COSINE[precision],
        calibration_images=calibration_images,
        kept_in_fp32=tuple(kept_in_fp32),
    )


def require_gate(
    precision: Precision, report: PrecisionReport, *, accept_loss: bool = False, worst_photo: str | None = None
) -> PrecisionReport:
    """Let a graph pass, or refuse it.

    Args:
        precision: of the graph.
        report: how far it is from fp32; recall counts where it was measured.
        accept_loss: let it pass all the same; the report says so.
        worst_photo: the photo with the lowest cosine, for people.

    Returns:
        the report; ``accepted_loss`` is set where it only passes because the loss is accepted.

    Raises:
        BundleError: it fails, and the loss is not accepted (``precision_gate_failed``).
    """
    losses = [_describe_loss(change) for change in report.recall if not change.change >= -MAX_RECALL_LOSS]
    if report.min_cosine >= report.threshold and not losses:
        return report.model_copy(update={"accepted_loss": False})
    if accept_loss:
        return report.model_copy(update={"accepted_loss": True})
    reasons = list(losses)
    if not report.min_cosine >= report.threshold:
        worst = f" ({worst_photo})" if worst_photo else ""
        reasons.insert(
            0,
            f"the worst of {report.images} photos{worst} has cosine {report.min_cosine:.5f} to fp32, "
            f"wanted {report.threshold}",
        )
    raise BundleError(
        f"the {precision} graph is too far from fp32: {'; '.join(reasons)}",
        remedy=_remedy(precision, report),
        code="precision_gate_failed",
    )


def _describe_loss(change: RecallChange) -> str:
    return (
        f"recall@1 on {change.evaluation_set} falls from {100 * change.before:.1f} to {100 * change.after:.1f} %, "
        f"by at most {100 * MAX_RECALL_LOSS:g} points wanted"
    )


def _remedy(precision: Precision, report: PrecisionReport) -> str:
    others = (
        f"Calibrate on more photos than {report.calibration_images}, choose fp16"
        if precision == "int8"
        else "Leave fp16 out"
    )
    return f"Nothing was written. {others}, or take the loss knowingly with --accept-loss"
