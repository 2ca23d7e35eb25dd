"""The precision check: what passes, what does not, and the messages."""

import numpy as np
import pytest

from export.precision import (
    MAX_RECALL_LOSS,
    MIN_COSINE_TO_FP32,
    MIN_PHOTOS,
    check_precision,
    cosines,
    measure_precision,
    require_photos,
)
from retrieval.bundle import PrecisionReport, RecallChange
from retrieval.errors import BundleError, ParameterError


def unit_rows(count: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, 16))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def turned(rows: np.ndarray, cosine: float, row: int) -> np.ndarray:
    """One row turned away until its cosine to what it was is as given."""
    changed = rows.copy()
    other = unit_rows(1, seed=9)[0]
    across = other - (other @ rows[row]) * rows[row]
    across /= np.linalg.norm(across)
    changed[row] = cosine * rows[row] + np.sqrt(1 - cosine**2) * across
    return changed


def change(difference: float, name: str = "campus") -> RecallChange:
    return RecallChange(
        evaluation_set=name, radius_m=25, queries=100, chance=0.1, before=0.5, after=0.5 + difference,
        change=difference, low=difference - 0.1, high=difference + 0.1,
    )  # fmt: skip


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_worst_photo_decides(precision: str) -> None:
    rows = unit_rows(64)
    threshold = MIN_COSINE_TO_FP32[precision]
    good = measure_precision(precision, rows, turned(rows, threshold + 2e-5, 7))
    assert good.min_cosine == pytest.approx(threshold + 2e-5, abs=1e-6)
    assert good.mean_cosine == pytest.approx((63 + good.min_cosine) / 64, abs=1e-6)
    assert check_precision(precision, good) == good
    bad = measure_precision(precision, rows, turned(rows, threshold - 2e-5, 7), range_photos=32)
    with pytest.raises(BundleError) as refused:
        check_precision(precision, bad, worst_photo="IMG_7.jpg")
    text = str(refused.value)
    assert f"the worst of 64 photos (IMG_7.jpg) has cosine {bad.min_cosine:.5f} to fp32, wanted {threshold}" in text
    assert "--accept-loss" in text
    assert refused.value.code == "precision_gate_failed"


def test_an_accepted_loss_is_recorded() -> None:
    rows = unit_rows(64)
    bad = measure_precision("int8", rows, turned(rows, 0.5, 0), kept_in_fp32=["stem"])
    assert not bad.accepted_loss
    accepted = check_precision("int8", bad, accept_loss=True)
    assert accepted.accepted_loss
    assert accepted.kept_in_fp32 == ("stem",)
    good = measure_precision("int8", rows, rows)
    assert not check_precision("int8", good, accept_loss=True).accepted_loss


@pytest.mark.parametrize("broken", [np.nan, np.inf, 0.0, 2.0])
def test_what_is_no_descriptor_cannot_be_accepted(broken: float) -> None:
    rows = unit_rows(64)
    lower = rows.copy()
    lower[5] = broken
    with pytest.raises(BundleError, match=r"the fp16 graph describes photo 6 of 64 by a vector of length") as refused:
        measure_precision("fp16", rows, lower)
    assert refused.value.code == "descriptor_not_finite"


def test_a_report_with_nan_does_not_pass() -> None:
    report = PrecisionReport(images=64, min_cosine=float("nan"), mean_cosine=0.9, threshold=0.99)
    with pytest.raises(BundleError):
        check_precision("int8", report)
    report = PrecisionReport(images=64, min_cosine=1, mean_cosine=1, threshold=0.99, recall=(change(float("nan")),))
    with pytest.raises(BundleError):
        check_precision("int8", report)


def test_recall_counts_where_it_was_measured() -> None:
    report = PrecisionReport(images=64, min_cosine=1, mean_cosine=1, threshold=0.99)
    small = report.model_copy(update={"recall": (change(-MAX_RECALL_LOSS), change(0.02))})
    assert check_precision("int8", small) == small
    large = report.model_copy(update={"recall": (change(0.0), change(-0.02, "night"))})
    with pytest.raises(BundleError, match=r"recall@1 on night falls from 50\.0 to 48\.0 %, by at most 1 points wanted"):
        check_precision("int8", large)
    assert check_precision("int8", large, accept_loss=True).accepted_loss


@pytest.mark.parametrize("count", [0, 1, MIN_PHOTOS - 1])
def test_too_few_photos(count: int) -> None:
    with pytest.raises(ParameterError, match=f"Give {MIN_PHOTOS - count} more photos") as refused:
        require_photos(count, "int8")
    assert refused.value.code == "too_few_photos"
    with pytest.raises(ParameterError, match=f"^{count} photo"):
        measure_precision("int8", unit_rows(count), unit_rows(count))


def test_cosines_by_hand() -> None:
    found = cosines(np.array([[3, 4], [1, 0], [0, 0]], np.float32), np.array([[4, 3], [0, 2], [1, 0]], np.float32))
    np.testing.assert_allclose(found[:2], [24 / 25, 0])
    assert np.isnan(found[2])
