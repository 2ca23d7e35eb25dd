"""Do two photos show the same thing? Points are paired by their descriptors, and the pairs of one view are counted."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.reranking.local_features import LocalFeatures
from retrieval.reranking.opencv_library import opencv_module

# Fewer pairs fit some homography by chance, or fit any.
_LEAST_PAIRS: Final = 6


@dataclass(frozen=True, slots=True)
class GeometrySettings:
    """How two photos are compared.

    Attributes:
        ratio: a point is paired with its nearest in descriptor space only where the second nearest is so much farther
            (Lowe's test), and where each is the other's nearest.
        tolerance_px: how far a pair may lie off the common homography and still count; MAGSAC++ (Barath et al., CVPR
            2020) takes it as the largest noise it averages over.
        max_iterations: of the search for the homography.
    """

    ratio: float = 0.85
    tolerance_px: float = 4.0
    max_iterations: int = 2000


def count_inliers(one: LocalFeatures, other: LocalFeatures, settings: GeometrySettings) -> int:
    """How many pairs of points fit one homography: a flat front, or any view from the same spot.

    Args:
        one, other: features of two photos, of the same `FeatureSettings`.
        settings: how.

    Raises:
        MissingExtraError: OpenCV is not installed.
    """
    pairs = paired(one, other, settings.ratio)
    if len(pairs) < _LEAST_PAIRS:
        return 0
    cv2 = opencv_module()
    _, inliers = cv2.findHomography(
        one.pixels[pairs[:, 0]],
        other.pixels[pairs[:, 1]],
        cv2.USAC_MAGSAC,
        settings.tolerance_px,
        maxIters=settings.max_iterations,
        confidence=0.999,
    )
    return 0 if inliers is None else int(inliers.sum())


def paired(one: LocalFeatures, other: LocalFeatures, ratio: float) -> NDArray[np.int64]:
    """Points of two photos that look like each other and like nothing else: (m, 2) int64, each point at most once."""
    if len(one) < 2 or len(other) < 2:
        return np.empty((0, 2), np.int64)
    cv2 = opencv_module()
    matcher = cv2.BFMatcher(cv2.NORM_L2)
    # Measured: as bytes OpenCV compares them eight times slower.
    ours, theirs = one.descriptors.astype(np.float32), other.descriptors.astype(np.float32)
    distinct = [
        (nearest.queryIdx, nearest.trainIdx)
        for nearest, second in matcher.knnMatch(ours, theirs, 2)
        if nearest.distance < ratio * second.distance
    ]
    if not distinct:
        return np.empty((0, 2), np.int64)
    pairs = np.array(distinct, np.int64)
    back = np.array([match.trainIdx for match in matcher.match(theirs[pairs[:, 1]], ours)], np.int64)
    return np.asarray(pairs[back == pairs[:, 0]])
