"""The place indexes, their versions and which one is current, and thumbnails of their references."""

import asyncio
import io
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import Response
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from retrieval.errors import IndexNotFoundError, SightfixError
from retrieval.images import decode_upright, read_image_bytes
from service.answer import Problem
from service.http.requests import json_body, parse_json
from service.problems import RequestError
from service.serving.live_localizer import LiveLocalizer

THUMBNAIL_SIDE: Final = 320


class VersionAnswer(BaseModel):
    """One published version of an index."""

    version: str
    created_at: datetime
    size: int = Field(description="Number of references")
    bundle: str = Field(description="Fingerprint of the bundle it was described with")


class IndexListing(BaseModel):
    """One index and its versions, oldest first."""

    name: str
    current: str | None = Field(description="The version that is in force")
    served: str | None = Field(description="The version that this server answers with, if it serves this index")
    versions: list[VersionAnswer]


class ActivateBody(BaseModel):
    """Which version to make current."""

    model_config = ConfigDict(extra="forbid")

    version: str


def add_index_routes(app: FastAPI, live: LiveLocalizer) -> None:
    """Add GET /indexes, GET /indexes/{name} and POST /indexes/{name}/activate."""
    activating = asyncio.Lock()
    errors: dict[int | str, dict[str, Any]] = {status: {"model": Problem} for status in (404, 409, 413, 422, 503)}

    @app.get("/indexes", summary="Which place indexes are there?", responses={503: {"model": Problem}})
    async def list_indexes() -> list[IndexListing]:
        live.require()
        names = await asyncio.to_thread(live.store.names)
        return await asyncio.gather(*(asyncio.to_thread(_listing, live, name) for name in names))

    @app.get("/indexes/{name}", summary="One place index and its versions", responses={404: {"model": Problem}})
    async def one_index(name: str) -> IndexListing:
        live.require()
        return await asyncio.to_thread(_listing, live, await asyncio.to_thread(live.store.find, name))

    @app.post(
        "/indexes/{name}/activate",
        summary="Make a published version the current one: an upgrade, or a rollback",
        description="The answer comes when the version is served. `If-Match` names the version that must be current.",
        responses=errors,
        openapi_extra=json_body(ActivateBody),
    )
    async def activate(name: str, request: Request) -> IndexListing:
        live.require()
        raw = await request.body()
        body = await asyncio.to_thread(parse_json, ActivateBody, raw)
        index = await asyncio.to_thread(live.store.find, name)
        # One at a time: of two at once, the one that fails would roll the other's version back.
        async with activating:
            await asyncio.to_thread(_activate, live, index, body.version, request.headers.get("if-match"))
        return await asyncio.to_thread(_listing, live, index)


def _activate(live: LiveLocalizer, name: str, version: str, expected: str | None) -> None:
    before = _current(live, name)
    if expected is not None and expected.strip('"') != before:
        raise RequestError(
            f"version {before!r} is current, not {expected}",
            code="version_conflict",
            remedy="Look at the index again, then decide",
        )
    live.store.activate(name, version)
    if live.require().place_index.name != name:
        return
    live.look_for_new_version(again=True)
    if live.require().place_index.version != version:
        refused = live.last_swap
        if _current(live, name) != version:  # a job has published a version meanwhile, which must not be rolled back
            raise RequestError(
                f"version {version!r} was current for a moment only: {_current(live, name)!r} was published meanwhile",
                code="version_conflict",
                remedy="Look at the index again, then decide",
            )
        if before is not None:
            live.store.activate(name, before)
            live.look_for_new_version()
        raise RequestError(
            f"version {version!r} cannot be served: {refused.reason if refused else 'the log says why'}",
            code="version_conflict",
            remedy="Activate another version" if before is None else f"Version {before!r} is current again",
        )


def _current(live: LiveLocalizer, name: str) -> str | None:
    """The version that is in force; None where none is that is there."""
    try:
        return live.store.current(name)
    except IndexNotFoundError:
        return None


def _listing(live: LiveLocalizer, name: str) -> IndexListing:
    served = live.require().place_index
    versions = []
    for version in live.store.versions(name):
        try:
            manifest = live.store.manifest(name, version)
        except SightfixError:  # pruned this moment, or damaged: it cannot be activated either
            continue
        versions.append(
            VersionAnswer(
                version=version, created_at=manifest.created_at, size=manifest.count, bundle=manifest.bundle.fingerprint
            )
        )
    return IndexListing(
        name=name,
        current=_current(live, name),
        served=served.version if served.name == name else None,
        versions=versions,
    )


def make_thumbnail(path: Path, side: int = THUMBNAIL_SIDE) -> bytes:
    """A JPEG of at most `side` × `side` pixels, upright, with the photo's aspect ratio and none of its metadata.

    Raises:
        ImageError: the photo cannot be read or decoded.
    """
    image = Image.fromarray(np.asarray(decode_upright(read_image_bytes(path), side, where=str(path))))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def add_reference_routes(app: FastAPI, live: LiveLocalizer) -> None:
    """Add GET /references/{id}/image, and /references/image?id=… for ids that no path can hold, as ``../a.jpg``.

    Only photos of indexed references can be asked for.
    """
    # One at a time: a page full of thumbnails must not delay a robot.
    making = asyncio.Lock()
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
        async with making:
            thumbnail = await asyncio.to_thread(make_thumbnail, path)
        return Response(thumbnail, media_type="image/jpeg", headers=headers)
