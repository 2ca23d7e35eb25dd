"""The HTTP interface, and its description at /openapi.json, in which every error is a problem as in the answers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from retrieval import __version__
from service.answer import Problem
from service.api_keys import KeyGuard, KeyRing
from service.http.limits import BodyLimit
from service.http.routes.descriptors import add_descriptor_routes
from service.http.routes.geopose import add_geopose_routes
from service.http.routes.health import add_health_routes, add_metrics_route
from service.http.routes.indexes import add_index_routes, add_reference_routes
from service.http.routes.jobs import add_job_routes, add_no_job_routes
from service.http.routes.localize import add_batch_routes, add_localize_routes
from service.http.routes.tracks import add_track_routes
from service.http.web_page import add_web_page
from service.jobs.service import JobService
from service.observing.requests import ObservedRequests
from service.problems import MEDIA_TYPE, install_problem_handlers
from service.serving.localization import LocalizationService

_REFERENCE: Final = "#/components/schemas/{model}"

# Possible with every operation.
_EVERYWHERE: Final = {"400": "Malformed request", "500": "A fault of the server's; its log says which"}

_FASTAPIS_OWN: Final = ("HTTPValidationError", "ValidationError")

_DESCRIPTION: Final = """Where was this photo taken?

Send a photo to `POST /localize`; get the geo-tagged reference photos most like it, and one position fix.
Errors are RFC 9457 problem details with a stable `code`."""


def create_app(localization: LocalizationService, jobs: JobService | None = None) -> FastAPI:
    """The application; loading, and the jobs' worker, start with it.

    Args:
        localization: localizes photos.
        jobs: re-indexes; None offers no jobs.
    """
    settings, observer = localization.settings, localization.observer

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        localization.start()
        if jobs is not None:
            jobs.start()
        yield
        if jobs is not None:
            await asyncio.to_thread(jobs.stop)
        await asyncio.to_thread(localization.stop)

    # Its documentation pages load nothing from other hosts: robots have no internet.
    app = FastAPIOffline(
        redoc_url=None,
        title="sightfix",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        # FastAPI's own would record whole URLs, geo priors included; ours are in service.observing.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.add_middleware(
        BodyLimit,
        max_bytes=settings.max_body_bytes,
        timeout_s=settings.body_timeout_s,
        max_held_bytes=settings.max_held_bytes,
    )
    if settings.api_keys is not None:
        app.add_middleware(KeyGuard, keys=KeyRing(settings.api_keys))
    # Around all others, so last: it also counts what they refuse.
    app.add_middleware(ObservedRequests, observer=observer, log_all=settings.access_log)
    if jobs is not None:
        observer.watch_jobs(jobs.counts)
    if settings.metrics == "main" and observer.metrics is not None:
        add_metrics_route(app, observer.metrics)
    install_problem_handlers(app, localization.rejections.wait)
    add_web_page(app, settings.map_tiles, jobs=jobs is not None)

    for add in (
        add_localize_routes,
        add_batch_routes,
        add_descriptor_routes,
        add_geopose_routes,
        add_health_routes,
        add_track_routes,
    ):
        add(app, localization)
    add_index_routes(app, localization.live)
    add_reference_routes(app, localization.live)
    if jobs is None:
        add_no_job_routes(app)
    else:
        add_job_routes(app, jobs)
    describe_problems(app)
    return app


def describe_problems(app: FastAPI) -> None:
    """Describe each error in the app's description as a `Problem`, in place of FastAPI's own errors."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        fresh = app.openapi_schema is None
        described = describe()
        if fresh:
            _use_problems(described)
        return described

    app.openapi = openapi  # type: ignore[method-assign] # as FastAPI's documentation does


def _use_problems(described: dict[str, Any]) -> None:
    schemas = described.setdefault("components", {}).setdefault("schemas", {})
    schemas.setdefault("Problem", Problem.model_json_schema(ref_template=_REFERENCE))
    for name in _FASTAPIS_OWN:
        schemas.pop(name, None)
    content = {MEDIA_TYPE: {"schema": {"$ref": _REFERENCE.format(model="Problem")}}}
    for operations in described["paths"].values():
        for operation in operations.values():
            responses = operation["responses"]
            for status, text in _EVERYWHERE.items():
                responses.setdefault(status, {"description": text})
            for status, response in responses.items():
                if status.startswith(("4", "5")) and not _has_own_model(response):
                    response["content"] = content


def _has_own_model(response: dict[str, Any]) -> bool:
    """Whether a response has a model of its own, such as /readyz with 503."""
    reference: str = response.get("content", {}).get("application/json", {}).get("schema", {}).get("$ref", "")
    return bool(reference) and reference.rpartition("/")[2] not in ("Problem", *_FASTAPIS_OWN)
