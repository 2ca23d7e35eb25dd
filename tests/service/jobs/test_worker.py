"""The worker as a process: what jobs do, and how they fail, stop and share."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from index_builder.publish import draft_version
from index_builder.update import build_index
from retrieval.bundle import Bundle, open_bundle
from retrieval.describer import Describer
from retrieval.index.folder import published_versions
from retrieval.index.place_index import PlaceIndex
from retrieval.index.stores import open_store
from service.jobs.model import Job
from service.jobs.service import JobService
from service.jobs.store import JobStore
from service.jobs.work_queue import WorkQueue
from service.jobs.worker import JobRunner
from tests.places import make_places
from tests.retrieval.engines.colour_bundle import write_colour_bundle
from tests.retrieval.other_bundle import write_other_bundle
from tests.service.jobs.town import REPOSITORY, Town, request, run_worker, running_jobs, until, wait_for

KILLED_WORKER = [sys.executable, "-m", "tests.service.jobs.killed_worker"]


def done(town: Town, *requests, **settings) -> list[Job]:
    """Accept some jobs, have a worker do them, and return what became of them."""
    store = JobStore(town.settings(**settings))
    ids = [store.submit(one, None)[0].id for one in requests]
    assert run_worker(town.settings(**settings)) == 0
    return [store.get(name) for name in ids]


def failure_of(town: Town, one, **settings) -> tuple[str, str]:
    """The code and detail with which a job fails; what was published before is untouched."""
    before = PlaceIndex.open(town.index).version
    [job] = done(town, one, **settings)
    assert job.state == "FAILED"
    assert job.error is not None
    assert PlaceIndex.open(town.index).version == before
    assert published_versions(town.index) == [before]
    assert not list((town.folder / "jobs").glob("work/*"))
    return job.error.code, job.error.detail


def test_append_remove_and_full_one_after_another(indexed: Town) -> None:
    old = PlaceIndex.open(indexed.index).version
    appended, removed, nothing, full = done(
        indexed,
        request("append"),
        request("remove", reference_ids=["photos/0001.jpg", "photos/0004.jpg"]),
        request("remove", remove_missing=True),
        request("full", storage="fp32", publish="manual"),
    )
    assert [job.state for job in (appended, removed, nothing, full)] == ["SUCCEEDED"] * 4
    results = [job.result for job in (appended, removed, nothing, full)]
    counts = [(one.added, one.replaced, one.kept, one.removed, one.count) for one in results if one]
    assert counts == [(3, 0, 3, 0, 6), (0, 0, 4, 2, 4), (0, 0, 4, 0, 4), (2, 4, 0, 0, 6)]
    assert results[0] is not None
    assert results[0].gate is not None
    assert (results[0].base_version, results[0].gate.self_matches, results[0].gate.recall) == (old, 6, 1.0)
    progress = appended.progress
    assert (progress.done, progress.total, progress.failed, progress.eta_s) == (3, 3, 0, None)
    # The manual one lies beside the current one.
    current = PlaceIndex.open(indexed.index)
    assert [one.index_version == current.version for one in results if one] == [False, True, True, False]
    assert [one.activated for one in results if one] == [True, True, True, False]
    made = PlaceIndex.open(indexed.index / "versions" / (results[3].index_version if results[3] else ""))
    assert (made.count, made.manifest.storage, made.manifest.source.spec) == (6, "fp32", "csv:town/refs.csv")


def test_photos_left_out_are_listed_by_their_path(indexed: Town) -> None:
    photos = indexed.write_photos(6)
    photos[3].write_bytes(b"no photo")
    photos[4].write_bytes(photos[4].read_bytes()[:300])
    table = indexed.roots / "town" / "refs.csv"
    table.write_text(table.read_text() + "photos/nowhere.jpg,,\n")
    [job] = done(indexed, request("append", max_unreadable=2))
    assert job.state == "SUCCEEDED", job.error
    assert (job.progress.done, job.progress.failed, job.progress.skipped) == (3, 2, 1)
    page = JobStore(indexed.settings()).failures(job.id, 10, 0)
    assert [(one.path, one.code) for one in page.failures] == [
        ("photos/nowhere.jpg", "skipped"),
        ("photos/0003.jpg", "unsupported_media_type"),
        ("photos/0004.jpg", "image_undecodable"),
    ]
    assert page.total == 3
    assert all(one.reason for one in page.failures)


def test_too_many_unreadable_photos(indexed: Town) -> None:
    indexed.write_photos(6)[5].write_bytes(b"")
    code, detail = failure_of(indexed, request("append"))
    assert code == "too_many_unreadable"
    assert detail == (
        "photos/0005.jpg: the image is empty (0 bytes). So far 1 photo is unreadable, none may be. "
        "Repair or remove what is named, or allow more with --max-unreadable (a job: max_unreadable)."
    )


def test_photos_that_vanish_after_they_were_listed(indexed: Town) -> None:
    table = (indexed.roots / "town" / "refs.csv").read_text()
    (indexed.roots / "town" / "refs.csv").write_text(table)
    shutil.rmtree(indexed.roots / "town" / "photos")
    code, _ = failure_of(indexed, request("append", source="csv:town/refs.csv?missing=ignore", max_unreadable=1))
    assert code == "too_many_unreadable"
    code, detail = failure_of(indexed, request("append"))
    assert (code, "there is no photo" in detail) == ("reference_data", True)


def test_a_source_that_is_gone_when_the_job_starts(indexed: Town) -> None:
    shutil.rmtree(indexed.roots / "town")
    assert failure_of(indexed, request("append"))[0] == "source_not_found"


def test_a_source_that_leads_outside_when_the_job_starts(indexed: Town) -> None:
    """The check when the job is accepted is not the only one."""
    (indexed.roots / "town").rename(indexed.folder / "elsewhere")
    (indexed.roots / "town").symlink_to(indexed.folder / "elsewhere")
    assert failure_of(indexed, request("append"))[0] == "source_not_allowed"


def test_a_photo_outside_the_roots_fails_the_job(indexed: Town) -> None:
    shutil.copy(indexed.roots / "town/photos/0000.jpg", indexed.folder / "secret.jpg")
    table = indexed.roots / "town" / "refs.csv"
    table.write_text(table.read_text() + "../../secret.jpg,48,11\n")
    assert failure_of(indexed, request("append"))[0] == "source_not_allowed"


def test_jobs_keep_the_bundle_that_the_index_holds(indexed: Town, bundle: Bundle) -> None:
    other = write_other_bundle(bundle, indexed.folder / "bundle")
    everything = request("full"), request("append"), request("remove", reference_ids=["photos/0000.jpg"])
    for one in everything:
        [job] = done(indexed, one, bundle=other.folder)
        assert job.state == "SUCCEEDED", job.error
        assert PlaceIndex.open(indexed.index).open_bundle().fingerprint == bundle.fingerprint
    # From here on it is of another bundle than the one that is shipped.
    places = make_places(indexed.roots / "town", 3)
    build_index(places, Describer(other, threads=1), indexed.indexes, "town")
    for one in everything:
        [job] = done(indexed, one)
        assert job.state == "SUCCEEDED", job.error
        assert PlaceIndex.open(indexed.index).open_bundle().fingerprint == other.fingerprint


def test_a_first_version_is_made_with_the_bundle_of_the_settings(indexed: Town, bundle: Bundle) -> None:
    other = write_other_bundle(bundle, indexed.folder / "bundle")
    [job] = done(indexed, request("full").model_copy(update={"index": "village"}), bundle=other.folder)
    assert job.state == "SUCCEEDED", job.error
    assert PlaceIndex.open(indexed.indexes / "village").open_bundle().name == "other"


def test_a_first_version_is_adapted_and_the_next_keep_that(town: Town) -> None:
    town.write_photos(12)
    [job] = done(town, request("full"))
    assert job.state == "SUCCEEDED", job.error
    first = PlaceIndex.open(town.index).open_bundle()
    assert first.manifest.adaptation is not None
    assert first.manifest.adaptation.photos == 12
    town.write_photos(14)
    everything = request("append"), request("full"), request("remove", reference_ids=["photos/0000.jpg"])
    for one, (added, kept, count) in zip(everything, ((2, 12, 14), (0, 0, 14), (0, 13, 13)), strict=True):
        [job] = done(town, one)
        assert job.state == "SUCCEEDED", job.error
        assert job.result is not None
        assert (job.result.added, job.result.kept, job.result.count) == (added, kept, count)
        assert PlaceIndex.open(town.index).open_bundle().fingerprint == first.fingerprint
    [job] = done(town, request("full", whiten=64))
    assert job.state == "SUCCEEDED", job.error
    index = PlaceIndex.open(town.index)
    again = index.open_bundle().manifest.adaptation
    assert again is not None
    assert (again.photos, index.manifest.descriptor_dim) == (14, 64)


def test_what_the_server_was_given_to_describe_with_is_not_adapted(town: Town) -> None:
    town.write_photos(12)
    [job] = done(town, request("full"), bundle=open_bundle().folder)
    assert job.state == "SUCCEEDED", job.error
    assert PlaceIndex.open(town.index).open_bundle().fingerprint == open_bundle().fingerprint


@pytest.mark.parametrize(
    ("whiten", "settings", "text"),
    [
        (64, {"bundle": open_bundle().folder}, "was given the bundle to describe with"),
        (8, {}, "8 numbers are too few"),
    ],
)
def test_numbers_that_cannot_be_had_when_the_job_starts(indexed: Town, whiten: int, settings, text: str) -> None:
    """It was accepted by a server that was started otherwise, or an earlier one."""
    code, detail = failure_of(indexed, request("full", whiten=whiten), **settings)
    assert code == "validation_error"
    assert text in detail


def test_the_version_that_a_bundle_was_opened_from_may_be_pruned(town: Town) -> None:
    """The next job describes with the engine that is there, and copies the bundle from where it is now."""
    town.write_photos(3)
    colours = write_colour_bundle(town.folder / "colours")
    build_index(make_places(town.roots / "town", 3), Describer(colours, threads=1), town.indexes, "town")
    settings = town.settings(bundle=colours.folder)
    store, queue = JobStore(settings), WorkQueue(settings)
    runner = JobRunner(settings, queue, threading.Event())
    for index in ("town", "village"):
        job_id = store.submit(request("full", storage="fp32").model_copy(update={"index": index}), None)[0].id
        taken = queue.take()
        assert taken is not None
        assert runner.run(taken)
        job = store.get(job_id)
        assert job.state == "SUCCEEDED", job.error
        if index == "town":
            shutil.rmtree(town.index)
    queue.close()
    assert PlaceIndex.open(town.indexes / "village").open_bundle().manifest == colours.manifest


def test_an_index_that_holds_no_bundle_needs_that_of_the_settings(indexed: Town) -> None:
    written = Path(__file__).parents[2] / "data" / "written_by_c0fdd7f"
    shutil.copytree(written / "indexes" / "exact", indexed.indexes / "exact")
    remove = request("remove", reference_ids=[some_id(indexed.indexes / "exact")]).model_copy(update={"index": "exact"})
    before = PlaceIndex.open(indexed.indexes / "exact")
    [job] = done(indexed, remove)
    assert job.error is not None
    assert job.error.code == "model_index_mismatch"
    assert "Name the folder of that bundle: --bundle" in job.error.detail
    [job] = done(indexed, remove, bundle=written / "bundle")
    assert job.state == "SUCCEEDED", job.error
    after = PlaceIndex.open(indexed.indexes / "exact")
    assert (after.count, after.open_bundle().name) == (before.count - 1, before.manifest.bundle.name)


def some_id(index: Path) -> str:
    return PlaceIndex.open(index).references([0])[0].id


def test_a_missing_bundle(indexed: Town) -> None:
    first = request("full").model_copy(update={"index": "village"})
    code, detail = failure_of(indexed, first, bundle=indexed.folder / "nothing")
    assert code == "bundle_damaged"
    assert "there is no readable manifest.json" in detail


def test_an_index_that_there_is_not(indexed: Town) -> None:
    [job] = done(indexed, request("append").model_copy(update={"index": "village"}))
    assert job.error is not None
    assert job.error.code == "index_not_found"
    assert not (indexed.indexes / "village").exists()


def test_a_disk_that_is_full(indexed: Town) -> None:
    store = JobStore(indexed.settings())
    job, _ = store.submit(request("append"), None)
    work = indexed.settings().work_folder(job.id)
    work.mkdir(parents=True)
    (work / ".part-000000.npy.tmp").symlink_to("/dev/full")
    assert run_worker(indexed.settings()) == 0
    failed = store.get(job.id)
    assert failed.error is not None
    assert (failed.state, failed.error.code) == ("FAILED", "storage")
    assert "No space left on device" in failed.error.detail
    assert PlaceIndex.open(indexed.index).count == 3


def test_a_version_that_does_not_pass_the_gate_is_not_published(indexed: Town) -> None:
    photos = [indexed.roots / f"town/photos/000{number}.jpg" for number in (0, 1, 2)]
    contents = [photo.read_bytes() for photo in photos]
    for photo, content in zip(photos, contents[1:] + contents[:1], strict=True):
        photo.write_bytes(content)
    code, detail = failure_of(indexed, request("append"))
    assert code == "gate_failed"
    assert "3 of 6 references do not find themselves first" in detail


# Stopping


def slow(town: Town) -> list[str]:
    """A worker whose every batch takes a while."""
    script = town.folder / "slow.py"
    script.write_text(
        "import sys, time\n"
        "from service.jobs import worker\n"
        "check_stopped = worker.JobObserver.check_stopped\n"
        "def slow(self):\n    time.sleep(0.2)\n    check_stopped(self)\n"
        "worker.JobObserver.check_stopped = slow\n"
        "sys.exit(worker.main(sys.argv[1:]))\n"
    )
    return [sys.executable, str(script)]


def test_cancelling_a_job_that_runs(indexed: Town) -> None:
    indexed.write_photos(40)
    version = PlaceIndex.open(indexed.index).version
    with running_jobs(indexed.settings(), slow(indexed)) as jobs:
        job, _ = jobs.submit(request("full"))
        until(lambda: jobs.get(job.id).progress.done >= 4)
        assert jobs.cancel(job.id).state == "CANCELLING"
        until(lambda: jobs.get(job.id).state == "CANCELLED", 5.0)
        assert jobs.get(job.id).progress.done < 40
        after, _ = jobs.submit(request("remove", reference_ids=["photos/0000.jpg"]))
        assert wait_for(jobs, after.id).state == "SUCCEEDED"
    assert not list((indexed.folder / "jobs" / "work").iterdir())
    assert published_versions(indexed.index)[0] == version
    assert PlaceIndex.open(indexed.index).count == 2


def test_a_server_that_stops_puts_its_job_back_and_the_next_goes_on(indexed: Town) -> None:
    indexed.write_photos(20)
    with running_jobs(indexed.settings(), slow(indexed)) as jobs:
        job, _ = jobs.submit(request("full"))
        until(lambda: jobs.get(job.id).progress.done >= 6)
        pid = jobs.supervisor.worker_pid
        assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    store = JobStore(indexed.settings())
    assert store.get(job.id).state == "PENDING"
    parts = len(list(indexed.settings().work_folder(job.id).glob("*.json")))
    assert parts >= 2
    log = [*KILLED_WORKER, "never", str(indexed.folder)]
    with running_jobs(indexed.settings(), log) as jobs:
        assert wait_for(jobs, job.id).state == "SUCCEEDED"
    assert len((indexed.folder / "described").read_text().split()) == 20 - 2 * parts


def test_a_worker_whose_server_was_killed_stops(indexed: Town) -> None:
    """The server is a process of its own here, and dies without a word."""
    indexed.write_photos(16)
    settings = indexed.settings()
    job, _ = JobStore(settings).submit(request("full"), None)
    server = indexed.folder / "server.py"
    server.write_text(
        "import sys, time\n"
        "from service.jobs.service import JobService\n"
        "from service.jobs.settings import JobSettings\n"
        "jobs = JobService(JobSettings.model_validate_json(sys.argv[1]), sys.argv[2:])\n"
        "jobs.start()\n"
        "time.sleep(120)\n"
    )
    store = JobStore(settings)
    process = subprocess.Popen(
        [sys.executable, str(server), settings.model_dump_json(), *slow(indexed)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    try:
        until(lambda: store.get(job.id).progress.done >= 4)
        beat = store.beat()
        assert beat is not None
    finally:
        process.kill()
        process.wait()
    until(lambda: store.get(job.id).state == "PENDING", 10.0)
    assert run_worker(settings) == 0
    assert store.get(job.id).state == "SUCCEEDED"


# Supervision


def test_a_killed_worker_is_started_again_and_finishes_the_job(indexed: Town) -> None:
    command = [*KILLED_WORKER, "part written", str(indexed.folder)]
    with running_jobs(indexed.settings(), command) as jobs:
        job, _ = jobs.submit(request("append"))
        assert wait_for(jobs, job.id).state == "SUCCEEDED"
    assert (indexed.folder / "died").exists()
    assert sorted((indexed.folder / "described").read_text().split()) == [f"photos/000{n}.jpg" for n in (3, 4, 5)]


def test_a_worker_that_gives_no_sign_of_life_is_replaced(indexed: Town) -> None:
    indexed.write_photos(10)
    with running_jobs(indexed.settings(stalled_s=3.0), slow(indexed)) as jobs:
        job, _ = jobs.submit(request("full"))
        until(lambda: jobs.get(job.id).progress.done >= 2)
        first = jobs.supervisor.worker_pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)
        until(lambda: jobs.supervisor.worker_pid not in (first, None))
        assert wait_for(jobs, job.id).state == "SUCCEEDED"


def test_the_worker_is_polite_and_ends_when_there_is_nothing_to_do(indexed: Town) -> None:
    with running_jobs(indexed.settings(niceness=15, idle_exit_s=1.0)) as jobs:
        assert jobs.supervisor.worker_pid is None
        job, _ = jobs.submit(request("append"))
        until(lambda: jobs.get(job.id).state == "RUNNING")
        pid = jobs.supervisor.worker_pid
        assert pid is not None
        assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, 15 + os.getpriority(os.PRIO_PROCESS, 0))
        assert wait_for(jobs, job.id).state == "SUCCEEDED"
        until(lambda: jobs.supervisor.worker_pid is None)
        again, _ = jobs.submit(request("remove", reference_ids=["photos/0000.jpg"]))
        assert wait_for(jobs, again.id).state == "SUCCEEDED"


def test_two_servers_share_a_jobs_folder(indexed: Town) -> None:
    """Either may accept a job; one worker at a time does them, each once."""
    log = [*KILLED_WORKER, "never", str(indexed.folder)]
    with running_jobs(indexed.settings(), log) as one, running_jobs(indexed.settings(), log) as other:
        ids = [(one, other)[n % 2].submit(request("full"))[0].id for n in range(4)]
        results = [wait_for(other, name) for name in ids]
    assert [job.state for job in results] == ["SUCCEEDED"] * 4
    # Three of the six were described before; the content of all six is known to the jobs after the first.
    assert len((indexed.folder / "described").read_text().split()) == 3
    starts = [job.started_at for job in results if job.started_at]
    ends = [job.finished_at for job in results if job.finished_at]
    assert starts == sorted(starts)
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))


def test_a_job_waits_while_somebody_else_builds_its_index(indexed: Town) -> None:
    with running_jobs(indexed.settings()) as jobs:
        with draft_version(indexed.indexes, "town"):
            job, _ = jobs.submit(request("append"))
            elsewhere, _ = jobs.submit(request("full").model_copy(update={"index": "village"}))
            until(lambda: jobs.get(job.id).waiting_for is not None)
            assert "another process is building this index" in (jobs.get(job.id).waiting_for or "")
            assert wait_for(jobs, elsewhere.id).state == "SUCCEEDED"
            assert jobs.get(job.id).state in ("PENDING", "RUNNING")
        assert wait_for(jobs, job.id).state == "SUCCEEDED"


def test_a_worker_that_cannot_start_is_told_in_the_log_and_loses_nothing(
    indexed: Town, caplog: pytest.LogCaptureFixture
) -> None:
    with running_jobs(indexed.settings(), [sys.executable, "-c", "import sys; sys.exit(3)"]) as jobs:
        job, _ = jobs.submit(request("append"))
        until(lambda: "job worker ended with status 3" in caplog.text)
        assert jobs.get(job.id).state == "PENDING"


def test_what_lies_in_the_current_folder_is_not_imported(indexed: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m` alone would import from there first."""
    for name in ("service", "json", "retrieval"):
        (indexed.folder / f"{name}.py").write_text("raise SystemExit(7)\n")
    monkeypatch.chdir(indexed.folder)
    with running_jobs(indexed.settings()) as jobs:
        job, _ = jobs.submit(request("remove", reference_ids=["photos/0000.jpg"]))
        assert wait_for(jobs, job.id).state == "SUCCEEDED"


def test_settings_are_absolute_for_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Town(Path("x")).settings()
    assert settings.jobs_folder == tmp_path / "x" / "jobs"
    assert settings.source_roots == (tmp_path / "x" / "roots",)
    assert type(settings).model_validate_json(settings.model_dump_json()) == settings


def test_a_service_reports_what_it_counts(indexed: Town) -> None:
    jobs = JobService(indexed.settings())
    jobs.submit(request("append"))
    assert jobs.counts() == {("append", "PENDING"): 1}
    jobs.stop()


def test_what_a_job_makes_is_published_in_the_store_too(indexed: Town) -> None:
    address = f"milvus://{indexed.folder}/milvus.db"
    appended, manual = done(
        indexed, request("append"), request("full", storage="fp32", publish="manual"), store=address
    )
    assert [job.state for job in (appended, manual)] == ["SUCCEEDED"] * 2
    assert appended.result is not None
    assert manual.result is not None
    store = open_store(address, indexed.indexes)
    try:
        assert store.current("town") == appended.result.index_version
        assert store.versions("town") == [appended.result.index_version, manual.result.index_version]
        assert store.open("town").count == 6
    finally:
        store.close()


def test_a_job_waits_for_a_store_that_is_away_and_then_only_pushes(indexed: Town) -> None:
    settings = indexed.settings(store="milvus://127.0.0.1:9")
    store = JobStore(settings)
    job_id = store.submit(request("append"), None)[0].id
    queue = WorkQueue(settings)
    taken = queue.take(not_of=[])
    assert taken is not None
    assert JobRunner(settings, queue, threading.Event()).run(taken) is False
    waiting = store.get(job_id)
    assert waiting.state == "PENDING"
    assert "Milvus cannot be reached" in str(waiting.waiting_for)
    made = PlaceIndex.open(indexed.index)
    assert made.count == 6
    queue.close()
    address = f"milvus://{indexed.folder}/milvus.db"
    assert run_worker(indexed.settings(store=address)) == 0
    assert store.get(job_id).state == "SUCCEEDED"
    assert published_versions(indexed.index)[-1] == made.version
    there = open_store(address, indexed.indexes)
    try:
        assert there.current("town") == made.version
    finally:
        there.close()
