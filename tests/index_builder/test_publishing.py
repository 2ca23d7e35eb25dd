import contextlib
import fcntl
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from index_builder.publish import draft_version
from index_builder.update import UpdateSettings, build_index
from retrieval.artefact import replace_file
from retrieval.describer import Describer
from retrieval.errors import IndexNotFoundError, StorageError
from retrieval.index.folder import activate_version, current_version, prune, published_versions
from retrieval.index.place_index import PlaceIndex
from tests.index_builder.recording_observer import RecordingObserver
from tests.places import make_places
from tests.retrieval.refusal import refused

IN_THE_WAY = "Choose another folder: a file has its name, or that of a folder above it."


def publish(indexes: Path, *, name: str = "town", content: bytes = b"x") -> str:
    """A version of one file, by the protocol alone."""
    with draft_version(indexes, name) as draft:
        (draft.folder / "file").write_bytes(content)
        draft.name_version()
        draft.make_current()
    return draft.version


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_a_draft_is_hidden_until_it_is_named_and_named_until_it_is_current(tmp_path: Path) -> None:
    first = publish(tmp_path)
    town = tmp_path / "town"
    with draft_version(tmp_path, "town") as draft:
        (draft.folder / "file").write_bytes(b"second")
        assert published_versions(town) == [first]
        draft.name_version()
        assert draft.published_folder == town / "versions" / draft.version
        assert published_versions(town) == [first, draft.version]
        assert current_version(town) == first
        draft.make_current()
        assert current_version(town) == draft.version
    assert tree(town) == {
        "CURRENT", ".lock", "versions",
        f"versions/{first}", f"versions/{first}/file", f"versions/{draft.version}", f"versions/{draft.version}/file",
    }  # fmt: skip


def test_version_names_sort_by_age_and_never_repeat(tmp_path: Path) -> None:
    versions = [publish(tmp_path) for _ in range(20)]
    assert len(set(versions)) == 20
    stamps = [version[:23] for version in versions]
    assert stamps == sorted(stamps)


def test_a_draft_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    with draft_version(tmp_path / "indexes", "town") as draft:
        (draft.folder / "file").write_bytes(b"x")
    assert tree(tmp_path / "indexes") == set()


@pytest.mark.parametrize("named", [False, True])
def test_a_draft_that_fails_leaves_the_old_version_alone(tmp_path: Path, named: bool) -> None:
    first = publish(tmp_path)
    before = tree(tmp_path)
    with contextlib.suppress(ZeroDivisionError), draft_version(tmp_path, "town") as draft:
        (draft.folder / "file").write_bytes(b"x")
        if named:
            draft.name_version()
        raise ZeroDivisionError
    assert tree(tmp_path) == before
    assert current_version(tmp_path / "town") == first


def test_a_failed_first_build_touches_nothing_that_was_there_before(tmp_path: Path) -> None:
    """`sightfix index photos --indexes . --name photos`: the photos lie where the index would."""
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "holiday.jpg").write_bytes(b"irreplaceable")
    (photos / "versions").mkdir()
    (photos / "versions" / "notes.txt").write_bytes(b"mine")
    with pytest.raises(ZeroDivisionError), draft_version(tmp_path, "photos"):
        raise ZeroDivisionError
    assert tree(tmp_path) == {"photos", "photos/holiday.jpg", "photos/versions", "photos/versions/notes.txt"}


def test_two_builds_of_one_index_exclude_each_other(tmp_path: Path, describer: Describer) -> None:
    text = f"{tmp_path / 'town'}: another process is building this index. Wait for it, or stop it."
    with draft_version(tmp_path, "town") as draft:
        (draft.folder / "file").write_bytes(b"x")
        with refused(StorageError, text, "build_in_progress"):
            build_index(make_places(tmp_path / "photos", 1), describer, tmp_path, "town")
        assert (draft.folder / "file").read_bytes() == b"x"
        assert publish(tmp_path, name="campus")
        draft.name_version()
        draft.make_current()
    assert current_version(tmp_path / "town") == draft.version
    assert publish(tmp_path)


def test_what_killed_builds_left_is_removed_by_the_next(tmp_path: Path) -> None:
    first = publish(tmp_path)
    town = tmp_path / "town"
    for leftover in (".tmp-2026-01-01T00-00-00.000Z-abcdef", ".tmp-pruned-2025"):
        (town / "versions" / leftover).mkdir()
        (town / "versions" / leftover / "vectors.faiss").write_bytes(b"half")
    (town / ".CURRENT.tmp").write_bytes(b"2026")
    second = publish(tmp_path)
    assert published_versions(town) == [first, second]
    assert {entry.name for entry in (town / "versions").iterdir()} == {first, second}
    assert {entry.name for entry in town.iterdir()} == {"CURRENT", ".lock", "versions"}


@pytest.mark.parametrize(("keep", "left"), [(1, 1), (2, 2), (4, 4), (5, 5), (9, 5), (0, 1)])
def test_prune_keeps_the_latest_versions(tmp_path: Path, keep: int, left: int) -> None:
    versions = [publish(tmp_path) for _ in range(5)]
    ordered = published_versions(tmp_path / "town")
    assert sorted(versions) == ordered
    (tmp_path / "town" / "CURRENT").write_text(ordered[-1])
    assert prune(tmp_path / "town", keep) == ordered[: 5 - left]
    assert published_versions(tmp_path / "town") == ordered[5 - left :]
    assert {entry.name for entry in (tmp_path / "town" / "versions").iterdir()} == set(ordered[5 - left :])


def test_prune_never_removes_the_current_version(tmp_path: Path) -> None:
    for _ in range(4):
        publish(tmp_path)
    town = tmp_path / "town"
    oldest, *_, newest = published_versions(town)
    (town / "CURRENT").write_text(f"{oldest}\n")
    prune(town, 2)
    assert published_versions(town) == [oldest, newest]
    assert current_version(town) == oldest


def test_builds_keep_versions_to_roll_back_to(tmp_path: Path, describer: Describer) -> None:
    places = make_places(tmp_path, 1)
    indexes = tmp_path / "indexes"
    settings = UpdateSettings(keep=2)
    built = [build_index(places, describer, indexes, "town", settings).folder.name for _ in range(3)]
    town = indexes / "town"
    assert published_versions(town) == built[1:]
    assert PlaceIndex.open(town).version == built[2]
    (town / "CURRENT").write_text(built[1])
    assert PlaceIndex.open(town).version == built[1]
    # Publishing after a rollback goes forward again, and never changes a published version.
    before = {path: path.read_bytes() for path in (town / "versions" / built[2]).rglob("*") if path.is_file()}
    again = build_index(places, describer, indexes, "town", settings).folder.name
    assert PlaceIndex.open(town).version == again
    assert published_versions(town) == [built[2], again]
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("deep", [False, True])
def test_a_file_in_the_way_is_an_error(tmp_path: Path, deep: bool) -> None:
    indexes = tmp_path / "indexes"
    if deep:
        indexes.mkdir()
    (indexes / "town" if deep else indexes).write_bytes(b"a file")
    text = f"{indexes / 'town'}: writing failed (Not a directory). {IN_THE_WAY}"
    with refused(StorageError, text, "storage"), draft_version(indexes, "town"):
        pytest.fail("a draft below a file")


def test_a_reader_sees_a_whole_version_at_every_moment(tmp_path: Path, describer: Describer) -> None:
    places = make_places(tmp_path, 2)
    indexes = tmp_path / "indexes"
    first = build_index(places, describer, indexes, "town").folder.name
    seen: list[str] = []
    observer = RecordingObserver(lambda _: seen.append(PlaceIndex.open(indexes / "town").version))
    build_index(places, describer, indexes, "town", observer=observer)
    second = PlaceIndex.open(indexes / "town").version
    assert [version for version, _ in itertools.groupby(seen)] == [first, second]


OUT_OF_FILES = """
import contextlib, os, resource, sys
from pathlib import Path
from index_builder.publish import draft_version
from retrieval.index.folder import current_version

held = []
with contextlib.suppress(RuntimeError), draft_version(Path(sys.argv[1]), "a") as draft:
    (draft.folder / "content").write_text("whole")
    draft.name_version()
    draft.make_current()
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 4096))
    with contextlib.suppress(OSError):
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
    raise RuntimeError("a failure after the version became current")
for descriptor in held:
    os.close(descriptor)
print(current_version(Path(sys.argv[1]) / "a") == draft.version)
"""


def test_a_version_in_force_is_never_removed_though_nothing_can_be_opened(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_FILES, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


def test_prune_leaves_a_version_that_becomes_current_at_this_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rollback between the look at CURRENT and the removal: the version comes back."""
    oldest, *_ = (publish(tmp_path), publish(tmp_path), publish(tmp_path))
    town = tmp_path / "town"
    rename = Path.rename

    def after_a_rollback(path: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        activate_version(town, oldest)
        return path.rename(target)

    monkeypatch.setattr(Path, "rename", after_a_rollback)
    removed = prune(town, 1)
    assert oldest not in removed
    assert current_version(town) == oldest


def test_a_version_that_is_pruned_at_this_moment_does_not_become_current(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    oldest, newest = publish(tmp_path), publish(tmp_path)
    town = tmp_path / "town"

    def first_prune(path: Path, data: bytes) -> None:
        monkeypatch.setattr("retrieval.index.folder.replace_file", replace_file)
        assert prune(town, 1) == [oldest]
        replace_file(path, data)

    monkeypatch.setattr("retrieval.index.folder.replace_file", first_prune)
    with pytest.raises(IndexNotFoundError, match="was removed at this moment"):
        activate_version(town, oldest)
    assert current_version(town) == newest


def test_prune_leaves_a_version_that_is_about_to_become_current(tmp_path: Path) -> None:
    first = publish(tmp_path)
    with draft_version(tmp_path, "town") as draft:
        (draft.folder / "file").write_bytes(b"x")
        draft.name_version()
        assert prune(tmp_path / "town", 1) == []
        draft.make_current()
    assert current_version(tmp_path / "town") == draft.version
    assert published_versions(tmp_path / "town") == [first, draft.version]


def test_what_another_process_pruned_already_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = [publish(tmp_path) for _ in range(3)]
    town = tmp_path / "town"
    (town / "CURRENT").write_text(f"{max(versions)}\n")
    listed = published_versions(town)
    assert prune(town, 1) == listed[:2]
    monkeypatch.setattr("retrieval.index.folder.published_versions", lambda _: listed)
    assert prune(town, 1) == []


def test_versions_that_cannot_be_pruned_do_not_make_a_published_one_fail(
    tmp_path: Path, describer: Describer, monkeypatch: pytest.MonkeyPatch
) -> None:
    places, indexes = make_places(tmp_path, 1), tmp_path / "indexes"
    build_index(places, describer, indexes, "town")

    def refuses(folder: Path, keep: int) -> list[str]:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("index_builder.publish.prune", refuses)
    observer = RecordingObserver()
    built = build_index(places, describer, indexes, "town", UpdateSettings(keep=1), observer=observer)
    assert current_version(indexes / "town") == built.folder.name
    assert "Permission denied" in observer.not_pruned_for[0]


def test_two_first_builds_never_hold_the_lock_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first build fails and removes its lock between the second's opening of it and locking it."""
    flock = fcntl.flock
    first = contextlib.ExitStack()
    first.enter_context(draft_version(tmp_path, "town"))

    def after_the_first_failed(descriptor: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        first.close()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", after_the_first_failed)
    with draft_version(tmp_path, "town") as draft:
        assert draft.folder.is_dir()
        with pytest.raises(StorageError, match="another process"), draft_version(tmp_path, "town"):
            pytest.fail("two builds of one index")
    assert not (tmp_path / "town").exists()


def test_opening_goes_on_to_the_next_version_when_its_own_is_pruned(
    tmp_path: Path, describer: Describer, monkeypatch: pytest.MonkeyPatch
) -> None:
    places, indexes = make_places(tmp_path, 1), tmp_path / "indexes"
    build_index(places, describer, indexes, "town")
    named = current_version

    def and_then_another_is_published(folder: Path) -> str:
        monkeypatch.setattr("retrieval.index.place_index.current_version", named)
        version = named(folder)
        build_index(places, describer, indexes, "town", UpdateSettings(keep=1))
        return version

    monkeypatch.setattr("retrieval.index.place_index.current_version", and_then_another_is_published)
    opened = PlaceIndex.open(indexes / "town")
    assert [opened.version] == published_versions(indexes / "town")
