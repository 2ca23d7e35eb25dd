"""Ray builds the index that this process builds, byte for byte: in one process, and nightly on a cluster."""

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from index_builder.describing import DescribeSettings
from index_builder.parts import PartSettings
from index_builder.publish import WORK_NAME
from index_builder.ray_describing import describe_on_ray
from index_builder.update import UpdateSettings, build_index
from retrieval.bundle import Bundle, open_bundle
from retrieval.describer import Describer
from retrieval.errors import MissingExtraError, ModelIndexMismatchError
from retrieval.geo import Position
from retrieval.index.folder import current_version
from retrieval.index.place_index import PlaceIndex
from tests.index_builder import ray_in_one_process
from tests.index_builder.recording_observer import RecordingObserver, StoppedError, stop_at
from tests.places import Places, make_places, pattern
from tests.retrieval.other_bundle import copy_bundle, write_other_bundle

REPOSITORY = Path(__file__).resolve().parents[2]
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (pip install 'sightfix[ray]')")
on_a_cluster = pytest.param("cluster", marks=[pytest.mark.nightly, needs_ray])


@pytest.fixture(scope="module")
def one_thread(bundle: Bundle) -> Describer:
    return Describer(bundle, threads=1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two cores of this machine, shared by all tests: starting it takes longer than they do."""
    import ray

    for attempt in range(3):
        try:
            ray.init(
                address="local",
                num_cpus=2,
                include_dashboard=False,
                log_to_driver=False,
                object_store_memory=100_000_000,
                runtime_env={"env_vars": {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}},
            )
            break
        except Exception as error:  # Ray raises just this where a busy machine takes over 30 s to start its processes
            ray.shutdown()
            if "timed out during startup" not in str(error) or attempt == 2:
                raise
    yield
    ray.shutdown()


@pytest.fixture(params=["one process", on_a_cluster])
def ray(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster, or what stands for one."""
    if request.param == "cluster":
        request.getfixturevalue("cluster")
    else:
        for name, module in ray_in_one_process.modules().items():
            monkeypatch.setitem(sys.modules, name, module)


def settings(engine: str, **changes) -> UpdateSettings:
    describe = DescribeSettings(batch_size=2, decode_threads=1, max_unreadable=1)
    return replace(UpdateSettings(describe=describe, part_photos=4, engine=engine), **changes)


def files(index_folder: Path) -> tuple[bytes, bytes]:
    version = index_folder / "versions" / current_version(index_folder)
    return (version / "vectors.faiss").read_bytes(), (version / "references.parquet").read_bytes()


def scattered(folder: Path, count: int) -> Places:
    places = make_places(folder, count)
    rng = np.random.default_rng(5)
    places.rows[:] = [
        replace(row, position=Position(float(rng.uniform(-80, 80)), float(rng.uniform(-180, 180))))
        for row in places.rows
    ]
    return places


@pytest.mark.usefixtures("ray")
def test_both_engines_build_the_same_index_and_go_on_from_each_other(tmp_path: Path, one_thread: Describer) -> None:
    """One photo is unreadable. Then one changes, and the re-index is begun here and gone on with there."""
    places = scattered(tmp_path / "photos", 11)
    places.rows[6].path.write_bytes(b"")
    here, there = tmp_path / "here", tmp_path / "there"
    build_index(places, one_thread, here, "town", settings("local"))
    observer = RecordingObserver()
    built = build_index(places, one_thread, there, "town", settings("ray"), observer=observer)
    assert files(there / "town") == files(here / "town")
    assert [(one.path, one.code) for one in built.unreadable] == [("photos/0006.jpg", "empty_body")]
    assert (observer.progress[-1], observer.steps.count("part written")) == ((11, 1), 3)
    assert not (there / "town" / WORK_NAME).exists()

    for number in (2, 9):
        pattern(70 + number).save(places.rows[number].path, quality=92)
    assert build_index(places, one_thread, here, "town", settings("local")).taken_over == 8
    begun = RecordingObserver(stop_at("part written", 2))
    with pytest.raises(StoppedError):
        build_index(places, one_thread, there, "town", settings("local"), observer=begun)
    observer = RecordingObserver()
    assert build_index(places, one_thread, there, "town", settings("ray"), observer=observer).taken_over == 8
    assert (observer.progress[0], observer.steps.count("part written")) == ((8, 1), 1)
    assert files(there / "town") == files(here / "town")
    assert PlaceIndex.open(there / "town").count == 10


@pytest.mark.usefixtures("ray")
def test_what_an_actor_meets_is_told_in_its_own_words(tmp_path: Path, bundle: Bundle) -> None:
    """The bundle's folder holds another one by the time the actors open it."""
    folder = copy_bundle(bundle, tmp_path / "bundle")
    describer = Describer(open_bundle(folder), threads=1)
    folder.rename(tmp_path / "moved")
    write_other_bundle(bundle, folder)
    with pytest.raises(ModelIndexMismatchError, match="a machine of the cluster has another bundle"):
        build_index(make_places(tmp_path, 2), describer, tmp_path / "indexes", "town", settings("ray"))
    assert list((tmp_path / "indexes").iterdir()) == []


def test_without_ray_it_says_what_to_install(
    tmp_path: Path, one_thread: Describer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sightfix\[ray\]'"):
        list(describe_on_ray([], one_thread, PartSettings(DescribeSettings(), tmp_path, tmp_path)))


def test_ray_is_there_in_ci() -> None:
    """Else the tests above would be skipped where they matter."""
    if os.environ.get("CI"):
        assert find_spec("ray") is not None
