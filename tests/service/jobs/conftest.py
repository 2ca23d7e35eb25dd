"""A town of six photos, three of them indexed."""

from pathlib import Path

import pytest

from index_builder.update import build_index
from retrieval.describer import Describer
from retrieval.references import open_references
from tests.service.jobs.town import Town


@pytest.fixture
def town(tmp_path: Path) -> Town:
    """Folders only."""
    town = Town(tmp_path)
    town.roots.mkdir()
    return town


@pytest.fixture
def indexed(town: Town, describer: Describer) -> Town:
    """Six photos, the first three in the index; the table lists all six."""
    town.write_photos(6, listed=3)
    build_index(open_references(f"csv:{town.roots}/town/refs.csv"), describer, town.indexes, "town")
    town.write_photos(6)
    return town
