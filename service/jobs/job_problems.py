"""The error of a job as problem details."""

from http import HTTPStatus

from retrieval.answer import Problem
from service.problems import STATUS_OF_CODE, TYPE_PREFIX


def job_problem(job_id: str, code: str, detail: str) -> Problem:
    """An error that ended a job.

    Args:
        job_id: of the job.
        code: stable and machine-readable.
        detail: what, where and the remedy, in sentences.
    """
    status = STATUS_OF_CODE.get(code, 500)
    return Problem(
        type=f"{TYPE_PREFIX}{code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        instance=f"urn:job:{job_id}",
        code=code,
    )
