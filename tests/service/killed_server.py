"""A server that kills itself where it first gets to, for a process of its own.

STEP `never` is an ordinary server.
"""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from retrieval import artefact
from retrieval.index import folder as index_folder
from retrieval.index.place_index import PlaceIndex
from service import server
from service.jobs.service import JobService
from service.jobs.store import JobDatabase, JobStore
from service.serving import live_localizer
from service.serving.live_localizer import LiveLocalizer
from service.serving.loading import IndexWatch
from service.serving.localization import LocalizationService

STARTING = ["socket open", "index opened", "model warm", "first probe"]
ACTIVATING = ["half of CURRENT", "current", "new version opened", "swapped"]
SUBMITTING = ["job half written", "job written"]
LEAVING = ["in a batch", "draining", "jobs stopped", "stopped"]


def serve_and_die(step: str, arguments: Sequence[str]) -> None:
    """`sightfix serve` with some arguments, which dies on the way."""

    def at(reached: str) -> None:
        """No handler, no `finally`, no flush: what a power cut leaves to the process."""
        if reached == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(owner: Any, name: str, before: str | None, after: str | None) -> None:
        made: Callable[..., Any] = getattr(owner, name)

        def wrapped(*given: Any, **named: Any) -> Any:
            if before:
                at(before)
            result = made(*given, **named)
            if after:
                at(after)
            return result

        setattr(owner, name, wrapped)

    around(server, "open_socket", None, "socket open")
    around(PlaceIndex, "check_bundle", "index opened", None)
    around(live_localizer, "choose_probe", "model warm" if step == "model warm" else None, None)
    around(live_localizer, "run_probe", "first probe" if step == "first probe" else None, None)
    around(IndexWatch, "look", "current", "swapped")
    around(LocalizationService, "_run_batch", "in a batch", None)
    around(LiveLocalizer, "begin_shutdown", None, "draining")
    around(JobService, "stop", None, "jobs stopped")
    around(LocalizationService, "stop", None, "stopped")
    around(JobStore, "submit", None, "job written")
    _die_between(at)
    from sightfix.cli import main as run

    sys.argv = ["sightfix", "serve", *arguments]
    run()


def _die_between(at: Callable[[str], None]) -> None:
    """In the middle of a file and of a transaction, and between opening a version and serving it."""
    flushed = artefact.write_flushed

    def write_flushed(path: Path, data: bytes) -> None:
        if path.name == ".CURRENT.tmp":
            flushed(path, data[:7])
            at("half of CURRENT")
        flushed(path, data)

    artefact.write_flushed = write_flushed
    assert index_folder.replace_file is artefact.replace_file

    swap = LiveLocalizer._swap

    def dying_swap(live: LiveLocalizer, version: str) -> None:
        open_index = PlaceIndex.open

        def opened(*given: Any, **named: Any) -> PlaceIndex:
            index = open_index(*given, **named)
            at("new version opened")
            return index

        PlaceIndex.open = opened  # type: ignore[method-assign]
        swap(live, version)

    LiveLocalizer._swap = dying_swap  # type: ignore[method-assign]

    transaction = JobDatabase.transaction

    @contextmanager
    def dying_transaction(database: JobDatabase) -> Any:
        with transaction(database) as connection:
            yield connection
            if connection.execute("SELECT 1 FROM jobs LIMIT 1").fetchone() is not None:
                at("job half written")  # rows are there, the commit is not

    wrapped: Callable[[JobDatabase], AbstractContextManager[Any]] = dying_transaction
    JobDatabase.transaction = wrapped  # type: ignore[assignment]
