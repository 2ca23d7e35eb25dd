"""GET /metrics on the main port, for who has only that one."""

import asyncio

from fastapi import FastAPI, Request
from fastapi.responses import Response
from prometheus_client.exposition import choose_encoder

from service.observing.metrics import Metrics


def add_metrics_route(app: FastAPI, metrics: Metrics) -> None:
    """Add GET /metrics: Prometheus's text, or OpenMetrics for who asks for it."""

    @app.get("/metrics", include_in_schema=False)
    async def scrape(request: Request) -> Response:
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        # Some milliseconds of text that no photo should wait for.
        text = await asyncio.to_thread(encode, metrics.registry)
        return Response(text, headers={"Content-Type": media_type})
