"""The default bundle made anew, once for all tests and processes of a run."""

import fcntl
import os
from pathlib import Path

import pytest

from export.default_bundle import make_default_bundle
from retrieval.bundle import Bundle, open_bundle


@pytest.fixture(scope="session")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """What `make default-bundle` makes of this checkout."""
    base = tmp_path_factory.getbasetemp()
    shared: Path = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / "rebuilt-default-bundle"
    with (shared / "rebuilt-default-bundle.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return open_bundle(folder) if folder.exists() else make_default_bundle(folder)
