"""`kill -9` at every step: what was published stays whole and current, and the next build cleans up."""

import signal
from pathlib import Path
from typing import get_args

import pytest

from index_builder.update import build_index
from index_builder.update_observer import UpdateStep
from retrieval.describer import Describer
from retrieval.errors import IndexNotFoundError
from retrieval.index.folder import published_versions
from retrieval.index.place_index import PlaceIndex
from tests.forked import run_forked
from tests.index_builder.killed_build import build_and_die
from tests.places import make_places

STEPS = [*get_args(UpdateStep), "describing", "half of CURRENT"]


def kill_a_build(folder: Path, step: str) -> None:
    """Build five photos over whatever is published in `folder / "indexes"`, and die at the step."""
    log = folder / "killed.log"
    status = run_forked(build_and_die, folder / "second", 5, folder / "indexes", step, log=log)
    assert status == -signal.SIGKILL, log.read_text()


def assert_clean(town: Path) -> None:
    assert {entry.name for entry in town.iterdir()} == {"CURRENT", "versions", ".lock"}
    assert {entry.name for entry in (town / "versions").iterdir()} == set(published_versions(town))


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_build_leaves_a_whole_version_and_the_next_cleans_up(
    tmp_path: Path, describer: Describer, step: str
) -> None:
    indexes = tmp_path / "indexes"
    town = indexes / "town"
    first = build_index(make_places(tmp_path / "first", 3), describer, indexes, "town").folder.name
    kill_a_build(tmp_path, step)
    after = PlaceIndex.open(town)
    assert (after.count, after.version != first) == ((5, True) if step == "current" else (3, False))
    assert town.joinpath("versions", first).is_dir()
    # A version gets its name only when it is whole.
    for version in published_versions(town):
        PlaceIndex.open(town / "versions" / version)
    third = build_index(make_places(tmp_path / "third", 2), describer, indexes, "town").folder.name
    assert PlaceIndex.open(town).version == third
    assert PlaceIndex.open(town).count == 2
    assert_clean(town)


@pytest.mark.parametrize("step", ["described", "version named"])
def test_a_first_build_that_is_killed_publishes_nothing_and_does_not_block_the_next(
    tmp_path: Path, describer: Describer, step: str
) -> None:
    town = tmp_path / "indexes" / "town"
    kill_a_build(tmp_path, step)
    with pytest.raises(IndexNotFoundError, match="there is no published place index"):
        PlaceIndex.open(town)
    build_index(make_places(tmp_path / "third", 2), describer, tmp_path / "indexes", "town")
    assert PlaceIndex.open(town).count == 2
    assert_clean(town)
