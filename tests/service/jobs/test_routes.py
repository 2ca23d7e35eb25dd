"""Jobs over HTTP: what is accepted, what is refused, and how. The worker does not run here."""

import json

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.http.routes.jobs import add_job_routes
from service.jobs.model import JobFailure
from service.jobs.service import JobService
from service.jobs.work_queue import WorkQueue
from service.problems import install_problem_handlers
from service.serving.admission import RejectionThrottle
from tests.service.jobs.town import Town

FULL = {"kind": "full", "index": "town", "source": "csv:town/refs.csv"}
REMOVE = {"kind": "remove", "index": "town", "reference_ids": ["a"]}


@pytest.fixture
def jobs(town: Town) -> JobService:
    town.write_photos(1)
    return JobService(town.settings(max_request_bytes=2048, max_waiting=5))


@pytest.fixture
def http(jobs: JobService) -> TestClient:
    return client_of(jobs)


def client_of(jobs: JobService) -> TestClient:
    app = FastAPI()
    install_problem_handlers(app, RejectionThrottle().wait)
    add_job_routes(app, jobs)
    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_a_job_is_accepted_shown_listed_and_cancelled(http: TestClient, prefix: str) -> None:
    response = http.post(f"{prefix}/jobs", json={**FULL, "max_unreadable": 2})
    assert response.status_code == 202
    job = response.json()
    assert response.headers["location"] == f"{prefix}/jobs/{job['id']}"
    assert response.headers["retry-after"] == "2"
    assert (job["state"], job["kind"], job["index"]) == ("PENDING", "full", "town")
    design = {"storage": "fp16", "index_type": "exact", "recall": 0.95, "whiten": 0}
    assert job["request"] == {**FULL, "max_unreadable": 2, "publish": "auto", **design}
    assert job["progress"] == {"done": 0, "total": None, "failed": 0, "skipped": 0, "rate_per_s": None, "eta_s": None}
    shown = http.get(response.headers["location"])
    assert (shown.status_code, shown.json(), shown.headers["retry-after"]) == (200, job, "2")
    assert http.get(f"{prefix}/jobs").json() == {"jobs": [job], "next_page_token": None}
    cancelled = http.post(f"{prefix}/jobs/{job['id']}/cancel")
    assert (cancelled.status_code, cancelled.json()["state"]) == (202, "CANCELLED")
    assert http.post(f"{prefix}/jobs/{job['id']}:cancel").json()["state"] == "CANCELLED"
    assert "retry-after" not in http.get(f"{prefix}/jobs/{job['id']}").headers


def test_the_same_request_with_the_same_key_gives_the_same_job(http: TestClient, town: Town) -> None:
    key = {"Idempotency-Key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}
    first = http.post("/jobs", json=FULL, headers=key)
    body = json.dumps(dict(reversed(FULL.items())), indent=3)  # the same request in other letters
    (town.roots / "town" / "refs.csv").unlink()  # what was accepted stays accepted
    again = http.post("/jobs", content=body, headers={**key, "Content-Type": "application/json"})
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.headers["location"] == first.headers["location"]
    assert again.json() == first.json()
    other = http.post("/jobs", json=REMOVE, headers=key)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")
    assert len(http.get("/jobs").json()["jobs"]) == 1


@pytest.mark.parametrize("key", ["", " " * 256, "x" * 256, "ä"])
def test_a_key_that_cannot_be_one_is_refused(http: TestClient, key: str) -> None:
    response = http.post("/jobs", json=FULL, headers={"Idempotency-Key": key.encode("utf-8")})  # type: ignore[dict-item]
    assert (response.status_code, response.json()["code"]) == (422, "validation_error")


@pytest.mark.parametrize(
    ("body", "pointer", "message"),
    [
        (
            {**FULL, "sauce": 1},
            "/sauce",
            "its keys are index, publish, source, max_unreadable, kind, storage, index_type, recall, whiten",
        ),
        ({**FULL, "kind": "append", "storage": "fp16"}, "/storage", "There is no such key in a job of kind append"),
        ({**FULL, "kind": "purge"}, "/kind", "Choose among full, append, remove"),
        ({"index": "town"}, "/kind", "Choose among full, append, remove"),
        ({"kind": "full", "index": "town"}, "/source", "Field required"),
        ({**FULL, "index": "../town"}, "/index", "cannot be the name of a place index"),
        ({**FULL, "index": "town\n"}, "/index", "cannot be the name of a place index"),
        ({**FULL, "source": "exif:a\0b"}, "/source", "a character that cannot be printed"),
        ({**FULL, "source": ""}, "/source", "at least 1 character"),
        ({**FULL, "max_unreadable": -1}, "/max_unreadable", "greater than or equal to 0"),
        ({**FULL, "publish": "now"}, "/publish", "'auto' or 'manual'"),
        ({"kind": "remove", "index": "town"}, "/", "either reference_ids or remove_missing"),
        ({**REMOVE, "remove_missing": True}, "/", "either reference_ids or remove_missing"),
        ({**REMOVE, "reference_ids": []}, "/reference_ids", "at least 1 item"),
        ([], "/", "an object"),
        ("full", "/", "an object"),
    ],
)
def test_a_request_that_is_wrong_says_where(http: TestClient, body, pointer: str, message: str) -> None:
    response = http.post("/jobs", json=body)
    problem = response.json()
    assert (response.status_code, problem["code"]) == (422, "validation_error")
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["errors"][0]["pointer"] == pointer
    assert message in problem["errors"][0]["message"]
    assert http.get("/jobs").json()["jobs"] == []


@pytest.mark.parametrize(
    ("content", "media_type", "status", "code"),
    [
        (b"{", "application/json", 400, "malformed_request"),
        (b"", "application/json", 400, "malformed_request"),
        (b"\xff\xfe", "application/json", 400, "malformed_request"),
        (b"[" * 2000, "application/json", 400, "malformed_request"),
        (b'{"kind": "full", "index": "town", "source": "\\ud800"}', "application/json", 400, "malformed_request"),
        (b"{}", "text/plain", 415, "unsupported_media_type"),
        (b"{" + b" " * 3000, "application/json", 413, "body_too_large"),
    ],
)
def test_a_body_that_cannot_be_read(http: TestClient, content: bytes, media_type: str, status: int, code: str) -> None:
    response = http.post("/jobs", content=content, headers={"Content-Type": media_type})
    assert (response.status_code, response.json()["code"]) == (status, code)


@pytest.mark.parametrize(
    ("settings", "whiten", "text"),
    [
        ({}, 8, "/whiten: 8 numbers are too few. Send 0, or 16 at least."),
        (
            {"bundle": "/bundles/own"},
            64,
            "/whiten: this server was given the bundle to describe with, so its jobs do not adapt bundles. "
            "Leave out whiten, or have the server started without SIGHTFIX_BUNDLE and in fp32.",
        ),
        (
            {"precision": "fp16"},
            64,
            "/whiten: this server describes in fp16, so its jobs do not adapt bundles. "
            "Leave out whiten, or have the server started without SIGHTFIX_BUNDLE and in fp32.",
        ),
    ],
)
def test_numbers_that_cannot_be_had_are_refused(town: Town, settings, whiten: int, text: str) -> None:
    town.write_photos(1)
    http = client_of(JobService(town.settings(**settings)))
    response = http.post("/jobs", json={**FULL, "whiten": whiten})
    assert (response.status_code, response.json()["code"]) == (422, "validation_error")
    assert response.json()["detail"] == text
    assert response.json()["errors"][0]["pointer"] == "/whiten"
    assert http.get("/jobs").json()["jobs"] == []
    assert http.post("/jobs", json={**FULL, "whiten": 0}).status_code == 202


def test_as_many_numbers_as_can_be_had_are_accepted(http: TestClient) -> None:
    assert http.post("/jobs", json={**FULL, "whiten": 16}).status_code == 202


@pytest.mark.parametrize("source", ["csv:../secret.csv", "exif:/etc", "http://10.0.0.1/", "csv:town/refs.csv?root=/"])
def test_a_source_outside_the_roots_is_refused(http: TestClient, source: str) -> None:
    response = http.post("/jobs", json={**FULL, "source": source})
    assert (response.status_code, response.json()["code"]) == (422, "source_not_allowed")
    assert http.get("/jobs").json()["jobs"] == []


@pytest.mark.parametrize("body", [FULL, REMOVE])
def test_without_source_roots_jobs_are_refused(town: Town, body) -> None:
    response = client_of(JobService(town.settings(source_roots=[]))).post("/jobs", json=body)
    assert (response.status_code, response.json()["code"]) == (403, "jobs_disabled")
    assert "Start it with at least one source root" in response.json()["detail"]


def test_too_many_waiting_jobs(http: TestClient) -> None:
    responses = [http.post("/jobs", json=FULL) for _ in range(6)]
    assert [response.status_code for response in responses] == [202] * 5 + [429]
    assert responses[5].json()["code"] == "queue_full"
    assert "retry-after" in responses[5].headers


@pytest.mark.parametrize(
    ("method", "path"), [("GET", ""), ("POST", "/cancel"), ("POST", ":cancel"), ("GET", "/failures")]
)
def test_a_job_that_there_is_not(http: TestClient, method: str, path: str) -> None:
    response = http.request(method, f"/jobs/job-1{path}")
    assert (response.status_code, response.json()["code"]) == (404, "job_not_found")


def test_lists_are_paged_and_filtered(http: TestClient) -> None:
    ids = [http.post("/jobs", json=FULL).json()["id"] for _ in range(3)]
    http.post(f"/jobs/{ids[0]}/cancel")
    page = http.get("/jobs", params={"page_size": 2}).json()
    assert [job["id"] for job in page["jobs"]] == [ids[2], ids[1]]
    page = http.get("/jobs", params={"page_size": 2, "page_token": page["next_page_token"]}).json()
    assert ([job["id"] for job in page["jobs"]], page["next_page_token"]) == ([ids[0]], None)
    found = http.get("/jobs", params={"state": "CANCELLED,FAILED"}).json()
    assert [job["id"] for job in found["jobs"]] == [ids[0]]


@pytest.mark.parametrize(
    "query",
    [
        "page_size=0",
        "page_size=201",
        "page_size=1&page_size=2",
        "page_token=x",
        "page_token=-1",
        "page_token=²",
        "page_token=999999999999999999999",
        "state=DONE",
        "state=",
        "limit=3",
    ],
)
def test_list_parameters_that_are_wrong(http: TestClient, query: str) -> None:
    response = http.get(f"/jobs?{query}")
    assert (response.status_code, response.json()["code"]) == (422, "validation_error")


def test_failures_are_shown(http: TestClient, jobs: JobService) -> None:
    job_id = http.post("/jobs", json=FULL).json()["id"]
    queue = WorkQueue(jobs.settings)
    job = queue.take()
    assert job is not None
    queue.add_failures(job, [JobFailure(path="a.jpg", code="image_undecodable", reason="it ends", remedy="Send it")])
    queue.progress(job, done=1, total=2, failed=1, rate_per_s=None)
    assert http.get(f"/jobs/{job_id}/failures").json() == {
        "failures": [{"path": "a.jpg", "code": "image_undecodable", "reason": "it ends", "remedy": "Send it"}],
        "total": 1,
        "next_page_token": None,
    }


def test_a_finished_job_cannot_be_cancelled(http: TestClient, jobs: JobService) -> None:
    job_id = http.post("/jobs", json=FULL).json()["id"]
    queue = WorkQueue(jobs.settings)
    job = queue.take()
    assert job is not None
    from tests.service.jobs.test_store import RESULT

    queue.succeed(job, RESULT)
    response = http.post(f"/jobs/{job_id}/cancel")
    assert (response.status_code, response.json()["code"]) == (409, "job_not_cancellable")


def test_the_openapi_document_describes_the_three_kinds(http: TestClient) -> None:
    document = http.get("/openapi.json").json()
    for prefix in ("", "/v1"):
        post = document["paths"][f"{prefix}/jobs"]["post"]
        content = post["requestBody"]["content"]["application/json"]
        assert {schema["title"] for schema in content["schema"]["oneOf"]} == {
            "FullJobRequest",
            "AppendJobRequest",
            "RemoveJobRequest",
        }
        assert set(content["examples"]) == {"full", "append", "remove"}
        assert {"202", "200", "409", "429"} <= set(post["responses"])
    operations = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(operations) == len(set(operations))
