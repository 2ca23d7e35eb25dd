"""`kill -9` of the worker at every step: the last version serves, the job goes on, nothing is described twice."""

import signal
from collections import Counter
from pathlib import Path

import pytest

from retrieval.index.folder import published_versions
from retrieval.index.place_index import PlaceIndex
from service.jobs.store import JobStore
from tests.service.jobs import killed_worker
from tests.service.jobs.killed_worker import STEPS
from tests.service.jobs.town import Town, request, run_worker

# The part in hand, two photos here, is described again; whole parts never are.
LOSES_A_PART = {"describing", "half a part"}
IS_PUBLISHED = {"current", "before success"}


def described(folder: Path) -> Counter[str]:
    path = folder / "described"
    return Counter(path.read_text().split()) if path.exists() else Counter()


def assert_no_leftovers(town: Town) -> None:
    assert {entry.name for entry in town.index.iterdir()} == {"CURRENT", "versions", ".lock"}
    assert {entry.name for entry in (town.index / "versions").iterdir()} == set(published_versions(town.index))
    assert not list((town.folder / "jobs" / "work").iterdir())


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_worker_costs_at_most_one_part(indexed: Town, step: str) -> None:
    settings = indexed.settings()
    old = PlaceIndex.open(indexed.index).version
    store = JobStore(settings)
    job, _ = store.submit(request("append"), "key-1")
    assert run_worker(settings, killed_worker.main, step, str(indexed.folder)) == -signal.SIGKILL
    # What a server would serve now is whole.
    after = PlaceIndex.open(indexed.index)
    assert (after.count, after.version == old) == ((6, False) if step in IS_PUBLISHED else (3, True))
    for version in published_versions(indexed.index):
        PlaceIndex.open(indexed.index / "versions" / version)
    # What was accepted is still there, and is still the answer to the same request.
    assert store.get(job.id).state in ("RUNNING", "PUBLISHING")
    again, is_new = store.submit(request("append"), "key-1")
    assert (again.id, is_new) == (job.id, False)
    assert run_worker(settings, killed_worker.main, "never", str(indexed.folder)) == 0
    done = store.get(job.id)
    assert done.state == "SUCCEEDED", done.error
    assert done.result is not None
    assert (done.result.added, done.result.kept, done.result.count, done.result.base_version) == (3, 3, 6, old)
    new = PlaceIndex.open(indexed.index)
    assert (new.version, new.count) == (done.result.index_version, 6)
    # Published once, however often it was tried.
    assert published_versions(indexed.index) == [old, new.version]
    times = described(indexed.folder)
    assert set(times) == {f"photos/{number:04d}.jpg" for number in (3, 4, 5)}
    twice = [name for name, count in times.items() if count > 1]
    assert len(twice) == (2 if step in LOSES_A_PART else 0)
    assert_no_leftovers(indexed)


def test_a_worker_that_dies_again_and_again_in_one_job_gives_it_up(indexed: Town) -> None:
    settings = indexed.settings()
    store = JobStore(settings)
    job, _ = store.submit(request("full"), None)
    other, _ = store.submit(request("remove", reference_ids=["photos/0000.jpg"]), None)
    for _ in range(4):
        (indexed.folder / "died").unlink(missing_ok=True)
        assert run_worker(settings, killed_worker.main, "planned", str(indexed.folder)) == -signal.SIGKILL
    assert run_worker(settings) == 0
    failed = store.get(job.id)
    assert failed.state == "FAILED"
    assert failed.error is not None
    assert failed.error.code == "worker_died"
    assert store.get(other.id).state == "SUCCEEDED"
    assert PlaceIndex.open(indexed.index).count == 2
