"""Which store a user means: the folder of indexes, or another engine by its address."""

from pathlib import Path

from retrieval.stores.contract import PlaceIndexStore
from retrieval.stores.folders import FolderStore


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
    from retrieval.stores.milvus.address import MilvusAddress
    from retrieval.stores.milvus.store import MilvusStore

    return MilvusStore(MilvusAddress.parse(address))
