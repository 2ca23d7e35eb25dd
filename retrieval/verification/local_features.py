"""Local features: a few hundred points of a photo that are found again from another view, each with a descriptor.

SIFT (Lowe, IJCV 2004) as OpenCV computes it, in the form of RootSIFT (Arandjelović & Zisserman, CVPR 2012), which
compares better and fits a byte a number. Those of a whole index lie in one Arrow IPC file, one row a reference, paged
in as rows are asked for.
"""

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from retrieval.errors import MissingExtraError, PlaceIndexError
from retrieval.images import DEFAULT_LIMITS, ImageLimits, RgbImage, decode_upright

DESCRIPTOR_BYTES: Final = 128

# A root of a share is at most 1.
_BYTE_SCALE: Final = 255.0

# Positions in sixteenths of a pixel are finer than SIFT finds them, and two bytes hold 4096 pixels.
_STEPS_PER_PIXEL: Final = 16.0

# Rows lie in record batches of the same number each, so a row is found without reading what is before it.
_ROWS_PER_BATCH: Final = 64

_POINT_BYTES: Final = 4

_SCHEMA: Final = pa.schema(
    [pa.field("points", pa.binary(), nullable=False), pa.field("descriptors", pa.binary(), nullable=False)]
)

_REMEDY: Final = "Build the index again with: sightfix index SOURCE --local-features"


def opencv_module() -> ModuleType:
    """OpenCV.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise MissingExtraError(
            f"re-ranking needs OpenCV ({error})", remedy="Run: pip install 'sightfix[rerank]'"
        ) from None
    # One number for the whole process. Several photos are worked on at a time already: a pool of OpenCV's own for each
    # of them would compete with that, and with the model.
    if cv2.getNumThreads() != 1:
        cv2.setNumThreads(1)
    module: ModuleType = cv2
    return module


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


class StoredFeatures:
    """The local features of an index's references. Safe to read from several threads.

    Args:
        path: of the file.
        settings: that they were computed with.
        count: of references.

    Raises:
        PlaceIndexError: it is no such file, or of another number of references.
    """

    def __init__(self, path: Path, settings: FeatureSettings, count: int) -> None:
        self.settings = settings
        self.count = count
        self._path = path
        self._lock = threading.Lock()
        try:
            self._file = pa.ipc.open_file(pa.memory_map(str(path)))
            fits = self._file.schema.equals(_SCHEMA) and self._file.num_record_batches == -(-count // _ROWS_PER_BATCH)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(str(error)) from error
        if not fits:
            raise self._damaged(f"they are not those of {count} references")

    def features(self, row: int) -> LocalFeatures:
        """The features of one reference; none of one whose photo could not be read.

        Raises:
            PlaceIndexError: the file is damaged.
        """
        if not 0 <= row < self.count:
            raise IndexError(f"row {row} of {self.count}")
        batch, place = divmod(row, _ROWS_PER_BATCH)
        try:
            with self._lock:
                rows = self._file.get_batch(batch)
            # Only these two values are checked: others of the batch may never be asked for.
            points, descriptors = (_bytes(rows.column(name).slice(place, 1)) for name in ("points", "descriptors"))
        except (pa.ArrowException, OSError, IndexError) as error:
            raise self._damaged(str(error)) from error
        if len(points) % _POINT_BYTES or len(points) // _POINT_BYTES != len(descriptors) / DESCRIPTOR_BYTES:
            raise self._damaged(f"row {row} holds {len(points)} and {len(descriptors)} bytes")
        return LocalFeatures(
            np.frombuffer(points, "<u2").reshape(-1, 2), np.frombuffer(descriptors, np.uint8).reshape(-1, 128)
        )

    def _damaged(self, what: str) -> PlaceIndexError:
        return PlaceIndexError(f"the local features cannot be read ({what})", where=str(self._path), remedy=_REMEDY)


def write_features(path: Path, features: Iterable[LocalFeatures]) -> int:
    """Write the features of all references, in the order of the rows, and few at a time.

    Returns:
        the bytes they take.

    Raises:
        OSError: the disk refuses.
    """
    with path.open("wb") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
        for some in _record_batches(features):
            writer.write_batch(some)
    return path.stat().st_size


def _record_batches(features: Iterable[LocalFeatures]) -> Iterator[pa.RecordBatch]:
    """Record batches of as many rows each as the reader counts on."""
    some: list[LocalFeatures] = []
    for one in features:
        some.append(one)
        if len(some) == _ROWS_PER_BATCH:
            yield _record_batch(some)
            some = []
    if some:
        yield _record_batch(some)


def _record_batch(features: list[LocalFeatures]) -> pa.RecordBatch:
    points = [one.points.astype("<u2").tobytes() for one in features]
    descriptors = [one.descriptors.tobytes() for one in features]
    return pa.record_batch([pa.array(points, pa.binary()), pa.array(descriptors, pa.binary())], schema=_SCHEMA)


def _bytes(column: pa.Array) -> memoryview:
    column.validate(full=True)
    return memoryview(column[0].as_buffer())
