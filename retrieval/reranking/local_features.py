"""The local features of a photo: a few hundred points that are found again from another view, each with a descriptor.

SIFT (Lowe, IJCV 2004) as OpenCV computes it, in the form of RootSIFT (Arandjelović & Zisserman, CVPR 2012), which
compares better and fits a byte a number.
"""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from retrieval.images import DEFAULT_LIMITS, ImageLimits, RgbImage, decode_upright
from retrieval.reranking.opencv_library import opencv_module

DESCRIPTOR_BYTES: Final = 128

# A root of a share is at most 1.
_BYTE_SCALE: Final = 255.0
# Positions in sixteenths of a pixel are finer than SIFT finds them, and two bytes hold 4096 pixels.
_STEPS_PER_PIXEL: Final = 16.0


class FeatureSettings(BaseModel):
    """How local features are computed. Features of other settings are not compared with each other.

    Attributes:
        kind: of feature.
        max_side: the longer side of the photo is reduced to it, pixels; smaller photos stay as they are.
        max_points: the strongest that are kept.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["rootsift"] = "rootsift"
    max_side: int = Field(default=640, ge=64, le=4095)
    max_points: int = Field(default=512, ge=16, le=65_535)

    @property
    def max_bytes(self) -> int:
        """What the features of one photo take at most."""
        return self.max_points * (DESCRIPTOR_BYTES + 4)


@dataclass(frozen=True, slots=True, eq=False)
class LocalFeatures:
    """The local features of one photo.

    Attributes:
        points: (n, 2) uint16, x and y in sixteenths of a pixel of the reduced photo.
        descriptors: (n, 128) uint8, RootSIFT: rows of length 255 but for rounding.
    """

    points: NDArray[np.uint16]
    descriptors: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.points)

    @property
    def pixels(self) -> NDArray[np.float32]:
        """(n, 2) float32, x and y in pixels of the reduced photo."""
        return np.asarray(self.points / np.float32(_STEPS_PER_PIXEL), np.float32)


NO_FEATURES: Final = LocalFeatures(np.empty((0, 2), np.uint16), np.empty((0, DESCRIPTOR_BYTES), np.uint8))


def extract_features(image: RgbImage, settings: FeatureSettings) -> LocalFeatures:
    """Find the local features of a photo. Safe to call from many threads.

    Args:
        image: (h, w, 3) uint8 RGB, upright, no side longer than the settings' `max_side`.
        settings: how.

    Raises:
        MissingExtraError: OpenCV is not installed.
    """
    cv2 = opencv_module()
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    keypoints, sift = cv2.SIFT_create(nfeatures=settings.max_points).detectAndCompute(grey, None)
    if sift is None:
        return NO_FEATURES
    # Of equally strong ones OpenCV returns more than it is asked for.
    strongest = np.argsort([-point.response for point in keypoints], kind="stable")[: settings.max_points]
    pixels = np.array([keypoints[place].pt for place in strongest])
    points = np.round(pixels * _STEPS_PER_PIXEL).clip(0, np.iinfo(np.uint16).max).astype(np.uint16)
    shares = sift[strongest] / np.maximum(sift[strongest].sum(axis=1, keepdims=True), 1e-9)
    return LocalFeatures(points, np.round(np.sqrt(shares) * _BYTE_SCALE).astype(np.uint8))


def decode_features(
    data: bytes, settings: FeatureSettings, limits: ImageLimits = DEFAULT_LIMITS, *, where: str | None = None
) -> LocalFeatures:
    """Decode an encoded photo and find its local features. Safe to call from many threads.

    Raises:
        ImageError: see `decode_image`.
        MissingExtraError: OpenCV is not installed.
    """
    return extract_features(decode_upright(data, settings.max_side, limits, where=where), settings)
