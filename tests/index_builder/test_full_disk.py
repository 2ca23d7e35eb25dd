"""A disk that is full at the worst moment: nothing is published, the old version answers, what is described remains."""

import gc
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from index_builder.index_design import IndexDesign
from index_builder.publish import WORK_NAME
from index_builder.update import UpdateSettings, build_index
from retrieval.describer import Describer
from retrieval.errors import StorageError
from retrieval.index.folder import published_versions
from retrieval.index.place_index import PlaceIndex
from tests.index_builder.counting_describer import CountingDescriber
from tests.index_builder.recording_observer import RecordingObserver
from tests.places import make_places
from tests.retrieval.refusal import refused

# Which step is the last before each file is written.
BEFORE = {
    ".part-000000.npy.tmp": "planned",
    "vectors.faiss": "described",
    "references.parquet": "vectors written",
    "manifest.json": "references written",
    ".CURRENT.tmp": "version named",
}


def tree(folder: Path) -> dict[str, bytes]:
    """All files, but for those of the hidden work folder."""
    paths = (path for path in folder.rglob("*") if path.is_file() and WORK_NAME not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def place_of(town: Path, name: str) -> Path:
    """The folder that a file will be written to."""
    if name.startswith(".part"):
        return town / WORK_NAME
    return town if name == ".CURRENT.tmp" else next((town / "versions").glob(".tmp-*"))


def assert_nothing_changes(
    indexes: Path, photos: Path, describer: Describer, name: str, on_step: Callable[[str], None]
) -> None:
    """A build over a published version fails for want of space, and leaves every published file as it was."""
    town = indexes / "town"
    build_index(make_places(photos / "first", 2), describer, indexes, "town")
    before = tree(indexes)
    text = (
        f"{town / WORK_NAME if name.startswith('.part') else town}: writing failed (No space left on device). "
        "Free some space or choose another folder, then run the command again; nothing was published."
    )
    settings = UpdateSettings(design=IndexDesign(storage="fp32"))
    with refused(StorageError, text, "storage"):
        build_index(
            make_places(photos / "second", 3), describer, indexes, "town", settings, observer=RecordingObserver(on_step)
        )
    assert tree(indexes) == before
    assert PlaceIndex.open(town).count == 2
    assert {entry.name for entry in (town / "versions").iterdir()} == set(published_versions(town))


@pytest.mark.parametrize("name", BEFORE)
def test_no_space_for_any_one_file(tmp_path: Path, describer: Describer, name: str) -> None:
    """/dev/full stands where the file would be: the kernel answers every write with ENOSPC."""
    town = tmp_path / "indexes" / "town"

    def fill(step: str) -> None:
        if step == BEFORE[name]:
            (place_of(town, name) / name).symlink_to("/dev/full")

    assert_nothing_changes(tmp_path / "indexes", tmp_path, describer, name, fill)
    again = build_index(make_places(tmp_path / "third", 4), describer, tmp_path / "indexes", "town")
    assert PlaceIndex.open(town).version == again.folder.name
    assert not (town / WORK_NAME).exists()


@pytest.mark.parametrize("name", BEFORE)
def test_no_space_in_a_first_build_leaves_only_what_was_described(
    tmp_path: Path, counting: CountingDescriber, name: str
) -> None:
    indexes = tmp_path / "indexes"
    town = indexes / "town"

    def fill(step: str) -> None:
        if step == BEFORE[name]:
            (place_of(town, name) / name).symlink_to("/dev/full")

    places = make_places(tmp_path, 2)
    with pytest.raises(StorageError, match="No space left on device"):
        build_index(places, counting, indexes, "town", observer=RecordingObserver(fill))
    if name.startswith(".part"):
        assert list(indexes.iterdir()) == []
        return
    parts = {"part-000000.npy", "part-000000.json"}
    assert {path.name for path in town.rglob("*")} == {WORK_NAME, *parts, "versions", ".lock"}
    before = counting.described
    build_index(places, counting, indexes, "town")
    assert counting.described - before == 2 * 2, "those of the quality check"


@pytest.fixture(scope="module")
def counting() -> CountingDescriber:
    return CountingDescriber()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of 8 MiB: a bundle and little more."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a tmpfs needs root; the /dev/full tests ran all the same")
    yield folder
    gc.collect()
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("name", BEFORE)
def test_a_real_disk_that_fills_up(small_disk: Path, tmp_path: Path, describer: Describer, name: str) -> None:
    """Another program takes the last byte just before the file is written."""
    ballast = small_disk / "ballast"

    def fill(step: str) -> None:
        if step == BEFORE[name]:
            with ballast.open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    return

    assert_nothing_changes(small_disk / "indexes", tmp_path, describer, name, fill)
    ballast.unlink()
    build_index(make_places(tmp_path / "third", 4), describer, small_disk / "indexes", "town")
    assert PlaceIndex.open(small_disk / "indexes" / "town").count == 4
