"""A build that kills itself at a step, for a process of its own.

The step "describing" is in the middle of the photos; "before CURRENT" and "half of CURRENT" surround its replacement.
"""

import os
import signal
from pathlib import Path

from index_builder.describing import DescribeSettings
from index_builder.update import BuildSettings, build_index
from retrieval import artefact
from retrieval.bundle import open_bundle
from retrieval.describer import Describer
from tests.places import make_places


def die() -> None:
    """No handler, no `finally`, no flush: what a power cut leaves to the process."""
    os.kill(os.getpid(), signal.SIGKILL)


def build_and_die(places: Path, count: int, indexes: Path, step: str) -> None:
    """Build an index of so many photos, and die on the way."""
    if step == "half of CURRENT":
        write_flushed = artefact.write_flushed

        def write_half(path: Path, data: bytes) -> None:
            write_flushed(path, data if path.suffix != ".tmp" else data[:7])
            if path.suffix == ".tmp":
                die()

        artefact.write_flushed = write_half
    build_index(
        make_places(places, count, first_seed=50),
        Describer(open_bundle(), threads=1),
        indexes,
        "town",
        BuildSettings(describe=DescribeSettings(batch_size=2)),
        on_progress=lambda _: die() if step == "describing" else None,
        on_step=lambda reached: die() if reached == step else None,
    )
