"""What a store of place indexes can do. The folders and every engine pass the same tests of it."""

from abc import ABC, abstractmethod

from retrieval.errors import IndexNotFoundError
from retrieval.index_folder import choose_index, choose_version
from retrieval.place_index_manifest import PlaceIndexManifest
from retrieval.searchable_index import SearchablePlaceIndex


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

    def find(self, name: str | None) -> str:
        """The name of an index that is there; with no name, the only one.

        Raises:
            IndexNotFoundError: no such index, none at all, or several to choose from.
            ParameterError: the name cannot be an index's.
        """
        return choose_index(self.names(), name, self.where)

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
