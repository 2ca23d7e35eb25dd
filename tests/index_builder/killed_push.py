"""A push that kills itself at a step, for a process of its own.

Steps are those of `push_version`; "half of the rows" is in the middle of them, "before the manifest" after the other
records.
"""

import os
import signal
from pathlib import Path

from index_builder import push as pushing
from index_builder.push import push_to
from retrieval.index.milvus.records import MANIFEST_NAME, MilvusRecords
from retrieval.index.stores import FolderStore
from tests.milvus_lite import poll_often


def die() -> None:
    """No handler, no `finally`, no flush."""
    os.kill(os.getpid(), signal.SIGKILL)


def push_and_die(indexes: Path, database: Path, step: str) -> None:
    """Push, and die on the way."""
    poll_often()
    pushing._ROWS_AT_ONCE = 5  # type: ignore[misc]
    written = 0

    def on_rows(count: int) -> None:
        nonlocal written
        written += count
        if step == "half of the rows" and written >= 10:
            die()

    write = MilvusRecords.write

    def dying_write(records: MilvusRecords, collection: str, file: str, data: bytes) -> None:
        if step == "before the manifest" and file == MANIFEST_NAME:
            die()
        write(records, collection, file, data)

    MilvusRecords.write = dying_write  # type: ignore[method-assign]
    push_to(
        f"milvus://{database}",
        FolderStore(indexes).open("town"),
        on_rows=on_rows,
        reached=lambda reached: die() if reached == step else None,
    )
