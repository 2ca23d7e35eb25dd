"""What is published in a Milvus, and who is pushing what: one small collection beside the versions' own.

It holds the files of every version that are not rows: manifest, whitening, and how the collection is searched. They
are cut into pieces, for Milvus limits the length of text. The manifest is written last: a version that has one is
published, and one without is not.
"""

import base64
import os
import socket
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from retrieval.errors import PlaceIndexError
from retrieval.index.manifest import PlaceIndexManifest
from retrieval.index.milvus.connection import RECORDS_NAME, MilvusConnection, version_of

MANIFEST_NAME: Final = "manifest.json"
_PIECE_BYTES: Final = 45_000  # 60,000 signs of base64, of the 65,535 that a text may have
_MOST_PIECES: Final = 16_000
_LOAD_S: Final = 60.0

# Every collection needs a vector.
_NO_VECTOR: Final = (0.0, 0.0)
CLAIM_NAME: Final = "claim.json"

# Renewed far more often than that.
_GOOD_FOR: Final = timedelta(minutes=5)


class MilvusRecords:
    """The records of all versions in a Milvus.

    Args:
        connection: to it.
    """

    def __init__(self, connection: MilvusConnection) -> None:
        self.connection = connection
        self._loaded = False

    def published(self) -> list[tuple[str, str]]:
        """Index and version of everything that is published, sorted.

        Raises:
            StoreUnavailableError: Milvus cannot be asked.
        """
        if not self._there:
            return []
        rows = self._query(f'file == "{MANIFEST_NAME}" and piece == 0', ["collection"])
        found = [version_of(row["collection"]) for row in rows]
        return sorted(one for one in found if one is not None)

    def read(self, collection: str, file: str) -> bytes | None:
        """A file of a version, or None where there is none.

        Raises:
            PlaceIndexError: pieces of it are missing.
            StoreUnavailableError: Milvus cannot be asked.
        """
        if not self._there:
            return None
        rows = self._query(f'collection == "{collection}" and file == "{file}"', ["piece", "pieces", "data"])
        if not rows:
            return None
        rows.sort(key=lambda row: int(row["piece"]))
        if [row["piece"] for row in rows] != list(range(rows[0]["pieces"])):
            raise PlaceIndexError(
                f"pieces of {file} are missing from {RECORDS_NAME}",
                where=f"{self.connection.where}, {collection}",
                remedy="Publish the version again: sightfix index push",
            )
        return b"".join(base64.b64decode(row["data"]) for row in rows)

    def manifest(self, collection: str) -> PlaceIndexManifest | None:
        """The manifest of a version, or None where it is not published.

        Raises:
            PlaceIndexError: it is damaged.
            StoreUnavailableError: Milvus cannot be asked.
        """
        data = self.read(collection, MANIFEST_NAME)
        if data is None:
            return None
        return PlaceIndexManifest.parse(data, f"{self.connection.where}, {collection}", PlaceIndexError)

    def write(self, collection: str, file: str, data: bytes) -> None:
        """Write a file of a version, whole or, where this is cut off, so that it counts as missing.

        Raises:
            StoreUnavailableError: Milvus refuses.
        """
        self.create()
        cut = [data[start : start + _PIECE_BYTES] for start in range(0, max(len(data), 1), _PIECE_BYTES)]
        rows = [
            {
                "key": f"{collection}/{file}/{piece}",
                "collection": collection,
                "file": file,
                "piece": piece,
                "pieces": len(cut),
                "data": base64.b64encode(part).decode(),
                "none": list(_NO_VECTOR),
            }
            for piece, part in enumerate(cut)
        ]
        client = self.connection.client
        with self.connection.failures():
            # The first piece makes the file one that is there.
            for row in reversed(rows):
                client.upsert(RECORDS_NAME, [row], timeout=self.connection.timeout_s)

    def remove_file(self, collection: str, file: str) -> None:
        """Forget a file of a version; without its manifest the version is not published.

        Raises:
            StoreUnavailableError: Milvus refuses.
        """
        self._delete(f'file == "{file}" and collection == "{collection}"')

    def remove(self, collection: str) -> None:
        """Forget a version; its manifest goes first.

        Raises:
            StoreUnavailableError: Milvus refuses.
        """
        self.remove_file(collection, MANIFEST_NAME)
        self._delete(f'collection == "{collection}"')

    def _delete(self, filter_: str) -> None:
        if self._there:
            with self.connection.failures():
                self.connection.client.delete(RECORDS_NAME, filter=filter_, timeout=self.connection.timeout_s)

    def create(self) -> None:
        """Create the collection where there is none yet."""
        if self._there:
            return
        client, types = self.connection.client, self.connection.types
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("key", types.VARCHAR, is_primary=True, max_length=1024)
        schema.add_field("collection", types.VARCHAR, max_length=255)
        schema.add_field("file", types.VARCHAR, max_length=255)
        schema.add_field("piece", types.INT64)
        schema.add_field("pieces", types.INT64)
        schema.add_field("data", types.VARCHAR, max_length=65_535)
        schema.add_field("none", types.FLOAT_VECTOR, dim=len(_NO_VECTOR))
        with self.connection.failures():
            # What is read right after it was written must be there.
            client.create_collection(
                RECORDS_NAME, schema=schema, consistency_level="Strong", timeout=self.connection.timeout_s
            )
        self._load()

    def _load(self) -> None:
        """Into Milvus's memory: after it has started again, and where its creator was cut off."""
        client = self.connection.client
        with self.connection.failures():
            if not client.list_indexes(RECORDS_NAME):
                indexes = client.prepare_index_params()
                indexes.add_index("none", index_type="FLAT", metric_type="L2")
                client.create_index(RECORDS_NAME, indexes, timeout=_LOAD_S)
            client.load_collection(RECORDS_NAME, timeout=_LOAD_S)
        self._loaded = True

    @property
    def _there(self) -> bool:
        if not self._loaded:
            with self.connection.failures():
                there = self.connection.client.has_collection(RECORDS_NAME, timeout=self.connection.timeout_s)
            if there:
                self._load()
        return self._loaded

    def _query(self, filter_: str, fields: list[str]) -> list[dict[str, Any]]:
        with self.connection.failures():
            found = self.connection.client.query(
                RECORDS_NAME,
                filter=filter_,
                output_fields=fields,
                limit=_MOST_PIECES,
                consistency_level="Strong",
                timeout=self.connection.timeout_s,
            )
        return [dict(row) for row in found]


class Claim(BaseModel):
    """A process that is pushing.

    Attributes:
        host, process: which.
        at: when it was last renewed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    process: int
    at: datetime

    def holds(self) -> bool:
        """Whether it is to be respected: its process lives, as far as is known here."""
        if datetime.now(UTC) - self.at > _GOOD_FOR:
            return False
        if self.host != socket.gethostname():
            return True
        if self.process == os.getpid():
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


def read_claim(records: MilvusRecords, collection: str) -> Claim | None:
    """The claim on a version, or None where there is none that can be read.

    Raises:
        StoreUnavailableError: Milvus cannot be asked.
    """
    data = records.read(collection, CLAIM_NAME)
    if data is None:
        return None
    try:
        return Claim.model_validate_json(data)
    except ValidationError:
        return None
