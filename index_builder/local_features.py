"""The local features of a version: taken over where a photo's content is known, else computed from the photo."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index_builder.update_watch import LeftOut
from retrieval.errors import ImageError
from retrieval.images import DEFAULT_LIMITS, ImageLimits, read_image_bytes
from retrieval.index.manifest import LocalFeaturesRecord
from retrieval.index.place_index import REFERENCES_NAME, PlaceIndex
from retrieval.index.reference_table import read_references
from retrieval.machine import in_order
from retrieval.reranking.local_features import (
    NO_FEATURES,
    FeatureSettings,
    LocalFeatures,
    decode_features,
    write_features,
)


def _tell_nobody(done: int, without: Sequence[LeftOut]) -> None:
    """Does nothing."""


@dataclass(frozen=True)
class FeaturesPlan:
    """How the local features of a version are made.

    Attributes:
        settings: of the features.
        before: a version of the index; of photos whose content it knows its features are taken over.
        limits: of encoded photos.
        tell: called now and then with how many rows are done, and which photos since then have no features. May raise.
    """

    settings: FeatureSettings
    before: PlaceIndex | None = None
    limits: ImageLimits = DEFAULT_LIMITS
    tell: Callable[[int, Sequence[LeftOut]], None] = _tell_nobody


def write_local_features(path: Path, table: pa.Table, root: Path, plan: FeaturesPlan) -> LocalFeaturesRecord:
    """Write the local features of all rows, a few photos at a time.

    A photo that cannot be read, or that changed since it was described, has none: its match keeps its place.

    Args:
        path: of the file to write.
        table: (N rows) of `REFERENCE_SCHEMA`, in the order of the index.
        root: that relative paths start from.
        plan: how.

    Raises:
        MissingExtraError: OpenCV is not installed.
        PlaceIndexError: what is taken over is damaged.
        OSError: the disk refuses.
    """
    without = 0

    def rows() -> Iterator[LocalFeatures]:
        nonlocal without
        maker = _Maker(plan, root)
        for done, found in enumerate(in_order(maker.features, _photos(table, plan)), start=1):
            failed = [found] if isinstance(found, LeftOut) else []
            without += len(failed)
            plan.tell(done, failed)
            yield NO_FEATURES if isinstance(found, LeftOut) else found

    write_features(path, rows())
    return LocalFeaturesRecord(settings=plan.settings, without=without)


@dataclass(frozen=True, slots=True)
class _Photo:
    """A row: the path of its photo as the table has it, its content, and where its features are stored already."""

    path: str
    sha256: str | None
    row_before: int | None


class _Maker:
    """Makes the features of rows; called by several threads."""

    def __init__(self, plan: FeaturesPlan, root: Path) -> None:
        self._plan = plan
        self._root = root
        self._stored = plan.before.local_features if plan.before is not None else None

    def features(self, photo: _Photo) -> LocalFeatures | LeftOut:
        if photo.row_before is not None and self._stored is not None:
            stored = self._stored.features(photo.row_before)
            if len(stored):
                return stored
        limits = self._plan.limits
        path = self._root / photo.path
        try:
            data = read_image_bytes(path, limits)
            if photo.sha256 is not None and hashlib.sha256(data).hexdigest() != photo.sha256:
                return LeftOut(photo.path, "photo_changed", "the photo has changed since it was described")
            return decode_features(data, self._plan.settings, limits, where=str(path))
        except ImageError as error:
            return LeftOut(photo.path, error.code, error.what, error.remedy)


def _photos(table: pa.Table, plan: FeaturesPlan) -> Iterator[_Photo]:
    before = _rows_before(table, plan)
    for batch in table.select(["path", "content_sha256"]).to_batches():
        for path, sha256 in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            row = int(next(before))
            yield _Photo(path, sha256, row if row >= 0 else None)


def _rows_before(table: pa.Table, plan: FeaturesPlan) -> Iterator[np.int64]:
    """For each row, where the version before holds the features of the same content, or -1."""
    rows: NDArray[np.int64] = np.full(table.num_rows, -1, np.int64)
    before = plan.before
    if before is not None and before.local_features is not None and before.local_features.settings == plan.settings:
        known = read_references(before.folder / REFERENCES_NAME)["content_sha256"]
        found = pc.index_in(table["content_sha256"], value_set=known.combine_chunks(), skip_nulls=True)
        rows = pc.fill_null(found, -1).to_numpy().astype(np.int64)
    return iter(rows)
