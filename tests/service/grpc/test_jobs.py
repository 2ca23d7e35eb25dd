"""JobService: the same jobs as over HTTP."""

import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest

from index_builder.update import build_index
from retrieval.describer import Describer
from retrieval.references import open_references
from service.grpc.generated import jobs_pb2 as pb
from service.grpc.generated.jobs_pb2_grpc import JobServiceStub
from service.jobs.service import JobService
from service.serving.localization import LocalizationService
from service.settings import ServerSettings
from tests.conftest import PublishedPlaces
from tests.running_server import forked_server
from tests.service.grpc.conftest import grpc_address, served
from tests.service.grpc.test_localization import details
from tests.service.jobs.town import Town

CODE = grpc.StatusCode
FULL = pb.JobSpec(index="town", full=pb.FullWork(source="csv:town/refs.csv", max_unreadable=2))


@pytest.fixture
def town(tmp_path: Path) -> Town:
    town = Town(tmp_path)
    town.roots.mkdir()
    town.write_photos(1)
    return town


@pytest.fixture
def jobs(town: Town) -> JobService:
    """Whose worker does not run."""
    return JobService(town.settings(max_waiting=5))


@pytest.fixture
def stub(published: PublishedPlaces, jobs: JobService) -> Iterator[JobServiceStub]:
    localization = LocalizationService(ServerSettings(indexes=published.indexes, threads=1))
    with served(localization, load=False, jobs=jobs) as running, grpc.insecure_channel(running.address) as channel:
        yield JobServiceStub(channel)


SPECS = [
    FULL,
    pb.JobSpec(index="town", publish=pb.PUBLISH_MANUAL, full=pb.FullWork(source="csv:town/refs.csv", storage="fp32")),
    pb.JobSpec(index="town", full=pb.FullWork(source="csv:town/refs.csv", index_type="hnsw", recall=0.9, whiten=64)),
    pb.JobSpec(index="town", append=pb.AppendWork(source="csv:town/refs.csv", describe_again=True)),
    pb.JobSpec(index="town", remove=pb.RemoveWork(reference_ids=["a", "b"])),
    pb.JobSpec(index="town", remove=pb.RemoveWork(remove_missing=True)),
]


@pytest.mark.parametrize("spec", SPECS)
def test_a_job_is_accepted_shown_listed_and_cancelled(stub: JobServiceStub, jobs: JobService, spec: pb.JobSpec) -> None:
    created = stub.CreateJob(pb.CreateJobRequest(spec=spec))
    assert created.is_new
    job = created.job
    told = pb.JobSpec()
    told.CopyFrom(spec)
    told.publish = spec.publish or pb.PUBLISH_AUTO
    if spec.WhichOneof("work") == "full":
        told.full.storage = spec.full.storage or "fp16"
        told.full.index_type = spec.full.index_type or "exact"
        told.full.recall = spec.full.recall or 0.95
    assert (job.state, job.spec) == (pb.JOB_STATE_PENDING, told)
    assert job.created_at.ToDatetime() == jobs.get(job.id).created_at.replace(tzinfo=None)
    assert not job.HasField("started_at")
    assert not job.progress.HasField("total")
    assert stub.GetJob(pb.GetJobRequest(id=job.id)).job == job
    assert list(stub.ListJobs(pb.ListJobsRequest()).jobs) == [job]
    assert stub.CancelJob(pb.CancelJobRequest(id=job.id)).job.state == pb.JOB_STATE_CANCELLED


def test_the_same_key_gives_the_same_job(stub: JobServiceStub) -> None:
    first = stub.CreateJob(pb.CreateJobRequest(spec=FULL, idempotency_key="k"))
    again = stub.CreateJob(pb.CreateJobRequest(spec=FULL, idempotency_key="k"))
    assert (again.job.id, again.is_new) == (first.job.id, False)
    with pytest.raises(grpc.RpcError) as other:
        stub.CreateJob(pb.CreateJobRequest(spec=SPECS[3], idempotency_key="k"))
    assert other.value.code() == CODE.ALREADY_EXISTS


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (pb.JobSpec(index="town"), "spec.work"),
        (pb.JobSpec(index="../town", full=FULL.full), "spec.index"),
        (pb.JobSpec(index="town", publish=9, full=FULL.full), "spec.publish"),  # type: ignore[arg-type]
        (pb.JobSpec(index="town", full=pb.FullWork()), "spec.full.source"),
        (pb.JobSpec(index="town", full=pb.FullWork(source="csv:a", storage="fp8")), "spec.full.storage"),
        (pb.JobSpec(index="town", remove=pb.RemoveWork()), "spec.remove"),
    ],
)
def test_a_spec_that_is_wrong_says_where(stub: JobServiceStub, spec: pb.JobSpec, field: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        stub.CreateJob(pb.CreateJobRequest(spec=spec))
    assert refused.value.code() == CODE.INVALID_ARGUMENT
    assert [violation.field for violation in details(refused.value)["BadRequest"].field_violations] == [field]


def test_what_is_refused(stub: JobServiceStub) -> None:
    def code(call: object, request: object) -> grpc.StatusCode:
        with pytest.raises(grpc.RpcError) as refused:
            call(request)  # type: ignore[operator]
        return refused.value.code()

    outside = pb.JobSpec(index="town", full=pb.FullWork(source="csv:../secret.csv"))
    assert code(stub.CreateJob, pb.CreateJobRequest(spec=outside)) == CODE.INVALID_ARGUMENT
    assert code(stub.CreateJob, pb.CreateJobRequest(spec=FULL, idempotency_key="")) == CODE.INVALID_ARGUMENT
    for call, request in ((stub.GetJob, pb.GetJobRequest(id="job-1")), (stub.CancelJob, pb.CancelJobRequest(id="x"))):
        assert code(call, request) == CODE.NOT_FOUND
    assert code(stub.ListJobs, pb.ListJobsRequest(page_size=0)) == CODE.INVALID_ARGUMENT
    assert code(stub.ListJobs, pb.ListJobsRequest(page_token="x")) == CODE.INVALID_ARGUMENT
    assert code(stub.ListJobs, pb.ListJobsRequest(states=[0])) == CODE.INVALID_ARGUMENT  # type: ignore[list-item]
    for _ in range(5):
        stub.CreateJob(pb.CreateJobRequest(spec=FULL))
    assert code(stub.CreateJob, pb.CreateJobRequest(spec=FULL)) == CODE.RESOURCE_EXHAUSTED
    pages = []
    token = ""
    while True:
        page = stub.ListJobs(pb.ListJobsRequest(page_size=2, page_token=token, states=[pb.JOB_STATE_PENDING]))
        pages.append(len(page.jobs))
        token = page.next_page_token
        if not token:
            break
    assert sum(pages) == 5


def test_without_source_roots_there_is_no_such_service(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        JobServiceStub(channel).ListJobs(pb.ListJobsRequest())
    assert refused.value.code() == CODE.UNIMPLEMENTED


def test_a_job_from_beginning_to_end(tmp_path: Path, describer: Describer) -> None:
    town = Town(tmp_path)
    town.roots.mkdir()
    town.write_photos(6, listed=3)
    build_index(open_references(f"csv:{town.roots}/town/refs.csv"), describer, town.indexes, "town")
    town.write_photos(6)
    arguments = ["--indexes", str(town.indexes), "--source-root", str(town.roots), "--grpc-port", "0"]
    with forked_server(tmp_path / "log", arguments) as running:
        running.wait_until_ready()
        with grpc.insecure_channel(grpc_address(running)) as channel:
            stub = JobServiceStub(channel)
            spec = pb.JobSpec(index="town", append=pb.AppendWork(source="csv:town/refs.csv"))
            job = stub.CreateJob(pb.CreateJobRequest(spec=spec)).job
            begun = time.monotonic()
            while job.state not in (pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_FAILED) and time.monotonic() - begun < 90:
                time.sleep(0.2)
                job = stub.GetJob(pb.GetJobRequest(id=job.id)).job
            assert job.state == pb.JOB_STATE_SUCCEEDED, job
            over_http = httpx.get(f"{running.url}/jobs/{job.id}").json()
            assert (job.result.index_version, job.result.count) == (over_http["result"]["index_version"], 6)
            assert (job.result.added, job.result.kept, job.result.activated) == (3, 3, True)
            assert job.result.gate.recall == over_http["result"]["gate"]["recall"]
            assert job.finished_at.ToDatetime() > job.started_at.ToDatetime() >= job.created_at.ToDatetime()
            assert stub.ListJobFailures(pb.ListJobFailuresRequest(id=job.id)).total == 0
            with pytest.raises(grpc.RpcError) as late:
                stub.CancelJob(pb.CancelJobRequest(id=job.id))
            assert late.value.code() == CODE.FAILED_PRECONDITION
