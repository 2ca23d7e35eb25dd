"""Publish a version that lies on this machine in a Milvus: rows, index, measured recall, records, and last the alias.

Killed at any point, what was current there stays so; the same push goes on with the rows that are missing. While one
process pushes a version it holds a claim on it, so that no other pushes it or takes it for a leftover. A version is
built, checked and calibrated on this machine first, so Milvus never decides what is right.
"""

import contextlib
import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal

import numpy as np

from index_builder.publish import DEFAULT_KEEP
from index_builder.quality import DEFAULT_QUERIES, Queries, check_stored, hold_out, measure
from retrieval.errors import ParameterError, PlaceIndexError, ReferenceDataError, SightfixError, StorageError, counted
from retrieval.index.manifest import PlaceIndexManifest, RecallReport
from retrieval.index.milvus.collection import (
    FACTS,
    SEARCHING_NAME,
    TEXT_BYTES,
    VECTOR,
    MilvusCollection,
    MilvusSearching,
    MilvusType,
    StoredAs,
    build_parameters,
    most_effort,
)
from retrieval.index.milvus.connection import MilvusAddress, collection_of
from retrieval.index.milvus.place_index import MilvusPlaceIndex
from retrieval.index.milvus.records import CLAIM_NAME, MANIFEST_NAME, Claim, MilvusRecords, read_claim
from retrieval.index.milvus.store import MilvusStore
from retrieval.index.place_index import REFERENCES_NAME, WHITENING_NAME, PlaceIndex
from retrieval.index.reference_table import iterate_references

_log = logging.getLogger("sightfix.index")
_RENEW_S: Final = 30.0
PushStep = Literal["rows written", "indexed", "checked", "recorded", "current"]
DEFAULT_FLAT_ROWS: Final = 100_000
_PROGRESS_NAME: Final = "progress.txt"
_PIECES_A_RECORD: Final = 20
_ROWS_AT_ONCE: Final = 1_000
_MESSAGE_BYTES: Final = 16_000_000  # of the 64 MB that Milvus takes
_BUILD_S: Final = 24 * 3600.0
_GRAPH_EFFORT: Final = 16


@contextlib.contextmanager
def claimed(records: MilvusRecords, collection: str) -> Iterator[None]:
    """Hold the claim, renewed every half minute.

    Args:
        records: of the Milvus.
        collection: of the version.

    Raises:
        StorageError: another process holds it (``build_in_progress``). One of this machine that is gone, or that has
            not renewed its claim for minutes, holds nothing.
        StoreUnavailableError: Milvus cannot be asked.
    """
    held = read_claim(records, collection)
    if held is not None and held.holds():
        raise StorageError(
            f"process {held.process} of {held.host} is pushing this version",
            where=f"{records.connection.where}, {collection}",
            remedy="Wait for it, or stop it",
            code="build_in_progress",
        )
    done = threading.Event()

    def claim() -> None:
        mine = Claim(host=socket.gethostname(), process=os.getpid(), at=datetime.now(UTC))
        records.write(collection, CLAIM_NAME, mine.model_dump_json().encode())

    def renew() -> None:
        while not done.wait(_RENEW_S):
            try:
                claim()
            except SightfixError as error:
                _log.warning("the claim on %s could not be renewed: %s", collection, error)

    claim()
    renewing = threading.Thread(target=renew, name="claim", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        done.set()
        renewing.join()
        with contextlib.suppress(SightfixError):
            records.remove_file(collection, CLAIM_NAME)


@dataclass(frozen=True, slots=True)
class PushSettings:
    """How to publish in a Milvus.

    Attributes:
        type: of Milvus's index; None takes FLAT up to `DEFAULT_FLAT_ROWS` rows, IVF_FLAT beyond.
        build: its parameters, instead of those that go with so many rows.
        stored: how descriptors are stored there; milvus-lite knows fp32 only.
        recall: recall@10 against exact search that approximate types must reach.
        queries: references that it is measured with.
        activate: whether the version becomes current.
        keep: versions that remain, the new one included.
    """

    type: MilvusType | None = None
    build: dict[str, int | float | str | bool] = field(default_factory=dict)
    stored: StoredAs = "fp32"
    recall: float = 0.95
    queries: int = DEFAULT_QUERIES
    activate: bool = True
    keep: int = DEFAULT_KEEP


def push_to(
    address: str,
    index: PlaceIndex,
    settings: PushSettings | None = None,
    *,
    on_rows: Callable[[int], None] = lambda _: None,
    reached: Callable[[PushStep], None] = lambda _: None,
) -> MilvusSearching:
    """As `push_version`, into the Milvus at an address, such as ``milvus://host:19530``.

    Raises:
        ParameterError: the address cannot be read.
        MissingExtraError: pymilvus is not installed.
    """
    store = MilvusStore(MilvusAddress.parse(address))
    try:
        return push_version(index, store, settings, on_rows=on_rows, reached=reached)
    finally:
        store.close()


def push_version(
    index: PlaceIndex,
    store: MilvusStore,
    settings: PushSettings | None = None,
    *,
    on_rows: Callable[[int], None] = lambda _: None,
    reached: Callable[[PushStep], None] = lambda _: None,
) -> MilvusSearching:
    """Publish a version.

    Args:
        index: that lies on this machine; its name and version are kept.
        store: where to.
        settings: how.
        on_rows: called with the number of rows that were written, first with those that were there already.
        reached: called after each step.

    Returns:
        how the collection is searched. A version that is published there and whole only becomes current.

    Raises:
        ReferenceDataError: a reference whose columns are longer than Milvus takes.
        PlaceIndexError: rows are missing there, or too little recall is reached (``gate_failed``); nothing changed.
        ParameterError: the version is published there already, as another type.
        StorageError: another process is pushing this version (``build_in_progress``).
        StoreUnavailableError: Milvus refuses, or is away; nothing changed.
    """
    settings = settings or PushSettings()
    collection = collection_of(index.name, index.version)
    if _is_whole(index, store, settings):
        on_rows(index.count)
    else:
        with claimed(store.records, collection):
            push = _Push(index, store, collection, settings)
            push.write_rows(push.create(), on_rows)
            reached("rows written")
            push.build()
            reached("indexed")
            searching = push.check()
            reached("checked")
            push.record(searching)
            reached("recorded")
    if settings.activate:
        store.activate(index.name, index.version)
        reached("current")
        try:
            store.prune(index.name, settings.keep)
        except SightfixError as error:
            # The version is published all the same; the next push tries again.
            _log.warning("old versions of %s could not be removed from %s: %s", index.name, store.where, error)
    return store.searching(collection)


class _Push:
    """One version on its way."""

    def __init__(self, index: PlaceIndex, store: MilvusStore, collection: str, settings: PushSettings) -> None:
        self.index = index
        self.store = store
        self.connection = store.connection
        self.name = collection
        self.settings = settings
        small = index.count <= DEFAULT_FLAT_ROWS
        type_: MilvusType = settings.type or ("FLAT" if small else "IVF_FLAT")
        holder = index.bundle_holder
        self.searching = MilvusSearching(
            stored=settings.stored,
            index_type=type_,
            build=build_parameters(type_, index.count, index.manifest.descriptor_dim, settings.build),
            pushed_from=None if holder is None else str(holder.absolute()),
        )

    def create(self) -> bool:
        """The collection; returns whether an earlier push left one, whose descriptors are stored alike."""
        client, types = self.connection.client, self.connection.types
        kind = types.FLOAT_VECTOR if self.settings.stored == "fp32" else types.FLOAT16_VECTOR
        with self.connection.failures():
            if client.has_collection(self.name, timeout=self.connection.timeout_s):
                there = client.describe_collection(self.name, timeout=self.connection.timeout_s)
                if any(one["name"] == VECTOR and one["type"] == kind for one in there["fields"]):
                    return True
                client.drop_collection(self.name, timeout=self.connection.timeout_s)
            schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("row", types.INT64, is_primary=True)
            schema.add_field(VECTOR, kind, dim=self.index.manifest.descriptor_dim)
            schema.add_field("lat", types.DOUBLE)
            schema.add_field("lon", types.DOUBLE)
            schema.add_field("id", types.VARCHAR, max_length=TEXT_BYTES)
            schema.add_field("record", types.VARCHAR, max_length=TEXT_BYTES)
            client.create_collection(self.name, schema=schema, timeout=self.connection.timeout_s)
        return False

    def write_rows(self, resumed: bool, on_rows: Callable[[int], None]) -> None:
        """All rows that are not known to be there; what Milvus has acknowledged it keeps."""
        index, client, records = self.index, self.connection.client, self.store.records
        at_once = max(1, min(_ROWS_AT_ONCE, _MESSAGE_BYTES // (4 * index.manifest.descriptor_dim + 1_000)))
        done = int(records.read(self.name, _PROGRESS_NAME) or 0) if resumed else 0
        on_rows(done)
        number = np.float32 if self.settings.stored == "fp32" else np.float16
        start = 0
        for place, piece in enumerate(iterate_references(index.folder / REFERENCES_NAME, at_once)):
            end = start + len(piece)
            if end > done:
                descriptors = index.descriptors(np.arange(start, end, dtype=np.int64)).astype(number)
                rows = [_entity(start + at, record, descriptors[at]) for at, record in enumerate(piece.to_pylist())]
                with self.connection.failures("does not take the rows"):
                    # Not an insert: pymilvus sends again what was not answered, and so may another push.
                    client.upsert(self.name, rows, timeout=self.connection.timeout_s)
                on_rows(end - max(start, done))
                if place % _PIECES_A_RECORD == 0:
                    records.write(self.name, _PROGRESS_NAME, str(end).encode())
            start = end
        with self.connection.failures("does not flush"):
            client.flush(self.name, timeout=_BUILD_S)
        records.write(self.name, _PROGRESS_NAME, str(start).encode())

    def build(self) -> None:
        """The index, made anew where an earlier push made another."""
        client, searching = self.connection.client, self.searching
        parameters = client.prepare_index_params()
        parameters.add_index(
            VECTOR,
            index_type=searching.index_type,
            metric_type=FACTS[searching.index_type].metric,
            # Nested twice: pymilvus unpacks one level, and milvus-lite wants the other; the server takes both.
            params={"params": dict(searching.build)},
        )
        # A scan of a thousand million rows for one id would take minutes.
        for column in ("id", "lat", "lon"):
            parameters.add_index(column, index_type="INVERTED")
        with self.connection.failures("cannot build the index"):
            client.release_collection(self.name, timeout=self.connection.timeout_s)
            for old in client.list_indexes(self.name):
                try:
                    client.drop_index(self.name, old, timeout=self.connection.timeout_s)
                except Exception as error:
                    # milvus-lite lists indexes of columns by names that it does not know afterwards.
                    if not self.connection.is_not_there(error):
                        raise
            client.create_index(self.name, parameters, timeout=_BUILD_S)
            client.load_collection(self.name, timeout=_BUILD_S)

    def check(self) -> MilvusSearching:
        """Count, self-match and recall. Returns how to search."""
        try:
            self._check_count()
            searching = self.searching
            if FACTS[searching.index_type].effort is not None and self.index.count > 1:
                searching = self._tuned()
            check_stored(self._opened(searching))
        except PlaceIndexError:
            # It will not be searched: it need not stay in Milvus's memory.
            with contextlib.suppress(SightfixError), self.connection.failures():
                self.connection.client.release_collection(self.name, timeout=self.connection.timeout_s)
            raise
        return searching

    def _check_count(self) -> None:
        rows = MilvusCollection(self.connection, self.name, self.index.manifest.descriptor_dim, self.searching)
        count = rows.count(strong=True)
        if count == self.index.count:
            return
        # What the next push believes is there would be wrong.
        self.store.records.remove_file(self.name, _PROGRESS_NAME)
        if count > self.index.count:
            self.store.drop(self.name)
        raise PlaceIndexError(
            f"Milvus holds {counted(count, 'row')} of {self.index.count:,}; nothing was published",
            where=f"{self.store.where}, {self.name}",
            remedy="Push again: all rows are written once more",
            code="gate_failed",
        )

    def record(self, searching: MilvusSearching) -> None:
        """The files of the version, its manifest last: with it, the version is published."""
        records = self.store.records
        records.write(self.name, SEARCHING_NAME, searching.model_dump_json().encode())
        if self.index.whitening is not None:
            records.write(self.name, WHITENING_NAME, (self.index.folder / WHITENING_NAME).read_bytes())
        manifest = self.index.manifest
        there = manifest.model_copy(update={"bundle": manifest.bundle.model_copy(update={"held": False})})
        records.write(self.name, MANIFEST_NAME, there.model_dump_json().encode())
        records.remove_file(self.name, _PROGRESS_NAME)

    def _tuned(self) -> MilvusSearching:
        """The least effort that reaches the recall, sought by doubling."""
        wanted = self.settings.recall
        held_out = hold_out(self.index.vectors.exact, self.settings.queries)
        type_, build = self.searching.index_type, self.searching.build
        most = most_effort(type_, build)
        effort = 1 if "nlist" in build else _GRAPH_EFFORT
        tried: list[MilvusSearching] = []
        while True:
            searching = self.searching.model_copy(update={"effort": min(effort, most)})
            report = self._recall(self._opened(searching), held_out, wanted)
            tried.append(searching.model_copy(update={"recall": report}))
            if report.at_10 >= wanted:
                return tried[-1]
            if effort >= most:
                break
            effort *= 2
        best = max(one.recall.at_10 for one in tried if one.recall is not None)
        raise PlaceIndexError(
            f"{type_} returns {best:.1%} of what exact search finds, {wanted:.1%} are wanted; nothing was published",
            where=f"{self.store.where}, {self.name}",
            remedy="Choose another type (--store-type IVF_FLAT or FLAT), or ask for less recall (--recall)",
            code="gate_failed",
        )

    def _recall(self, there: MilvusPlaceIndex, queries: Queries, wanted: float) -> RecallReport:
        return measure(lambda some, k: there.search_whitened(some, k).rows, self.index.vectors.exact, queries, wanted)

    def _opened(self, searching: MilvusSearching) -> MilvusPlaceIndex:
        manifest: PlaceIndexManifest = self.index.manifest
        rows = MilvusCollection(self.connection, self.name, manifest.descriptor_dim, searching)
        return MilvusPlaceIndex(manifest, rows, self.index.whitening)


def _is_whole(index: PlaceIndex, store: MilvusStore, settings: PushSettings) -> bool:
    """Whether the version is published there and answers; a damaged one is withdrawn, to be written again.

    Raises:
        ParameterError: it is published as another type than is wanted.
    """
    if index.version not in store.versions(index.name):
        return False
    try:
        there = store.open(index.name, index.version)
        check_stored(there)
    except PlaceIndexError as error:
        _log.warning("version %s is written again: %s", index.version, error)
        store.records.remove(collection_of(index.name, index.version))
        return False
    searching = there.collection.searching
    if settings.type not in (None, searching.index_type) or settings.stored != searching.stored:
        raise ParameterError(
            f"the version is published as {searching.index_type} of {searching.stored} already",
            where=store.where,
            remedy="Versions never change: index the photos again for a new one, and push that",
        )
    return True


def _entity(row: int, record: dict[str, Any], descriptor: np.ndarray) -> dict[str, Any]:
    own = {name: record.pop(name) for name in ("lat", "lon", "id")}
    rest = json.dumps(record, ensure_ascii=False)
    longest = max(len(own["id"].encode()), len(rest.encode()))
    if longest > TEXT_BYTES:
        raise ReferenceDataError(
            f"the reference {own['id'][:80]!r} has {longest} bytes of columns, Milvus takes {TEXT_BYTES}",
            remedy="Leave out long columns of its metadata and index again",
        )
    return {"row": row, VECTOR: descriptor, "record": rest, **own}
