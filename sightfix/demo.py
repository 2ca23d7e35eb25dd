"""The demo: a toy town is drawn, indexed, served, and asked where one of its photos was taken."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from index_builder.update import UpdateSettings, build_index
from index_builder.update_observer import UpdateObserver
from retrieval.bundle import open_bundle
from retrieval.describer import Describer
from retrieval.errors import ArtefactError, IndexNotFoundError, ServerError
from retrieval.geo import Position, haversine_m
from retrieval.index.folder import find_index
from retrieval.index.place_index import PlaceIndex
from retrieval.references import open_references
from retrieval.references.reference import Reference
from service.answer import LocalizeAnswer
from sightfix.client import SightfixClient
from sightfix.console import progress_bar
from sightfix.toy_town import town_for, write_survey

INDEX_NAME: Final = "toy-town"
DEFAULT_PORT: Final = 8080
_READY_LIMIT_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class DemoTown:
    """The town's photos on disk.

    Attributes:
        folder: holds ``references/``, ``queries/``, their CSVs, and ``indexes/``.
        indexes: of the demo.
        queries: photos with exact positions that are not among the references.
    """

    folder: Path
    indexes: Path
    queries: list[Reference]


def prepare_town(folder: Path, *, references: int, queries: int) -> DemoTown:
    """Draw the town and index it; what is there already from an earlier demo of the same size is used again.

    Args:
        folder: where to write.
        references, queries: how many photos at least.
    """
    with progress_bar("Drawing the toy town", references + queries) as advance:
        survey = write_survey(town_for(references), folder, references=references, queries=queries, on_progress=advance)
    indexes = folder / "indexes"
    source = open_references(f"csv:{survey.references_csv}")
    if not _is_indexed(indexes, len(source)):
        with progress_bar("Describing its photos", len(source)) as advance:
            settings = UpdateSettings(adapt="auto")
            build_index(source, Describer(open_bundle()), indexes, INDEX_NAME, settings, observer=_Bar(advance))
    return DemoTown(folder, indexes, list(open_references(f"csv:{survey.queries_csv}")))


class _Bar(UpdateObserver):
    """Advances a progress bar."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self._done = 0

    def described(self, done: int, failed: int) -> None:
        self._advance(done - self._done)
        self._done = done


@contextlib.contextmanager
def demo_server(town: DemoTown, port: int | None = None) -> Iterator[str]:
    """Run `sightfix serve` on the town in a process of its own; yields its URL when it is ready.

    Args:
        town: what to serve.
        port: where; None takes 8080, or a free one when that is taken.

    Raises:
        ServerError: the server did not become ready; its own words are in the log beside the town.
    """
    chosen = _free_port(DEFAULT_PORT) if port is None else port
    url = f"http://127.0.0.1:{chosen}"
    log = town.folder / "server.log"
    arguments = ["serve", "--index", INDEX_NAME, "--indexes", str(town.indexes), "--port", str(chosen)]
    with log.open("w") as stream:
        # -P: nothing is imported from the current folder, which may hold a file named like one of our packages.
        command = [sys.executable, "-P", "-m", "sightfix.cli", *arguments]
        process = subprocess.Popen(command, stdout=stream, stderr=stream)  # noqa: S603 - our own command
    try:
        _wait_until_ready(url, process, log)
        yield url
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def true_distance_m(answer: LocalizeAnswer, truth: Position) -> float:
    """How far the fix is from where the photo was taken, metres; infinite without a fix."""
    if answer.fix is None:
        return float("inf")
    return float(haversine_m(answer.fix.lat, answer.fix.lon, truth.lat, truth.lon))


def _is_indexed(indexes: Path, count: int) -> bool:
    try:
        index = PlaceIndex.open(find_index(indexes, INDEX_NAME))
        held = index.held_bundle()
    except (IndexNotFoundError, ArtefactError):
        return False
    adaptation = held.manifest.adaptation if held is not None else None
    made_from = adaptation.base_fingerprint if adaptation is not None else index.manifest.bundle.fingerprint
    return made_from == open_bundle().fingerprint and index.count == count


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _READY_LIMIT_S
    with SightfixClient(url) as client:
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(ServerError):
                if client.is_ready():
                    return
            time.sleep(0.05)
    raise ServerError("the demo's server did not become ready", where=url, remedy=f"Read {log}")


def _free_port(preferred: int) -> int:
    for port in (preferred, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise ServerError("no loopback port is free", remedy="Give one with --port")
