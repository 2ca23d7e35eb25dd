"""One worker at a time for each jobs folder. The kernel releases the lock with the process, however that ends."""

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from retrieval.artefact import storage_errors

_LOOK_EVERY_S: Final = 0.5


@contextlib.contextmanager
def worker_lock(path: Path, stop: threading.Event) -> Iterator[bool]:
    """Hold the worker's lock, waiting for it as long as another worker lives.

    Args:
        path: of the lock file.
        stop: ends the waiting.

    Yields:
        Whether the lock is held; False when `stop` was set first.

    Raises:
        StorageError: the file cannot be made.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield _wait_for(descriptor, stop)
    finally:
        os.close(descriptor)


def _wait_for(descriptor: int, stop: threading.Event) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if stop.wait(_LOOK_EVERY_S):
                return False
        else:
            return True
