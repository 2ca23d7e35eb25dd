"""The store beyond this machine: a Milvus, with a collection for each version and an alias for each index."""

import io
from typing import Final

from pydantic import ValidationError

from retrieval.errors import IndexNotFoundError, PlaceIndexError, counted
from retrieval.index.folder import check_index_name, oldest_versions, version_not_found
from retrieval.index.manifest import PlaceIndexManifest
from retrieval.index.milvus.collection import SEARCHING_NAME, MilvusCollection, MilvusSearching
from retrieval.index.milvus.connection import MilvusAddress, MilvusConnection, alias_of, collection_of, version_of
from retrieval.index.milvus.place_index import MilvusPlaceIndex
from retrieval.index.milvus.records import MANIFEST_NAME, MilvusRecords, read_claim
from retrieval.index.place_index import WHITENING_NAME
from retrieval.index.searchable import PlaceIndexStore
from retrieval.index.whitening import read_whitening

_AGAIN: Final = "Publish the version again: sightfix index push"
_LOAD_S: Final = 600.0


class MilvusStore(PlaceIndexStore):
    """Place indexes in a Milvus.

    Args:
        address: where it is.

    Raises:
        MissingExtraError: pymilvus is not installed.
        StoreUnavailableError: it cannot be reached.
    """

    def __init__(self, address: MilvusAddress) -> None:
        self.where = address.shown
        self.connection = MilvusConnection(address)
        self.records = MilvusRecords(self.connection)

    def names(self) -> list[str]:
        """As `PlaceIndexStore.names`."""
        return sorted(index for index in {index for index, _ in self.records.published()} if self._current(index))

    def versions(self, name: str) -> list[str]:
        """As `PlaceIndexStore.versions`."""
        check_index_name(name)
        return [version for index, version in self.records.published() if index == name]

    def current(self, name: str) -> str:
        """As `PlaceIndexStore.current`."""
        version = self._current(check_index_name(name))
        if version is None:
            raise IndexNotFoundError(
                f"there is no published place index {name!r}",
                where=self.where,
                remedy=f"Publish one: sightfix index push --name {name} --store {self.where}",
            )
        return version

    def activate(self, name: str, version: str) -> None:
        """As `PlaceIndexStore.activate`: the alias is moved in one step."""
        available = self.versions(name)
        if version not in available:
            raise version_not_found(name, version, available, self.where)
        before = self._current(name)
        self._move_alias(name, version, there=before is not None)
        if self.records.read(collection_of(name, version), MANIFEST_NAME) is not None:
            return
        # `prune` was quicker, and had looked at the alias before.
        if before is not None:
            self._move_alias(name, before, there=True)
        raise IndexNotFoundError(
            f"the version {version!r} of the index {name} was removed at this moment",
            where=self.where,
            remedy="Choose another; what was current stays so",
            code="version_not_found",
        )

    def manifest(self, name: str, version: str) -> PlaceIndexManifest:
        """As `PlaceIndexStore.manifest`."""
        manifest = self.records.manifest(collection_of(check_index_name(name), version))
        if manifest is None:
            raise PlaceIndexError(f"the version {version} of {name} is gone", where=self.where, remedy=_AGAIN)
        return manifest

    def open(self, name: str, version: str | None = None) -> MilvusPlaceIndex:
        """As `PlaceIndexStore.open`. The collection is loaded into Milvus where it is not, and its rows are counted."""
        if version is None:
            version = self.current(name)
        elif version not in self.versions(name):
            raise version_not_found(name, version, self.versions(name), self.where)
        collection = collection_of(name, version)
        manifest = self.manifest(name, version)
        searching = self.searching(collection)
        whitening = None
        if manifest.whitening is not None:
            data = self._record(collection, WHITENING_NAME)
            whitening = read_whitening(io.BytesIO(data), f"{self.where}, {collection}, {WHITENING_NAME}")
        with self.connection.failures("cannot load the collection"):
            self.connection.client.load_collection(collection, timeout=_LOAD_S)
        rows = MilvusCollection(self.connection, collection, manifest.descriptor_dim, searching)
        if (count := rows.count(strong=True)) != manifest.count:
            raise PlaceIndexError(
                f"Milvus holds {counted(count, 'row')}, the manifest says {manifest.count:,}",
                where=f"{self.where}, {collection}",
                remedy=_AGAIN,
            )
        return MilvusPlaceIndex(manifest, rows, whitening)

    def prune(self, name: str, keep: int) -> list[str]:
        """As `PlaceIndexStore.prune`. Unfinished versions that no process pushes go, too, if they are old."""
        current = self.current(name)
        published = self.versions(name)
        removed = [version for version in oldest_versions(published, current, keep) if self._remove(name, version)]
        for version in self.unfinished(name):
            claim = read_claim(self.records, collection_of(name, version))
            if version < published[-1] and not (claim is not None and claim.holds()):
                self.drop(collection_of(name, version))
                self.records.remove(collection_of(name, version))
        return removed

    def _remove(self, name: str, version: str) -> bool:
        """Whether it was removed by this call: not when it became current meanwhile, or when another process did it."""
        collection = collection_of(name, version)
        manifest = self.records.read(collection, MANIFEST_NAME)
        if manifest is None or self._current(name) == version:
            return False
        # First the manifest: from then on it is neither opened nor made current.
        self.records.remove_file(collection, MANIFEST_NAME)
        if self._current(name) == version:
            self.records.write(collection, MANIFEST_NAME, manifest)
            return False
        self.drop(collection)
        self.records.remove(collection)
        return True

    def unfinished(self, name: str) -> list[str]:
        """Versions of an index whose publishing was cut off, or is under way, sorted.

        Raises:
            StoreUnavailableError: Milvus cannot be asked.
        """
        with self.connection.failures():
            collections = self.connection.client.list_collections(timeout=self.connection.timeout_s)
        found = [version_of(one) for one in collections]
        published = set(self.records.published())
        return sorted(one[1] for one in found if one is not None and one[0] == name and one not in published)

    def drop(self, collection: str) -> None:
        """Remove a collection and all its rows; one that is gone is fine.

        Raises:
            StoreUnavailableError: Milvus refuses.
        """
        with self.connection.failures():
            if self.connection.client.has_collection(collection, timeout=self.connection.timeout_s):
                self.connection.client.drop_collection(collection, timeout=self.connection.timeout_s)

    def searching(self, collection: str) -> MilvusSearching:
        """How a version's collection is searched.

        Raises:
            PlaceIndexError: the record is missing or damaged.
            StoreUnavailableError: Milvus cannot be asked.
        """
        try:
            return MilvusSearching.model_validate_json(self._record(collection, SEARCHING_NAME))
        except ValidationError as error:
            raise PlaceIndexError(
                f"{SEARCHING_NAME} is damaged ({error.errors()[0]['msg']})",
                where=f"{self.where}, {collection}",
                remedy=_AGAIN,
            ) from error

    def close(self) -> None:
        """Close the connection; what was opened can no longer be searched."""
        self.connection.close()

    def _current(self, name: str) -> str | None:
        with self.connection.failures():
            try:
                alias = self.connection.client.describe_alias(alias_of(name), timeout=self.connection.timeout_s)
            except Exception as error:
                if self.connection.is_not_there(error):
                    return None
                raise
        found = version_of(str(alias["collection_name"]))
        return found[1] if found is not None and found[0] == name else None

    def _move_alias(self, name: str, version: str, *, there: bool) -> None:
        move = self.connection.client.alter_alias if there else self.connection.client.create_alias
        with self.connection.failures():
            move(collection_of(name, version), alias_of(name), timeout=self.connection.timeout_s)

    def _record(self, collection: str, file: str) -> bytes:
        data = self.records.read(collection, file)
        if data is None:
            raise PlaceIndexError(
                f"{file} is missing from the records", where=f"{self.where}, {collection}", remedy=_AGAIN
            )
        return data
