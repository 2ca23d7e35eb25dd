"""What every opened place index and every store of them can do: folders on this machine, or another engine."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.bundle import Bundle, open_bundle
from retrieval.bundle.whitening import Whitening
from retrieval.describer import Descriptors
from retrieval.errors import IndexNotFoundError, ModelIndexMismatchError, ParameterError
from retrieval.geo import Float64Array, GeoPrior
from retrieval.index.folder import choose_index, choose_version
from retrieval.index.manifest import PlaceIndexManifest
from retrieval.localize.evidence import USUAL_SPREAD
from retrieval.references.reference import Reference
from retrieval.verification.verifier import FeatureSource


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The matches of Q queries.

    Attributes:
        rows: (Q, k) int64, best first, -1 where there are fewer than k.
        scores: (Q, k) float32, cosine, -inf where there are fewer than k.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


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
        """Of the index, as answers state it."""
        return self.manifest.index_type

    @property
    @abstractmethod
    def searches_exactly(self) -> bool:
        """Whether a search returns what comparing all descriptors would; else how much of it, see its recall."""

    @property
    def score_stretch(self) -> float:
        """By how much its scores lie further apart than the usual ones, see `USUAL_SPREAD`.

        Of versions in which that was not measured it is 1, or what their whitening does.
        """
        if self.manifest.score_spread is not None:
            return self.manifest.score_spread / USUAL_SPREAD
        return self.manifest.whitening.score_stretch if self.manifest.whitening else 1.0

    @property
    def local_features(self) -> FeatureSource | None:
        """What matches can be re-ranked with, or None where the index holds none."""
        return None

    def held_bundle(self) -> Bundle | None:
        """The bundle that the version holds, its files compared with their hashes; None where it holds none.

        Raises:
            BundleError: it is damaged, or another than the one that described the references.
        """
        return None

    def open_bundle(self, named: Path | None = None) -> Bundle:
        """The bundle to describe queries with: the named one, or the one that the version holds, or the shipped one.

        Args:
            named: as users name it, see `bundle_folder`; None to choose.

        Raises:
            BundleError: it is missing or damaged.
            ModelIndexMismatchError: the references were described with another than the named one; or with another than
                the shipped one, and the version holds none.
        """
        bundle = open_bundle(named) if named is not None else self.held_bundle()
        if bundle is not None:
            self.check_bundle(bundle)
            return bundle
        bundle = open_bundle()
        ours = self.manifest.bundle
        if bundle.fingerprint != ours.fingerprint:
            raise ModelIndexMismatchError(
                f"the index was described with bundle {ours.name} ({ours.fingerprint[:12]}); it is not the one shipped "
                f"with sightfix, and {self.without_bundle}",
                where=self.where,
                remedy=self.bundle_remedy,
            )
        return bundle

    @property
    def without_bundle(self) -> str:
        """Why a version may hold no bundle, for messages."""
        return "this version was written before versions held their bundle"

    @property
    def bundle_remedy(self) -> str:
        """How to name the bundle where the version holds none."""
        return "Name the folder of that bundle: --bundle FOLDER"

    def check_bundle(self, bundle: Bundle) -> None:
        """Refuse a bundle other than the one that described the references.

        Raises:
            ModelIndexMismatchError: the fingerprints differ; answers would be nonsense.
        """
        ours = self.manifest.bundle
        if bundle.fingerprint == ours.fingerprint:
            return
        alike = "another of that name " if bundle.name == ours.name else f"{bundle.name} "
        raise ModelIndexMismatchError(
            f"the index was described with bundle {ours.name} ({ours.fingerprint[:12]}), "
            f"not with {alike}({bundle.fingerprint[:12]})",
            where=self.where,
            remedy="Leave out --bundle, for the index holds its own; or index the photos again with this one"
            if ours.held
            else "Give the bundle it was made with (--bundle), or index the photos again with this one",
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

    def close(self) -> None:  # noqa: B027 - most have nothing to give back
        """Give back what is held elsewhere; the owner of the index finishes searches under way first."""


class PlaceIndexStore(ABC):
    """Published place indexes, each with its versions, one of which is current.

    Attributes:
        where: names the store in messages; no password is in it.
    """

    where: str

    @abstractmethod
    def names(self) -> list[str]:
        """The indexes that have a current version, sorted.

        Raises:
            StoreUnavailableError: the engine cannot be asked.
        """

    @abstractmethod
    def versions(self, name: str) -> list[str]:
        """The published versions of an index, oldest first; unfinished ones are not among them.

        Raises:
            StoreUnavailableError: the engine cannot be asked.
        """

    @abstractmethod
    def current(self, name: str) -> str:
        """The version that is in force.

        Raises:
            IndexNotFoundError: nothing is published under that name.
            StoreUnavailableError: the engine cannot be asked.
        """

    @abstractmethod
    def activate(self, name: str, version: str) -> None:
        """Make a published version the current one, in one step: an upgrade that was held back, or a rollback.

        Raises:
            IndexNotFoundError: there is no such version (``version_not_found``).
            StorageError, StoreUnavailableError: the disk or the engine refuses; what was current stays so.
        """

    @abstractmethod
    def manifest(self, name: str, version: str) -> PlaceIndexManifest:
        """The manifest of a published version.

        Raises:
            PlaceIndexError: it is damaged, or gone.
        """

    @abstractmethod
    def open(self, name: str, version: str | None = None) -> SearchablePlaceIndex:
        """Open a version; the current one where none is named.

        Raises:
            IndexNotFoundError: there is no such index, or version.
            PlaceIndexError: it is damaged.
            StoreUnavailableError: the engine cannot be asked.
        """

    @abstractmethod
    def prune(self, name: str, keep: int) -> list[str]:
        """Remove the oldest versions until `keep` remain, as `oldest_versions` chooses them. Returns their names."""

    def close(self) -> None:  # noqa: B027 - folders hold nothing
        """Give back connections."""

    def find(self, name: str | None, option: str = "--index") -> str:
        """The name of an index that is there; with no name, the only one. See `choose_index`.

        Raises:
            IndexNotFoundError: no such index, none at all, or several to choose from.
            ParameterError: the name cannot be an index's.
        """
        return choose_index(self.names(), name, self.where, option)

    def find_version(self, name: str, version: str | None) -> str:
        """The whole name of a version, given its beginning; the current one where nothing is given.

        Raises:
            IndexNotFoundError: nothing is published, or there is no such version.
            ParameterError: a name that several versions begin with.
        """
        if version is None:
            return self.current(name)
        return choose_version(name, self.versions(name), version)

    def roll_back(self, name: str) -> tuple[str, str]:
        """Make the version before the current one current. Returns both names: what was current, what is.

        Raises:
            IndexNotFoundError: nothing is published, or nothing before the current version.
            StorageError, StoreUnavailableError: the disk or the engine refuses.
        """
        current = self.current(name)
        older = [version for version in self.versions(name) if version < current]
        if not older:
            raise IndexNotFoundError(
                f"there is no version before {current}",
                where=self.where,
                remedy="List what there is: sightfix index versions",
                code="version_not_found",
            )
        self.activate(name, older[-1])
        return current, older[-1]
