"""Which indexes and versions there are, and which one is current: upgrades and rollbacks."""

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field

from retrieval.answer import Problem
from retrieval.errors import PlaceIndexError, SightfixError
from retrieval.index_folder import (
    CURRENT_NAME,
    VERSIONS_NAME,
    activate_version,
    current_version,
    find_index,
    published_versions,
)
from retrieval.place_index_manifest import PlaceIndexManifest
from service.live_localizer import LiveLocalizer
from service.localize_request import parse_json
from service.problems import RequestError


class VersionAnswer(BaseModel):
    """One published version of an index."""

    version: str
    created_at: datetime
    size: int = Field(description="Number of references")
    bundle: str = Field(description="Fingerprint of the bundle it was described with")


class IndexListing(BaseModel):
    """One index and its versions, oldest first."""

    name: str
    current: str | None = Field(description="The version that CURRENT names")
    served: str | None = Field(description="The version that this server answers with, if it serves this index")
    versions: list[VersionAnswer]


class ActivateBody(BaseModel):
    """Which version shall be current."""

    model_config = ConfigDict(extra="forbid")

    version: str


def add_index_routes(app: FastAPI, live: LiveLocalizer) -> None:
    """Add GET /indexes, GET /indexes/{name} and POST /indexes/{name}/activate."""
    activating = asyncio.Lock()
    errors: dict[int | str, dict[str, Any]] = {status: {"model": Problem} for status in (404, 409, 413, 422, 503)}

    @app.get("/indexes", summary="Which place indexes are there?", responses={503: {"model": Problem}})
    async def list_indexes() -> list[IndexListing]:
        live.require()
        folder = live.settings.indexes
        names = sorted(current.parent.name for current in folder.glob(f"*/{CURRENT_NAME}"))
        return await asyncio.gather(*(asyncio.to_thread(_listing, live, folder / name) for name in names))

    @app.get("/indexes/{name}", summary="One place index and its versions", responses={404: {"model": Problem}})
    async def one_index(name: str) -> IndexListing:
        live.require()
        return await asyncio.to_thread(_listing, live, find_index(live.settings.indexes, name))

    @app.post(
        "/indexes/{name}/activate",
        summary="Make a published version the current one: an upgrade, or a rollback",
        description="The answer comes when the version is served. `If-Match` names the version that must be current.",
        responses=errors,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": ActivateBody.model_json_schema()}},
            }
        },
    )
    async def activate(name: str, request: Request) -> IndexListing:
        live.require()
        raw = await request.body()
        body = await live.in_decoder(lambda: parse_json(ActivateBody, raw))
        folder = find_index(live.settings.indexes, name)
        # One at a time: of two at once, the one that fails would take the other's version back.
        async with activating:
            await asyncio.to_thread(_activate, live, folder, body.version, request.headers.get("if-match"))
        return await asyncio.to_thread(_listing, live, folder)


def _activate(live: LiveLocalizer, folder: Path, version: str, expected: str | None) -> None:
    before = _current(folder)
    if expected is not None and expected.strip('"') != before:
        raise RequestError(
            f"version {before!r} is current, not {expected}",
            code="version_conflict",
            remedy="Look at the index again, then decide",
        )
    activate_version(folder, version)
    if live.require().place_index.name != folder.name or live.watch is None:
        return
    live.watch.look()
    if live.require().place_index.version != version:
        refused = live.watch.last_swap
        if _current(folder) != version:  # a job has published its own meanwhile, which is none of ours to take back
            raise RequestError(
                f"version {version!r} was current for a moment only: {_current(folder)!r} was published meanwhile",
                code="version_conflict",
                remedy="Look at the index again, then decide",
            )
        if before is not None:
            activate_version(folder, before)
            live.watch.look()
        raise RequestError(
            f"version {version!r} cannot be served: {refused.reason if refused else 'the log says why'}",
            code="version_conflict",
            remedy="Activate another version" if before is None else f"Version {before!r} is current again",
        )


def _current(folder: Path) -> str | None:
    """The version that CURRENT names; None where it names none that is there."""
    try:
        return current_version(folder)
    except SightfixError:
        return None


def _listing(live: LiveLocalizer, folder: Path) -> IndexListing:
    served = live.require().place_index
    versions = []
    for version in published_versions(folder):
        try:
            manifest = PlaceIndexManifest.read(folder / VERSIONS_NAME / version, PlaceIndexError)
        except SightfixError:  # pruned this moment, or damaged: it cannot be activated either
            continue
        versions.append(
            VersionAnswer(
                version=version,
                created_at=manifest.created_at,
                size=manifest.count,
                bundle=manifest.bundle.fingerprint,
            )
        )
    return IndexListing(
        name=folder.name,
        current=_current(folder),
        served=served.version if served.name == folder.name else None,
        versions=versions,
    )
