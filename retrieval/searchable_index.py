"""What every opened place index can do, wherever its descriptors lie: in this process, or in another engine."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retrieval.bundle import Bundle
from retrieval.describer import Descriptors
from retrieval.errors import ModelIndexMismatchError, ParameterError
from retrieval.geo import Float64Array, GeoPrior
from retrieval.place_index_manifest import PlaceIndexManifest
from retrieval.references.reference import Reference
from retrieval.reranking.reranker import FeatureSource
from retrieval.search_result import SearchResult
from retrieval.whitening import Whitening


class SearchablePlaceIndex(ABC):
    """One opened version of a place index. Safe to search from several threads; immutable.

    Args:
        manifest: of the version.
        whitening: that queries go through, or None.
        where: names it in messages: a folder, or the address of an engine and a collection.
    """

    def __init__(self, manifest: PlaceIndexManifest, whitening: Whitening | None, where: str) -> None:
        self.manifest = manifest
        self.whitening = whitening
        self.where = where

    @property
    def count(self) -> int:
        """Number of references."""
        return self.manifest.count

    @property
    def name(self) -> str:
        """The index's name."""
        return self.manifest.name

    @property
    def version(self) -> str:
        """The version's name."""
        return self.manifest.version

    @property
    def type_name(self) -> str:
        """Of the index, as answers tell it."""
        return self.manifest.index_type

    @property
    @abstractmethod
    def searches_exactly(self) -> bool:
        """Whether a search returns what comparing all descriptors would; else how much of it, the recall tells."""

    @property
    def score_stretch(self) -> float:
        """See `WhiteningRecord.score_stretch`; 1 where the index does not whiten."""
        return self.manifest.whitening.score_stretch if self.manifest.whitening else 1.0

    @property
    def local_features(self) -> FeatureSource | None:
        """What matches can be re-ranked with, or None where the index holds none."""
        return None

    def check_bundle(self, bundle: Bundle) -> None:
        """Refuse a bundle other than the one that described the references.

        Raises:
            ModelIndexMismatchError: the fingerprints differ; answers would be nonsense.
        """
        ours = self.manifest.bundle
        if bundle.fingerprint != ours.fingerprint:
            raise ModelIndexMismatchError(
                f"the index was described with bundle {ours.name} ({ours.fingerprint[:12]}), "
                f"not with {bundle.name} ({bundle.fingerprint[:12]})",
                where=self.where,
                remedy="Give the bundle it was made with (--bundle), or index the photos again with this one",
            )

    def whitened(self, descriptors: Descriptors) -> Descriptors:
        """Descriptors of the bundle as the index stores them.

        Args:
            descriptors: (Q, D) float32, unit rows.

        Returns:
            (Q, d) float32, unit rows; the same ones where the index does not whiten.

        Raises:
            ParameterError: descriptors of another shape than (Q, D).
        """
        if descriptors.ndim != 2 or descriptors.shape[1] != self.manifest.query_dim:
            raise ParameterError(
                f"descriptors are {descriptors.shape}, the index holds (N, {self.manifest.query_dim})",
                remedy="Describe the queries with the index's bundle",
            )
        return self.whitening.apply(descriptors) if self.whitening else descriptors

    def search(
        self,
        descriptors: Descriptors,
        k: int,
        geo_priors: Sequence[GeoPrior | None] | None = None,
        *,
        effort: int | None = None,
    ) -> SearchResult:
        """The k references most like each query.

        Args:
            descriptors: (Q, D) float32, unit rows, as the bundle gave them.
            k: at least 1; more than the references there are is allowed.
            geo_priors: one for each query (None: the whole index), or None for none at all. Every returned reference
                lies inside its query's prior.
            effort: of an approximate index, for this call: see `CandidateParameters.effort`.

        Raises:
            ParameterError: k or effort below 1, or descriptors of another shape than (Q, D).
            StoreUnavailableError: the engine that holds the descriptors cannot be asked.
        """
        if k < 1:
            raise ParameterError(f"k is {k}, below 1", remedy="Ask for at least one match")
        if effort is not None and effort < 1:
            raise ParameterError(f"effort is {effort}, below 1", remedy="Leave it out, or give 1 or more")
        return self.search_whitened(self.whitened(descriptors), k, geo_priors, effort=effort)

    @abstractmethod
    def search_whitened(
        self,
        descriptors: Descriptors,
        k: int,
        geo_priors: Sequence[GeoPrior | None] | None = None,
        *,
        effort: int | None = None,
    ) -> SearchResult:
        """As `search`, of (Q, d) descriptors as the index stores them: its own, from `descriptors`, for example."""

    @abstractmethod
    def descriptors(self, rows: NDArray[np.int64]) -> Descriptors:
        """The stored descriptors of some rows: (len(rows), d) float32, whitened where the index whitens."""

    @abstractmethod
    def positions(self, rows: NDArray[np.int64]) -> tuple[Float64Array, Float64Array]:
        """Latitudes and longitudes of some rows: (len(rows),) degrees each."""

    @abstractmethod
    def all_positions(self) -> tuple[Float64Array, Float64Array]:
        """Latitudes and longitudes of all rows: (N,) degrees each.

        Raises:
            ParameterError: there are too many to bring them here.
        """

    @abstractmethod
    def references(self, rows: Sequence[int] | NDArray[np.int64]) -> list[Reference]:
        """The references of some rows, in the order given.

        Raises:
            IndexError: no such row (our own mistake).
        """

    @abstractmethod
    def row_of(self, reference_id: str) -> int:
        """The row of a reference.

        Raises:
            IndexNotFoundError: the index has no reference of that id (``reference_not_found``).
        """

    @abstractmethod
    def rows_at(self, positions: Sequence[tuple[float, float]]) -> NDArray[np.int64]:
        """The rows of references that stand exactly at some (lat, lon) that answers told: (n,) int64, ascending."""

    def close(self) -> None:  # noqa: B027 - most have nothing to give back
        """Give back what is held elsewhere; searches under way are finished first by whoever owns the index."""
