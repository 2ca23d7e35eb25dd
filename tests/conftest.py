"""Fixtures that every floor's tests share."""

import os
from pathlib import Path

import pytest

PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def photos_root() -> Path:
    """The folder of real photo sets beside the checkout; missing is a failure in CI and a skip elsewhere."""
    if not (PHOTOS / "README.md").is_file():
        message = "the real photo sets are not beside the checkout (../shared/data)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return PHOTOS
