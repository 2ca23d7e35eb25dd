"""A claim on a version that is being pushed: nobody else pushes it or takes it for a leftover meanwhile."""

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from retrieval.errors import SightfixError, StorageError
from retrieval.stores.milvus.claim import CLAIM_NAME, Claim, read_claim
from retrieval.stores.milvus.records import MilvusRecords

_log = logging.getLogger("sightfix.index")

_AGAIN_S: Final = 30.0


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
        while not done.wait(_AGAIN_S):
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
