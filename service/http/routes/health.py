"""Whether the process is alive, whether photos can be localized, what is being served, and the metrics."""

import asyncio
from itertools import product
from typing import Final, Literal

from fastapi import FastAPI, Request, Response
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel, Field

from retrieval import __version__
from retrieval.images import Preprocessing
from retrieval.index.manifest import Bounds
from service.answer import IndexAnswer, ModelAnswer, Problem, index_answer, model_answer
from service.observing.metrics import Metrics
from service.serving.health import State
from service.serving.localization import LocalizationService

# Probes of both kinds; one route each, or they would share an id in the description.
_METHODS: Final = ("GET", "HEAD")

_RETRY_AFTER: Final = "2"


class LivenessAnswer(BaseModel):
    """Whether the process should go on."""

    status: Literal["alive", "hung"] = "alive"
    reason: str | None = None


class ReadinessAnswer(BaseModel):
    """Whether photos can be localized."""

    state: State
    reason: str | None = None


class InfoAnswer(BaseModel):
    """What is being served."""

    sightfix_version: str
    model: ModelAnswer
    preprocessing: Preprocessing = Field(description="What the model sees of a photo: shrink to this before sending")
    passed_over: list[str] = Field(description="Why the model does not compute on a better provider")
    index: IndexAnswer
    bounds: Bounds
    last_swap: str | None = Field(description="What became of the version published last, if it is not served")
    limits: dict[str, float]


def info_answer(localization: LocalizationService) -> InfoAnswer:
    """What is being served.

    Raises:
        RequestError: nothing yet (``not_ready``).
    """
    live, settings = localization.live, localization.settings
    localizer, swap = live.require(), live.last_swap
    return InfoAnswer(
        sightfix_version=__version__,
        model=model_answer(localizer.describer),
        preprocessing=localizer.describer.bundle.preprocessing,
        passed_over=list(localizer.describer.passed_over),
        index=index_answer(localizer.place_index),
        bounds=localizer.place_index.manifest.bounds,
        last_swap=swap.reason if swap and swap.result == "refused" else None,
        limits={
            "max_image_bytes": settings.max_image_bytes,
            "max_pixels": settings.max_pixels,
            "max_waiting": settings.max_waiting,
            "max_batch": localization.max_batch,
            "deadline_ms": settings.deadline_ms,
            "max_tracks": settings.max_tracks,
        },
    )


def add_health_routes(app: FastAPI, localization: LocalizationService) -> None:
    """Add liveness, readiness and info, under the paths of Kubernetes and of KServe (v2)."""

    live = localization.live

    async def alive(response: Response) -> LivenessAnswer:
        hung = live.hung
        if hung is None:
            return LivenessAnswer()
        response.status_code = 503
        response.headers["Retry-After"] = _RETRY_AFTER
        return LivenessAnswer(status="hung", reason=hung)

    async def ready(response: Response) -> ReadinessAnswer:
        readiness = live.readiness
        if readiness.state != "ready":
            response.status_code = 503
            response.headers["Retry-After"] = _RETRY_AFTER
        return ReadinessAnswer(state=readiness.state, reason=readiness.reason)

    async def info() -> InfoAnswer:
        return info_answer(localization)

    for path, method in product(("/livez", "/healthz", "/v2/health/live"), _METHODS):
        app.add_api_route(
            path,
            alive,
            methods=[method],
            summary="Should the process go on?",
            response_model_exclude_none=True,
            responses={503: {"model": LivenessAnswer}},
            include_in_schema=(path, method) == ("/livez", "GET"),
        )
    for path, method in product(("/readyz", "/v2/health/ready", "/v2/models/{model}/ready"), _METHODS):
        app.add_api_route(
            path,
            ready,
            methods=[method],
            summary="Can photos be localized?",
            responses={503: {"model": ReadinessAnswer}},
            include_in_schema=(path, method) == ("/readyz", "GET"),
        )
    for path in ("/info", "/v1/info"):
        app.add_api_route(
            path,
            info,
            methods=["GET"],
            summary="What is being served?",
            responses={503: {"model": Problem}},
            include_in_schema=path == "/info",
        )


def add_metrics_route(app: FastAPI, metrics: Metrics) -> None:
    """Add GET /metrics on the main port: Prometheus's text format, or OpenMetrics if the client accepts it."""

    @app.get("/metrics", include_in_schema=False)
    async def scrape(request: Request) -> Response:
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        # Some milliseconds of text, which would delay photos on the event loop.
        text = await asyncio.to_thread(encode, metrics.registry)
        return Response(text, headers={"Content-Type": media_type})
