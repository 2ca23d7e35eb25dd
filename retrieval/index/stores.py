"""The store of a user: the folder of indexes on this machine, or another engine by its address."""

from pathlib import Path

from retrieval.errors import PlaceIndexError
from retrieval.index.folder import (
    VERSIONS_NAME,
    activate_version,
    check_index_name,
    current_version,
    index_names,
    prune,
    published_versions,
    version_not_found,
)
from retrieval.index.manifest import PlaceIndexManifest
from retrieval.index.place_index import PlaceIndex
from retrieval.index.searchable import PlaceIndexStore


class FolderStore(PlaceIndexStore):
    """Place indexes in folders.

    Args:
        indexes: the folder of all of them.
        memory_map: leave vectors on the disk when an index is opened, see `PlaceIndex.open`.
    """

    def __init__(self, indexes: Path, *, memory_map: bool = False) -> None:
        self.indexes = indexes
        self.memory_map = memory_map
        self.where = str(indexes)

    def names(self) -> list[str]:
        """As `PlaceIndexStore.names`."""
        return index_names(self.indexes)

    def versions(self, name: str) -> list[str]:
        """As `PlaceIndexStore.versions`."""
        return published_versions(self._folder(name))

    def current(self, name: str) -> str:
        """As `PlaceIndexStore.current`."""
        return current_version(self._folder(name))

    def activate(self, name: str, version: str) -> None:
        """As `PlaceIndexStore.activate`."""
        activate_version(self._folder(name), version)

    def manifest(self, name: str, version: str) -> PlaceIndexManifest:
        """As `PlaceIndexStore.manifest`."""
        return PlaceIndexManifest.read(self._folder(name) / VERSIONS_NAME / version, PlaceIndexError)

    def open(self, name: str, version: str | None = None) -> PlaceIndex:
        """As `PlaceIndexStore.open`."""
        folder = self._folder(name)
        if version is None:
            # Looked up again there, if it is pruned while it is opened.
            return PlaceIndex.open(folder, memory_map=self.memory_map)
        if version not in published_versions(folder):
            raise version_not_found(name, version, published_versions(folder), self.where)
        return PlaceIndex.open(folder / VERSIONS_NAME / version, memory_map=self.memory_map)

    def prune(self, name: str, keep: int) -> list[str]:
        """As `PlaceIndexStore.prune`."""
        return prune(self._folder(name), keep)

    def _folder(self, name: str) -> Path:
        return self.indexes / check_index_name(name)


def open_store(address: str | None, indexes: Path, *, memory_map: bool = False) -> PlaceIndexStore:
    """Open a store.

    Args:
        address: such as ``milvus://host:19530``; None for the folder.
        indexes: the folder of all place indexes.
        memory_map: of the folder, see `FolderStore`.

    Raises:
        ParameterError: the address cannot be read.
        MissingExtraError: what it needs is not installed.
        StoreUnavailableError: it cannot be reached.
    """
    if address is None:
        return FolderStore(indexes, memory_map=memory_map)
    from retrieval.index.milvus.connection import MilvusAddress
    from retrieval.index.milvus.store import MilvusStore

    return MilvusStore(MilvusAddress.parse(address))
