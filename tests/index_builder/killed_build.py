"""A build that kills itself at a step, for a process of its own.

The step "describing" is in the middle of the photos; "before CURRENT" and "half of CURRENT" surround its replacement.
"""

import os
import signal
from pathlib import Path

from index_builder.describing import DescribeSettings
from index_builder.update import UpdateSettings, build_index
from index_builder.update_observer import UpdateObserver, UpdateStep
from retrieval import artefact
from retrieval.bundle import open_bundle
from retrieval.describer import Describer
from tests.places import make_places


def die() -> None:
    """No handler, no `finally`, no flush: what a power cut leaves to the process."""
    os.kill(os.getpid(), signal.SIGKILL)


class Killer(UpdateObserver):
    """Ends the process at a step."""

    def __init__(self, step: str) -> None:
        self._step = step

    def described(self, done: int, failed: int) -> None:
        if self._step == "describing":
            die()

    def reached(self, step: UpdateStep) -> None:
        if self._step == step:
            die()


def build_and_die(places: Path, count: int, indexes: Path, step: str) -> None:
    """Build an index of so many photos, and die on the way."""
    if step == "half of CURRENT":
        write_flushed = artefact.write_flushed

        def write_half(path: Path, data: bytes) -> None:
            write_flushed(path, data if path.name != ".CURRENT.tmp" else data[:7])
            if path.name == ".CURRENT.tmp":
                die()

        artefact.write_flushed = write_half
    build_index(
        make_places(places, count, first_seed=50),
        Describer(open_bundle(), threads=1),
        indexes,
        "town",
        UpdateSettings(describe=DescribeSettings(batch_size=2)),
        observer=Killer(step),
    )
