"""The database of jobs: order, keys, pages, states, and what it refuses."""

import sqlite3
import threading
import time
from pathlib import Path

import pytest

from retrieval.errors import StorageError
from service.jobs.model import JobFailure, JobResult
from service.jobs.store import IDEMPOTENCY_S, SCHEMA_VERSION, JobStore
from service.jobs.work_queue import MAX_DEATHS, TakenJob, WorkQueue
from service.problems import RequestError, job_problem
from tests.service.jobs.town import Town, request

RESULT = JobResult(
    index_version="v2", base_version="v1", count=3, added=1, replaced=0, kept=2, removed=0, activated=True, gate=None
)


@pytest.fixture
def store(town: Town) -> JobStore:
    return JobStore(town.settings())


@pytest.fixture
def queue(town: Town) -> WorkQueue:
    return WorkQueue(town.settings())


def take(queue: WorkQueue) -> TakenJob:
    job = queue.take()
    assert job is not None
    return job


def refuse(code: str, call, *arguments) -> None:
    with pytest.raises(RequestError) as info:
        call(*arguments)
    assert info.value.code == code


def test_jobs_are_taken_in_the_order_they_came(store: JobStore, queue: WorkQueue) -> None:
    ids = [store.submit(request(kind), None)[0].id for kind in ("full", "append", "full")]
    assert [take(queue).id for _ in range(3)] == ids
    assert queue.take() is None


def test_jobs_of_an_index_that_is_built_elsewhere_are_passed_over_together(store: JobStore, queue: WorkQueue) -> None:
    for index in ("a", "a", "b"):
        store.submit(request("remove", reference_ids=["x"]).model_copy(update={"index": index}), None)
    job = queue.take(not_of=["a"])
    assert job is not None
    assert job.request.index == "b"
    assert queue.take(not_of=["a"]) is None


def test_what_was_accepted_is_there_for_another_process(store: JobStore, town: Town) -> None:
    job, _ = store.submit(request("append", max_unreadable=3), None)
    assert JobStore(town.settings()).get(job.id) == job
    assert job.request["max_unreadable"] == 3


def test_commits_are_flushed_to_the_disk(store: JobStore) -> None:
    database = store._database
    assert database.read("PRAGMA synchronous")[0][0] == 2  # FULL
    assert database.read("PRAGMA journal_mode")[0][0] == "wal"


# Idempotency-Key


def test_a_key_gives_the_same_job_for_a_day(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    job, is_new = store.submit(request("full"), "key")
    assert is_new
    assert store.submit(request("full"), "key") == (job, False)
    refuse("idempotency_conflict", store.submit, request("append"), "key")
    refuse("idempotency_conflict", store.known, request("append"), "key")
    assert store.submit(request("full"), "other key")[1]
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + IDEMPOTENCY_S - 60)
    assert store.known(request("full"), "key") == job
    monkeypatch.setattr(time, "time", lambda: now + IDEMPOTENCY_S + 60)
    later, is_new = store.submit(request("append"), "key")
    assert is_new
    assert later.id != job.id


def test_one_key_in_many_threads_makes_one_job(store: JobStore, town: Town) -> None:
    stores = [store, JobStore(town.settings())]
    ids: list[str] = []
    threads = [
        threading.Thread(target=lambda one=one: ids.append(one.submit(request("full"), "key")[0].id))
        for one in stores * 6
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(ids) == 12
    assert len(set(ids)) == 1


def test_many_processes_may_make_the_database_at_once(town: Town) -> None:
    failures: list[Exception] = []

    def open_one() -> None:
        try:
            JobStore(town.settings()).submit(request("full"), None)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=open_one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert sum(JobStore(town.settings()).counts().values()) == 8


# Lists


def test_pages_go_from_new_to_old_and_stay_apart_while_jobs_come(store: JobStore) -> None:
    ids = [store.submit(request("full"), None)[0].id for _ in range(5)]
    page = store.page((), 2, None)
    assert [job.id for job in page.jobs] == [ids[4], ids[3]]
    store.submit(request("full"), None)
    second = store.page((), 2, int(page.next_page_token or ""))
    third = store.page((), 2, int(second.next_page_token or ""))
    assert [job.id for job in (*second.jobs, *third.jobs)] == [ids[2], ids[1], ids[0]]
    assert third.next_page_token is None


def test_pages_of_some_states(store: JobStore, queue: WorkQueue) -> None:
    ids = [store.submit(request("full"), None)[0].id for _ in range(3)]
    store.cancel(ids[1])
    take(queue)
    assert [job.id for job in store.page(("PENDING",), 9, None).jobs] == [ids[2]]
    assert [job.id for job in store.page(("CANCELLED", "RUNNING"), 9, None).jobs] == [ids[1], ids[0]]
    assert store.counts() == {("full", "PENDING"): 1, ("full", "CANCELLED"): 1, ("full", "RUNNING"): 1}


def test_failures_are_bounded_counted_and_paged(town: Town) -> None:
    settings = town.settings(kept_failures=5)
    store, queue = JobStore(settings), WorkQueue(settings)
    store.submit(request("full"), None)
    job = take(queue)
    failures = [JobFailure(path=f"{n}.jpg", code="image_undecodable", reason="x") for n in range(9)]
    queue.listed(job, 2, [JobFailure(path=f"s{n}.jpg", code="skipped", reason="no GPS") for n in range(2)])
    for _ in range(2):  # told again after a restart
        queue.add_failures(job, failures)
    queue.progress(job, done=20, total=30, failed=9, rate_per_s=None)
    page = store.failures(job.id, 3, 0)
    assert ([one.path for one in page.failures], page.total) == (["s0.jpg", "s1.jpg", "0.jpg"], 11)
    rest = store.failures(job.id, 3, int(page.next_page_token or ""))
    assert ([one.path for one in rest.failures], rest.next_page_token) == (["1.jpg", "2.jpg"], None)


def test_old_finished_jobs_are_forgotten_and_others_are_not(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = town.settings(kept_jobs=2)
    store = JobStore(settings)
    waiting = store.submit(request("full"), None)[0].id
    keyed = store.submit(request("full"), "key")[0].id
    plain = store.submit(request("full"), None)[0].id
    for name in (keyed, plain):
        store.cancel(name)
    for _ in range(2):
        store.cancel(store.submit(request("full"), None)[0].id)
    refuse("job_not_found", store.get, plain)
    assert store.get(waiting).state == "PENDING"
    assert store.get(keyed).state == "CANCELLED"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + IDEMPOTENCY_S + 60)
    store.submit(request("full"), None)
    refuse("job_not_found", store.get, keyed)


def test_too_many_waiting_jobs_are_refused(town: Town) -> None:
    store = JobStore(town.settings(max_waiting=2))
    for _ in range(2):
        store.submit(request("full"), "key" if not store.counts() else None)
    refuse("queue_full", store.submit, request("full"), None)
    assert not store.submit(request("full"), "key")[1]


# States


def test_the_states_of_a_job_that_succeeds(store: JobStore, queue: WorkQueue) -> None:
    job_id = store.submit(request("full"), None)[0].id
    job = take(queue)
    queue.progress(job, done=10, total=30, failed=1, rate_per_s=4.0)
    running = store.get(job_id)
    assert (running.state, running.progress.eta_s, running.progress.failed) == ("RUNNING", 5.0, 1)
    assert running.started_at is not None
    queue.writing_version(job)
    assert store.get(job_id).state == "PUBLISHING"
    assert queue.publishing(job, RESULT)
    assert store.get(job_id).result is None
    refuse("job_not_cancellable", store.cancel, job_id)
    queue.succeed(job, RESULT)
    done = store.get(job_id)
    assert (done.state, done.result, done.progress.eta_s) == ("SUCCEEDED", RESULT, None)
    assert done.finished_at is not None
    refuse("job_not_cancellable", store.cancel, job_id)
    assert not store.has_work()


def test_a_failed_job_says_why_as_a_problem(store: JobStore, queue: WorkQueue) -> None:
    job_id = store.submit(request("full"), None)[0].id
    queue.fail(take(queue), job_problem(job_id, "gate_failed", "It does not."))
    error = store.get(job_id).error
    assert error is not None
    assert (error.code, error.status, error.instance) == ("gate_failed", 422, f"urn:job:{job_id}")
    assert error.type == "urn:sightfix:problem:gate_failed"


def test_cancelling(store: JobStore, queue: WorkQueue) -> None:
    first, second, third = (store.submit(request("full"), None)[0].id for _ in range(3))
    assert store.cancel(third).state == "CANCELLED"
    assert store.cancel(third).state == "CANCELLED"
    running = take(queue)
    assert not queue.is_cancelled(running)
    assert store.cancel(first).state == "CANCELLING"
    assert store.cancel(first).state == "CANCELLING"
    assert queue.is_cancelled(running)
    queue.writing_version(running)
    assert store.get(first).state == "CANCELLING"
    assert not queue.publishing(running, RESULT)
    queue.cancelled(running)
    assert store.get(first).state == "CANCELLED"
    assert take(queue).id == second
    refuse("job_not_found", store.cancel, "job-0")


def test_a_job_that_was_cancelled_while_the_worker_stopped_is_cancelled(store: JobStore, queue: WorkQueue) -> None:
    job_id = store.submit(request("full"), None)[0].id
    job = take(queue)
    store.cancel(job_id)
    queue.put_back(job)
    assert store.get(job_id).state == "CANCELLED"


def test_a_worker_takes_over_from_a_dead_one(store: JobStore, queue: WorkQueue) -> None:
    first, second = (store.submit(request("full"), None)[0].id for _ in range(2))
    take(queue)
    store.cancel(first)
    take(queue)
    queue.recover()
    assert store.get(first).state == "CANCELLED"
    assert store.get(second).state == "PENDING"
    assert queue.unfinished() == {second}
    for _ in range(MAX_DEATHS - 2):
        take(queue)
        queue.recover()
        assert store.get(second).state == "PENDING"
    queue.survived(take(queue))
    for _ in range(MAX_DEATHS):
        assert store.get(second).state != "FAILED"
        queue.recover()
        queue.take()
    assert store.get(second).state == "FAILED"


def test_a_waiting_job_says_what_it_waits_for(store: JobStore, queue: WorkQueue) -> None:
    job_id = store.submit(request("full"), None)[0].id
    queue.put_back(take(queue), waiting_for="another process builds")
    assert store.get(job_id).waiting_for == "another process builds"
    take(queue)
    assert store.get(job_id).waiting_for is None


def test_clocks_that_jump_change_no_order(store: JobStore, queue: WorkQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    ids = []
    for jump in (0.0, -10 * 365 * 86400.0, 3600.0, -3600.0):
        monkeypatch.setattr(time, "time", lambda jump=jump: now + jump)
        ids.append(store.submit(request("full"), None)[0].id)
    taken = [take(queue) for _ in ids]
    assert [job.id for job in taken] == ids
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    queue.succeed(taken[0], RESULT)
    queue.recover()
    job = store.get(ids[0])
    assert job.finished_at is not None
    assert job.finished_at < job.created_at
    assert [store.get(name).state for name in ids] == ["SUCCEEDED", "PENDING", "PENDING", "PENDING"]


# What is refused


def change(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()


def test_a_database_of_a_later_sightfix_is_refused(town: Town, store: JobStore) -> None:
    store.close()
    change(town.settings().database, f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    with pytest.raises(StorageError, match="has format 2, this sightfix reads 1") as info:
        JobStore(town.settings())
    assert info.value.code == "jobs_format"


def test_a_database_of_other_indexes_is_refused(town: Town, store: JobStore) -> None:
    with pytest.raises(StorageError, match="these jobs are for the indexes in") as info:
        JobStore(town.settings(indexes=town.folder / "others"))
    assert info.value.code == "jobs_of_other_indexes"


def test_a_damaged_database_is_told(town: Town) -> None:
    settings = town.settings()
    settings.jobs_folder.mkdir()
    settings.database.write_bytes(b"no database at all" * 100)
    with pytest.raises(StorageError, match="file is not a database"):
        JobStore(settings)


def test_a_jobs_folder_that_cannot_be_made_is_told(town: Town) -> None:
    (town.folder / "jobs").write_text("a file")
    with pytest.raises(StorageError, match="a file has its name"):
        JobStore(town.settings())
