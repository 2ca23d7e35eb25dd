"""The browser that the web page is tested in: one of the system's, never downloaded."""

import os
import shutil
from typing import Final

import pytest

# In the environment of a server SIGHTFIX_… would be an unknown setting, so this has another name.
VARIABLE: Final = "CHROMIUM"
_NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# Quiet: it must not call home, nor need a GPU; without its sandbox, which root cannot have.
FLAGS: Final = (
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", *(("--no-sandbox",) if os.geteuid() == 0 else ()),
)  # fmt: skip


def chromium() -> str:
    """The path of Chromium or Chrome; without one, tests are skipped, and fail in CI."""
    named = os.environ.get(VARIABLE)
    found = named or next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        message = f"no Chromium on this machine: `make browser` installs one, {VARIABLE}=/path/to/it names one"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found
