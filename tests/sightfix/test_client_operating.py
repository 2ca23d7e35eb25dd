"""An operator's day with either client: a job, its version, a rollback, refusals."""

import asyncio
import fcntl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from index_builder.update import build_index
from retrieval.describer import Describer
from retrieval.errors import ServerError
from sightfix.client import (
    AppendJobRequest,
    AsyncSightfixClient,
    FullJobRequest,
    Job,
    ProblemError,
    RemoveJobRequest,
    SightfixClient,
)
from tests.places import make_places
from tests.running_server import running_server

Ask = Callable[..., Any]


@dataclass(frozen=True)
class Office:
    """A server with source roots, and an index of its own for each client."""

    url: str
    indexes: Path


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory, describer: Describer) -> Iterator[Office]:
    folder = tmp_path_factory.mktemp("office")
    places = make_places(folder / "old", 4)
    for name in ("sync", "async"):
        build_index(places, describer, folder / "indexes", name)
    make_places(folder / "roots" / "new", 3, origin=(48.1, 11.0), first_seed=50)
    new = folder / "roots" / "new" / "photos"
    (new / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    lines = [f"{photo.name},48.1,{11 + number / 1000}" for number, photo in enumerate(sorted(new.glob("*.jpg")))]
    (new / "refs.csv").write_text("\n".join(["path,lat,lon", *lines, ""]))
    arguments = ["--indexes", str(folder / "indexes"), "--index", "sync", "--source-root", str(folder / "roots")]
    with running_server(folder / "log", arguments) as running:
        running.wait_until_ready()
        yield Office(running.url, folder / "indexes")


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest, office: Office) -> Ask:
    """`ask(method, *arguments)` of either client; its `name` is that of the client's own index."""

    def of_sync(method: str, *arguments: Any, **keywords: Any) -> Any:
        with SightfixClient(office.url) as client:
            return getattr(client, method)(*arguments, **keywords)

    def of_async(method: str, *arguments: Any, **keywords: Any) -> Any:
        async def one() -> Any:
            async with AsyncSightfixClient(office.url) as client:
                return await getattr(client, method)(*arguments, **keywords)

        return asyncio.run(one())

    chosen = of_sync if request.param == "sync" else of_async
    chosen.name = request.param  # type: ignore[attr-defined]
    return chosen


def test_a_job_and_a_rollback(ask: Ask) -> None:
    index: str = ask.name  # type: ignore[attr-defined]
    before = ask("index", index).current
    request = AppendJobRequest(kind="append", index=index, source="csv:new/photos/refs.csv", max_unreadable=1)
    job = ask("create_job", request, idempotency_key=f"key-{index}")
    assert (job.kind, job.index, job.state) == ("append", index, "PENDING")
    assert ask("create_job", request, idempotency_key=f"key-{index}").id == job.id
    seen: list[Job] = []
    done = ask("wait_for_job", job.id, timeout_s=60.0, pause_s=0.1, on_progress=seen.append)
    assert (done.state, done.error) == ("SUCCEEDED", None)
    assert done == seen[-1] == ask("get_job", job.id)
    assert (done.result.added, done.result.count, done.result.activated) == (3, 7, True)
    failures = ask("list_job_failures", job.id, page_size=10)
    assert (failures.total, failures.failures[0].code) == (1, "image_undecodable")

    listing = ask("index", index)
    assert [version.size for version in listing.versions] == [4, 7]
    assert listing.current == done.result.index_version
    with pytest.raises(ProblemError) as conflict:
        ask("activate", index, before, expected=before)
    assert (conflict.value.status, conflict.value.code) == (409, "version_conflict")
    back = ask("activate", index, before, expected=done.result.index_version)
    assert back.current == before
    assert back.served == (before if index == "sync" else None)
    assert [listing.current for listing in ask("indexes") if listing.name == index] == [before]
    with pytest.raises(ProblemError) as unknown:
        ask("activate", index, "2020-never")
    assert (unknown.value.status, unknown.value.code) == (404, "version_not_found")


def test_jobs_are_listed_page_by_page(ask: Ask) -> None:
    index: str = ask.name  # type: ignore[attr-defined]
    request = RemoveJobRequest(kind="remove", index=index, reference_ids=["nothing.jpg"])
    failed = ask("wait_for_job", ask("create_job", request).id, timeout_s=60.0, pause_s=0.1)
    assert (failed.state, failed.error.code) == ("FAILED", "reference_not_found")
    again = ask("create_job", request)
    assert again.id != failed.id  # a key of its own
    ask("wait_for_job", again.id, timeout_s=60.0, pause_s=0.1)
    page = ask("list_jobs", states=("FAILED",), page_size=1)
    assert [job.id for job in page.jobs] == [again.id]
    older = ask("list_jobs", states=("FAILED",), page_size=1, page_token=page.next_page_token)
    assert [job.id for job in older.jobs] == [failed.id]


def test_cancelling(ask: Ask, office: Office) -> None:
    index: str = ask.name  # type: ignore[attr-defined]
    request = FullJobRequest(kind="full", index=index, source="csv:new/photos/refs.csv")
    with (office.indexes / index / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # somebody runs `sightfix index`: the job waits
        job = ask("create_job", request)
        assert ask("cancel_job", job.id).state in ("CANCELLED", "CANCELLING")
        assert ask("wait_for_job", job.id, timeout_s=60.0, pause_s=0.1).state == "CANCELLED"
    finished = ask("list_jobs", states=("FAILED", "SUCCEEDED"), page_size=1).jobs
    for one in finished:
        with pytest.raises(ProblemError) as refused:
            ask("cancel_job", one.id)
        assert refused.value.code == "job_not_cancellable"


def test_refusals(ask: Ask) -> None:
    with pytest.raises(ProblemError) as outside:
        ask("create_job", FullJobRequest(kind="full", index="x", source="exif:/etc"))
    assert outside.value.code == "source_not_allowed"
    for path in ("job-none", "../indexes", "a/b?c#d"):
        with pytest.raises(ProblemError) as missing:
            ask("get_job", path)
        assert missing.value.status == 404
    with pytest.raises(ProblemError) as none:
        ask("index", "none")
    assert none.value.code == "index_not_found"


def test_waiting_for_a_job_ends(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    running = Job.model_validate(
        {"id": "j", "kind": "full", "index": "x", "state": "RUNNING", "request": {}, "progress": {}, "created_at": 0}
    )

    async def get_job(*_: object) -> Job:
        return running

    monkeypatch.setattr(AsyncSightfixClient, "get_job", get_job)
    with SightfixClient(office.url) as client, pytest.raises(ServerError) as error:
        client.wait_for_job("j", timeout_s=0.05, pause_s=0.01)
    assert (error.value.code, str(error.value)) == (
        "job_unfinished",
        "j: the job is RUNNING after 0.05 s. It goes on: wait again, or cancel it.",
    )
