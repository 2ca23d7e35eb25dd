"""What an operator asks: which versions there are, which one is served, and jobs that make new ones."""

from collections.abc import Sequence
from typing import Final
from urllib.parse import quote
from uuid import uuid4

from pydantic import TypeAdapter

from service.jobs.model import JOB_REQUEST, Job, JobFailurePage, JobPage, JobRequest, JobState
from sightfix.client.answers import IndexListing
from sightfix.client.calls import Call, reads

_LISTINGS: Final = TypeAdapter(list[IndexListing])


def indexes_call() -> Call[list[IndexListing]]:
    """Which indexes and versions are there?"""
    return Call("GET", "/indexes", lambda response: _LISTINGS.validate_json(response.content))


def index_call(name: str) -> Call[IndexListing]:
    """Which versions does this index have?"""
    return Call("GET", f"/indexes/{_part(name)}", reads(IndexListing))


def activate_call(name: str, version: str, expected: str | None, timeout_s: float) -> Call[IndexListing]:
    """Make this version current."""
    headers = {} if expected is None else {"If-Match": f'"{expected}"'}
    # Done twice it could undo what somebody else did in between.
    return Call(
        "POST",
        f"/indexes/{_part(name)}/activate",
        reads(IndexListing),
        {"json": {"version": version}, "headers": headers},
        repeatable=False,
        timeout_s=timeout_s,
    )


def create_job_call(request: JobRequest, idempotency_key: str | None) -> Call[Job]:
    """Do this. The key makes it one job, however often it is sent."""
    headers = {"Content-Type": "application/json", "Idempotency-Key": idempotency_key or str(uuid4())}
    return Call("POST", "/jobs", reads(Job), {"content": JOB_REQUEST.dump_json(request), "headers": headers})


def get_job_call(job_id: str) -> Call[Job]:
    """How far is it?"""
    return Call("GET", f"/jobs/{_part(job_id)}", reads(Job))


def list_jobs_call(states: Sequence[JobState], page_size: int, page_token: str | None) -> Call[JobPage]:
    """Which jobs are there?"""
    params = _page(page_size, page_token)
    if states:
        params["state"] = ",".join(states)
    return Call("GET", "/jobs", reads(JobPage), {"params": params})


def list_job_failures_call(job_id: str, page_size: int, page_token: str | None) -> Call[JobFailurePage]:
    """Which photos could it not index?"""
    path = f"/jobs/{_part(job_id)}/failures"
    return Call("GET", path, reads(JobFailurePage), {"params": _page(page_size, page_token)})


def cancel_job_call(job_id: str) -> Call[Job]:
    """Stop it."""
    return Call("POST", f"/jobs/{_part(job_id)}/cancel", reads(Job))


def _page(size: int, token: str | None) -> dict[str, str]:
    return {"page_size": str(size)} if token is None else {"page_size": str(size), "page_token": token}


def _part(name: str) -> str:
    """One part of a path, whatever it holds."""
    return quote(name, safe="")
