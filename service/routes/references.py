"""Thumbnails of indexed references; nothing else on the disk can be asked for."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from retrieval.answer import Problem
from service.live_localizer import LiveLocalizer
from service.problems import RequestError
from service.thumbnails import THUMBNAIL_SIDE, make_thumbnail


def add_reference_routes(app: FastAPI, live: LiveLocalizer) -> None:
    """Add GET /references/{id}/image, and /references/image?id=… for ids that no path can hold, as ``../a.jpg``."""
    described: dict[str, Any] = {
        "response_class": Response,
        "responses": {200: {"content": {"image/jpeg": {}}}, 404: {"model": Problem}, 503: {"model": Problem}},
    }

    @app.get("/references/image", summary="A small version of a reference photo, whatever its id", **described)
    async def image_of(id: str, request: Request) -> Response:  # noqa: A002 - the parameter's name
        return await reference_image(id, request)

    @app.get("/references/{reference_id:path}/image", summary="A small version of a reference photo", **described)
    async def reference_image(reference_id: str, request: Request) -> Response:
        index = live.require().place_index
        path = index.references([index.row_of(reference_id)])[0].path
        tag = f'"{index.version}-{THUMBNAIL_SIDE}"'
        headers = {"ETag": tag, "Cache-Control": "private, max-age=3600"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        if not path.is_file():
            raise RequestError(
                f"the photo of reference {reference_id!r} is no longer where it was indexed",
                code="reference_not_found",
                remedy="Put the photos back, or index them again from where they are now",
            )
        return Response(await live.in_thumbnailer(make_thumbnail, path), media_type="image/jpeg", headers=headers)
