"""Every version holds the bundle that described it: one copy on the disk, whole whatever happens to the others."""

import errno
import os
import shutil
import signal
from pathlib import Path

import pytest

from index_builder.maintenance.parquet import export_index, import_index
from index_builder.maintenance.versions import verify_version
from index_builder.publish import bytes_not_held
from index_builder.update import (
    UpdateSettings,
    append_references,
    build_index,
    bundle_for_build,
    remove_references,
)
from retrieval.artefact import record_files
from retrieval.bundle import HELD_NAME, Bundle, open_bundle
from retrieval.describer import Describer
from retrieval.errors import BundleError, ModelIndexMismatchError, StorageError
from retrieval.index.folder import prune
from retrieval.index.place_index import PlaceIndex
from retrieval.index.stores import FolderStore
from tests.forked import run_forked
from tests.index_builder.killed_build import build_and_die
from tests.index_builder.recording_observer import RecordingObserver
from tests.places import Places, make_places
from tests.retrieval.engines.colour_bundle import write_colour_bundle
from tests.retrieval.other_bundle import copy_bundle, flip_byte, write_other_bundle
from tests.retrieval.refusal import refused


@pytest.fixture
def colours(tmp_path: Path) -> Bundle:
    """A bundle of a few hundred bytes, with two graphs."""
    return write_colour_bundle(tmp_path / "colours")


@pytest.fixture
def coloured(colours: Bundle) -> Describer:
    return Describer(colours, threads=1)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return make_places(tmp_path, 6)


def build(places: Places, describer: Describer, indexes: Path, **settings: int) -> PlaceIndex:
    return PlaceIndex.open(build_index(places, describer, indexes, "town", UpdateSettings(**settings)).folder)


def held_files(index: PlaceIndex) -> dict[str, Path]:
    folder = index.folder / HELD_NAME
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def held(index: PlaceIndex) -> Bundle:
    found = index.held_bundle()
    assert found is not None
    return found


def no_links(source: Path, target: Path) -> None:
    raise OSError(errno.EPERM, "no links here")


def test_a_first_version_holds_a_copy(places: Places, coloured: Describer, colours: Bundle, tmp_path: Path) -> None:
    index = build(places, coloured, tmp_path / "indexes")
    assert index.manifest.bundle.held
    assert held(index).manifest == colours.manifest
    assert set(held_files(index)) == {*colours.manifest.files, "manifest.json", "manifest.sha256"}
    assert not held(index).graph_path("fp32").samefile(colours.graph_path("fp32"))
    shutil.rmtree(colours.folder)
    assert index.open_bundle().manifest == colours.manifest


def test_engines_compiled_of_a_bundle_stay_where_they_are(places: Places, colours: Bundle, tmp_path: Path) -> None:
    plan = colours.folder / "engines" / "sm90-10.9-fp16" / "model.plan"
    plan.parent.mkdir(parents=True)
    plan.write_bytes(bytes(1000))
    index = build(places, Describer(colours, threads=1), tmp_path / "indexes")
    assert "engines" not in {path.name for path in (index.folder / HELD_NAME).iterdir()}


def test_updates_of_all_kinds_hold_the_same_files(places: Places, coloured: Describer, tmp_path: Path) -> None:
    indexes = tmp_path / "indexes"
    first = build(places, coloured, indexes)
    more = make_places(tmp_path, 8)
    append_references(more, coloured, indexes, "town")
    appended = PlaceIndex.open(indexes / "town")
    remove_references(["photos/0000.jpg"], coloured, indexes, "town")
    removed = PlaceIndex.open(indexes / "town")
    rebuilt = build(more, coloured, indexes, keep=4)
    assert (appended.count, removed.count, rebuilt.count) == (8, 7, 8)
    for index in (appended, removed, rebuilt):
        for name in held(first).manifest.files:
            assert held_files(index)[name].samefile(held_files(first)[name]), name


def test_removing_old_versions_leaves_the_bundle(
    places: Places, coloured: Describer, colours: Bundle, tmp_path: Path
) -> None:
    indexes = tmp_path / "indexes"
    first = build(places, coloured, indexes)
    last = build(places, coloured, indexes)
    assert prune(indexes / "town", 1) == [first.version]
    assert held(last).manifest == colours.manifest
    assert held(last).graph_path("fp32").stat().st_nlink == 1


def test_a_disk_without_links_holds_copies(
    places: Places, coloured: Describer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build(places, coloured, tmp_path / "indexes")
    monkeypatch.setattr(os, "link", no_links)
    second = build(places, coloured, tmp_path / "indexes")
    assert held(second).manifest == held(first).manifest
    assert not held(second).graph_path("fp32").samefile(held(first).graph_path("fp32"))


def test_another_bundle_is_copied_and_the_old_one_stays_with_its_version(
    places: Places, coloured: Describer, colours: Bundle, tmp_path: Path
) -> None:
    first = build(places, coloured, tmp_path / "indexes")
    other = write_other_bundle(colours, tmp_path / "other")
    second = build(places, Describer(other, threads=1), tmp_path / "indexes")
    assert (held(first).name, held(second).name) == ("mean-colour", "other")
    # The graphs are the same file; what is done before them is not.
    assert held(second).graph_path("fp32").samefile(held(first).graph_path("fp32"))
    third = build(places, coloured, tmp_path / "indexes")
    assert held(third).manifest == colours.manifest


def test_damage_is_not_linked_to(places: Places, coloured: Describer, colours: Bundle, tmp_path: Path) -> None:
    first = build(places, coloured, tmp_path / "indexes")
    flip_byte(held_files(first)["model.onnx"])
    second = build(places, coloured, tmp_path / "indexes")
    assert held(second).manifest == colours.manifest
    assert held_files(second)["model.fp16.onnx"].samefile(held_files(first)["model.fp16.onnx"])


def test_a_damaged_bundle_is_noticed_by_verify(places: Places, coloured: Describer, tmp_path: Path) -> None:
    index = build(places, coloured, tmp_path / "indexes")
    store = FolderStore(tmp_path / "indexes")
    assert verify_version(store, "town", index.version).whole
    assert "bundle" in verify_version(store, "town", index.version).checked
    damaged = held_files(index)["model.onnx"]
    flip_byte(damaged)
    problem = verify_version(store, "town", index.version).problem
    assert problem is not None
    assert problem.startswith(f"{damaged}: the file is damaged: its SHA-256 is ")
    shutil.rmtree(index.folder / HELD_NAME)
    problem = verify_version(store, "town", index.version).problem
    assert problem is not None
    assert problem.startswith(f"{index.folder / HELD_NAME}: there is no readable manifest.json")


def test_a_bundle_of_another_version_is_refused(
    places: Places, coloured: Describer, colours: Bundle, tmp_path: Path
) -> None:
    index = build(places, coloured, tmp_path / "indexes")
    shutil.rmtree(index.folder / HELD_NAME)
    other = write_other_bundle(colours, index.folder / HELD_NAME)
    text = (
        f"{index.folder / HELD_NAME}: this is another bundle ({other.fingerprint[:12]}) than the one that described "
        f"the references ({colours.fingerprint[:12]}). "
        "Copy the version again from where it was made, or build it again."
    )
    with refused(BundleError, text, "bundle_damaged"):
        index.open_bundle()


def test_a_place_index_and_a_version_name_the_bundle_they_hold(
    places: Places, coloured: Describer, colours: Bundle, tmp_path: Path
) -> None:
    first = build(places, coloured, tmp_path / "indexes")
    other = write_other_bundle(colours, tmp_path / "other")
    build(places, Describer(other, threads=1), tmp_path / "indexes")
    assert open_bundle(tmp_path / "indexes" / "town").fingerprint == other.fingerprint
    assert open_bundle(first.folder).fingerprint == colours.fingerprint


def test_which_bundle_an_index_is_made_with(
    places: Places, coloured: Describer, colours: Bundle, bundle: Bundle, tmp_path: Path
) -> None:
    indexes = tmp_path / "indexes"
    assert bundle_for_build(indexes, "town") == bundle
    assert bundle_for_build(indexes, "town", of_a_first=colours.folder) == colours
    build(places, coloured, indexes)
    other = write_other_bundle(colours, tmp_path / "other")
    assert bundle_for_build(indexes, "town").manifest == colours.manifest
    assert bundle_for_build(indexes, "town", of_a_first=other.folder).manifest == colours.manifest
    assert bundle_for_build(indexes, "town", other.folder) == other
    flip_byte(held_files(PlaceIndex.open(indexes / "town"))["model.onnx"])
    assert bundle_for_build(indexes, "town", of_a_first=colours.folder) == colours, "the same, and whole"
    with pytest.raises(BundleError, match=r"model\.onnx: the file is damaged.*Name the bundle to describe with"):
        bundle_for_build(indexes, "town")
    (indexes / "town" / "CURRENT").unlink()
    assert bundle_for_build(indexes, "town") == bundle


def test_damage_to_a_version_does_not_change_its_model(
    places: Places, coloured: Describer, colours: Bundle, tmp_path: Path
) -> None:
    indexes = tmp_path / "indexes"
    index = build(places, coloured, indexes)
    table = index.folder / "references.parquet"
    table.write_bytes(table.read_bytes()[:-10])
    assert bundle_for_build(indexes, "town").manifest == colours.manifest
    flip_byte(index.folder / "manifest.json")
    assert bundle_for_build(indexes, "town").manifest == colours.manifest
    # Nothing tells any more.
    shutil.rmtree(index.folder / HELD_NAME)
    with pytest.raises(BundleError, match=r"nothing says which bundle.*Name the bundle to describe with: --bundle"):
        bundle_for_build(indexes, "town", of_a_first=colours.folder)
    assert bundle_for_build(indexes, "town", colours.folder) == colours
    (indexes / "town" / "CURRENT").write_text("2026")
    with pytest.raises(BundleError, match=r"'2026', which does not exist\. Name the bundle to describe with: --bundle"):
        bundle_for_build(indexes, "town")


@pytest.mark.parametrize("links", [True, False])
def test_room_is_kept_for_what_will_be_copied(
    places: Places, coloured: Describer, colours: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    versions = tmp_path / "indexes" / "town" / "versions"
    versions.mkdir(parents=True)
    everything = sum(record.size for record in colours.manifest.files.values())
    assert bytes_not_held(versions, colours) == everything
    build(places, coloured, tmp_path / "indexes")
    before = sorted(versions.iterdir())
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    assert bytes_not_held(versions, colours) == (0 if links else everything)
    assert sorted(versions.iterdir()) == before


def test_the_describer_of_an_adapted_bundle_is_closed_by_the_update_that_opened_it(
    tmp_path: Path, describer: Describer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else two engines would stay in the memory of a GPU."""
    closed: list[Bundle] = []
    close = Describer.close

    def recorded(self: Describer) -> None:
        closed.append(self.bundle)
        close(self)

    monkeypatch.setattr(Describer, "close", recorded)
    settings = UpdateSettings(adapt="auto")
    for _ in range(2):
        index = PlaceIndex.open(
            build_index(make_places(tmp_path, 12), describer, tmp_path / "indexes", "town", settings).folder
        )
        assert [one.fingerprint for one in closed] == [held(index).fingerprint]
        closed.clear()


def test_what_names_the_bundle_of_a_version(places: Places, coloured: Describer, tmp_path: Path) -> None:
    first = build(places, coloured, tmp_path / "indexes")
    assert first.bundle_holder == tmp_path / "indexes" / "town"
    build(places, coloured, tmp_path / "indexes")
    assert first.bundle_holder == first.folder / HELD_NAME
    old = Path(__file__).parents[1] / "data" / "written_by_c0fdd7f" / "indexes" / "exact"
    assert PlaceIndex.open(old).bundle_holder is None


def test_what_a_held_bundle_has_beside_the_shipped_graph_stays(
    places: Places, colours: Bundle, coloured: Describer, tmp_path: Path
) -> None:
    """A bundle of the same fingerprint with fewer precisions does not take its place."""
    build(places, coloured, tmp_path / "indexes")
    manifest = colours.manifest
    less = manifest.model_copy(update={"graphs": {"fp32": manifest.graphs["fp32"]}})
    plain = copy_bundle(colours, tmp_path / "plain")
    less.write(plain)
    assert open_bundle(plain).fingerprint == colours.fingerprint
    again = bundle_for_build(tmp_path / "indexes", "town", of_a_first=plain)
    assert set(again.manifest.graphs) == {"fp32", "fp16"}


def test_the_folder_that_a_describer_was_opened_from_may_be_pruned(
    places: Places, tmp_path: Path, colours: Bundle
) -> None:
    """A worker keeps its describer from job to job; the version that it was opened from ages."""
    indexes = tmp_path / "indexes"
    first = build(places, Describer(colours, threads=1), indexes)
    kept = Describer(held(first), threads=1)
    for _ in range(4):
        index = build(places, kept, indexes, keep=2)
    assert not kept.bundle.folder.exists()
    assert held(index).manifest == colours.manifest


def test_a_bundle_that_changes_meanwhile_publishes_nothing(
    places: Places, coloured: Describer, colours: Bundle, tmp_path: Path
) -> None:
    graph = colours.graph_path("fp16")
    flip_byte(graph)
    with pytest.raises(BundleError, match=r"model\.fp16\.onnx: the file is damaged"):
        build(places, coloured, tmp_path / "indexes")
    graph.unlink()
    text = (
        f"{graph}: the file cannot be read (No such file or directory). "
        "Leave a bundle in its place while photos are described with it; then begin again."
    )
    with refused(BundleError, text, "bundle_damaged"):
        build(places, coloured, tmp_path / "indexes")
    assert not list((tmp_path / "indexes").rglob("versions/*"))


def test_no_space_for_the_bundle_publishes_nothing(places: Places, coloured: Describer, tmp_path: Path) -> None:
    def fill(step: str) -> None:
        if step == "references written":
            folder = next((tmp_path / "indexes" / "town" / "versions").glob(".tmp-*")) / HELD_NAME
            folder.mkdir()
            (folder / "model.onnx").symlink_to("/dev/full")

    with pytest.raises(StorageError, match="No space left on device"):
        build_index(places, coloured, tmp_path / "indexes", "town", observer=RecordingObserver(fill))
    assert not list((tmp_path / "indexes").rglob("versions/*"))


@pytest.mark.parametrize("step", ["references written", "bundle written", "version named"])
def test_a_build_that_is_killed_around_its_bundle_harms_nobody(
    tmp_path: Path, describer: Describer, bundle: Bundle, step: str
) -> None:
    indexes, log = tmp_path / "indexes", tmp_path / "killed.log"
    first = build(make_places(tmp_path / "first", 3), describer, indexes)
    status = run_forked(build_and_die, tmp_path / "second", 5, indexes, step, log=log)
    assert status == -signal.SIGKILL, log.read_text()
    assert held(PlaceIndex.open(indexes / "town")).manifest == bundle.manifest
    third = build(make_places(tmp_path / "third", 2), describer, indexes, keep=1)
    assert held(third).manifest == bundle.manifest
    assert not first.folder.exists()


def test_a_parquet_file_comes_back_with_the_bundle_that_the_index_holds(
    places: Places, coloured: Describer, colours: Bundle, tmp_path: Path
) -> None:
    indexes, file = tmp_path / "indexes", tmp_path / "town.parquet"
    first = build(places, coloured, indexes)
    export_index(first, file)
    manifest = import_index(file, None, indexes, "town")
    assert manifest.bundle.held
    again = PlaceIndex.open(indexes / "town")
    assert held(again).graph_path("fp32").samefile(held(first).graph_path("fp32"))
    # Elsewhere it must be named; a place index that holds it will do.
    with pytest.raises(ModelIndexMismatchError, match="the descriptors are of bundle mean-colour"):
        import_index(file, None, indexes, "elsewhere")
    import_index(file, open_bundle(indexes / "town"), indexes, "elsewhere")
    assert held(PlaceIndex.open(indexes / "elsewhere")).manifest == colours.manifest


def test_a_version_of_an_earlier_sightfix_takes_its_bundle_with_the_next_update(tmp_path: Path) -> None:
    written = Path(__file__).parents[1] / "data" / "written_by_c0fdd7f"
    indexes = shutil.copytree(written / "indexes", tmp_path / "indexes")
    index = PlaceIndex.open(indexes / "exact")
    assert index.held_bundle() is None
    ours = index.manifest.bundle
    text = (
        f"{index.folder}: the index was described with bundle {ours.name} ({ours.fingerprint[:12]}); it is not the "
        "one shipped with sightfix, and this version was written before versions held their bundle. "
        "Name the folder of that bundle: --bundle FOLDER."
    )
    with refused(ModelIndexMismatchError, text, "model_index_mismatch"):
        index.open_bundle()
    named = index.open_bundle(written / "bundle")
    append_references(make_places(tmp_path, 2, first_seed=90), Describer(named, threads=1), indexes, "exact")
    after = PlaceIndex.open(indexes / "exact")
    assert (after.count, held(after).manifest) == (index.count + 2, named.manifest)


def test_nested_files_of_a_bundle_are_held(places: Places, colours: Bundle, tmp_path: Path) -> None:
    """A graph may keep its weights in a folder beside it."""
    folder = copy_bundle(colours, tmp_path / "nested")
    (folder / "weights").mkdir()
    (folder / "weights" / "part").write_bytes(b"1234")
    files = {**colours.manifest.files, **record_files(folder, ["weights/part"])}
    colours.manifest.model_copy(update={"files": files}).write(folder)
    index = build(places, Describer(open_bundle(folder), threads=1), tmp_path / "indexes")
    assert held_files(index)["weights/part"].read_bytes() == b"1234"
