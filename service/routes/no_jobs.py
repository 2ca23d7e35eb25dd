"""What a server without source roots says about jobs."""

from fastapi import FastAPI, Request

from service.problems import RequestError


def add_no_job_routes(app: FastAPI) -> None:
    """Refuse everything about jobs, and say how to have them."""

    async def refuse(request: Request) -> None:
        raise RequestError(
            "this server accepts no jobs",
            code="jobs_disabled",
            remedy="Start it with the folders that photos may come from: SIGHTFIX_SOURCE_ROOTS or --source-root",
        )

    for path in ("/jobs", "/v1/jobs", "/jobs/{rest:path}", "/v1/jobs/{rest:path}"):
        app.add_api_route(path, refuse, methods=["GET", "POST"], include_in_schema=False)
