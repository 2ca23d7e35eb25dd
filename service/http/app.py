"""The description of the interface at /openapi.json: every error in it is a problem, as in the answers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from retrieval import __version__
from retrieval.localize.answer import Problem
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
from service.observing.live_state import JobStates
from service.observing.requests import ObservedRequests
from service.problems import MEDIA_TYPE, install_problem_handlers
from service.serving.live_localizer import LiveLocalizer

_REFERENCE: Final = "#/components/schemas/{model}"

# Whatever is called, a client may be too slow or send what is not HTTP, and the server may have a fault.
_EVERYWHERE: Final = {"400": "Malformed request", "500": "A fault of the server's; its log says which"}

_FASTAPIS_OWN: Final = ("HTTPValidationError", "ValidationError")


def describe_problems(app: FastAPI) -> None:
    """Have the app's description say of each error that it is a `Problem`, in place of FastAPI's own errors."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        fresh = app.openapi_schema is None
        described = describe()
        if fresh:
            _say_problem(described)
        return described

    app.openapi = openapi  # type: ignore[method-assign] # as FastAPI's documentation does


def _say_problem(described: dict[str, Any]) -> None:
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
                if status.startswith(("4", "5")) and not _has_its_own(response):
                    response["content"] = content


def _has_its_own(response: dict[str, Any]) -> bool:
    """Such as /readyz, which says in its own words why it answers 503."""
    reference: str = response.get("content", {}).get("application/json", {}).get("schema", {}).get("$ref", "")
    return bool(reference) and reference.rpartition("/")[2] not in ("Problem", *_FASTAPIS_OWN)


# The HTTP interface.

_DESCRIPTION: Final = """Where was this photo taken?

Send a photo to `POST /localize`; get the geo-tagged reference photos most like it, and one position fix.
Errors are RFC 9457 problem details with a stable `code`."""


def create_app(live: LiveLocalizer, jobs: JobService | None = None) -> FastAPI:
    """The application around one live localizer; loading, and the jobs' worker, start with the server.

    Args:
        live: localizes.
        jobs: re-indexes; None offers no jobs.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        live.start_loading()
        if jobs is not None:
            jobs.start()
        yield
        if jobs is not None:
            await asyncio.to_thread(jobs.stop)
        await asyncio.to_thread(live.stop)

    # Its documentation pages load nothing from other hosts: robots have no internet.
    app = FastAPIOffline(
        redoc_url=None,
        title="sightfix",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        # FastAPI's own would tell whole URLs, geo priors included; ours are in service.observing.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.add_middleware(
        BodyLimit,
        max_bytes=live.settings.max_body_bytes,
        timeout_s=live.settings.body_timeout_s,
        max_held_bytes=live.settings.max_held_bytes,
    )
    if live.settings.api_keys is not None:
        app.add_middleware(KeyGuard, keys=KeyRing(live.settings.api_keys))
    # Around all others, so last: it also counts what they refuse.
    app.add_middleware(ObservedRequests, observer=live.observer, log_all=live.settings.access_log)
    if jobs is not None and live.observer.metrics is not None:
        live.observer.metrics.registry.register(JobStates(jobs.store.counts))
    if live.settings.metrics == "main" and live.observer.metrics is not None:
        add_metrics_route(app, live.observer.metrics)
    install_problem_handlers(app, live.refusals.hold)
    add_web_page(app, live.settings.map_tiles, jobs=jobs is not None)

    for add in (
        add_localize_routes,
        add_batch_routes,
        add_descriptor_routes,
        add_geopose_routes,
        add_health_routes,
        add_index_routes,
        add_reference_routes,
        add_track_routes,
    ):
        add(app, live)
    if jobs is None:
        add_no_job_routes(app)
    else:
        add_job_routes(app, jobs)
    describe_problems(app)
    return app
