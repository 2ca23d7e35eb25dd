"""The HTTP interface."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from retrieval.version import __version__
from service.api_keys import KeyRing
from service.body_limit import BodyLimit
from service.jobs.job_service import JobService
from service.jobs.routes import add_job_routes
from service.key_guard import KeyGuard
from service.live_localizer import LiveLocalizer
from service.observing.live_state import JobStates
from service.observing.requests import ObservedRequests
from service.openapi import describe_problems
from service.problems import install_problem_handlers
from service.routes.batch import add_batch_routes
from service.routes.descriptors import add_descriptor_routes
from service.routes.geopose import add_geopose_routes
from service.routes.health import add_health_routes
from service.routes.indexes import add_index_routes
from service.routes.localize import add_localize_routes
from service.routes.metrics import add_metrics_route
from service.routes.no_jobs import add_no_job_routes
from service.routes.references import add_reference_routes
from service.routes.tracks import add_track_routes
from service.web_page import add_web_page

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
