"""POST /localize/batch: many photos in one request, each with its own status."""

import asyncio
import base64
import binascii
from typing import Final

from fastapi import FastAPI, Request
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile

from retrieval.answer import LocalizeAnswer, Problem
from retrieval.errors import SightfixError
from retrieval.images import check_byte_count
from retrieval.localizer import LocalizeOptions
from service.live_localizer import LiveLocalizer
from service.localize_request import ImageBody, LocalizeParameters, open_form, options_of, parse_json, text_fields
from service.presence import while_present
from service.problems import RequestError, problem_of, request_id_of
from service.routes.localize import problem_responses
from service.urgency import URGENCY_PARAMETERS, Urgency, urgency_of

MAX_PHOTOS: Final = 32


class BatchBody(LocalizeParameters):
    """Several photos as JSON, with the same parameters for all."""

    images: list[ImageBody] = Field(min_length=1, max_length=MAX_PHOTOS)


class BatchItem(BaseModel):
    """What became of one photo: an answer, or a problem."""

    status: int = Field(description="The HTTP status that the photo alone would have got", examples=[200])
    answer: LocalizeAnswer | None = None
    problem: Problem | None = None


class BatchAnswer(BaseModel):
    """One item for each photo, in order."""

    request_id: str
    items: list[BatchItem]


def add_batch_routes(app: FastAPI, live: LiveLocalizer) -> None:
    """Add POST /localize/batch, also as /v1/localize/batch."""

    async def localize_batch(request: Request) -> BatchAnswer:
        urgency = urgency_of(request, live, default_lane="bulk")
        live.check_room(urgency.lane, urgency.deadline)
        photos, options = await _read(request, live)
        request_id = request_id_of(request)

        async def all_of_them() -> list[BatchItem]:
            return await asyncio.gather(
                *(_one(live, photo, options, f"{request_id}-{number}", urgency) for number, photo in enumerate(photos))
            )

        return BatchAnswer(request_id=request_id, items=await while_present(request, all_of_them()))

    for path in ("/localize/batch", "/v1/localize/batch"):
        app.add_api_route(
            path,
            localize_batch,
            methods=["POST"],
            summary=f"Localize up to {MAX_PHOTOS} photos",
            description="As multipart (parts named `image`) or as JSON. Goes to the bulk lane unless `X-Lane` says "
            "otherwise. The answer is 200 even when some photos fail: each item has a status of its own.",
            responses=problem_responses(),
            openapi_extra={
                "parameters": URGENCY_PARAMETERS,
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {"schema": BatchBody.model_json_schema()},
                        "multipart/form-data": {
                            "schema": {
                                "type": "object",
                                "required": ["image"],
                                "properties": {
                                    "image": {"type": "array", "items": {"type": "string", "format": "binary"}}
                                },
                            }
                        },
                    },
                },
            },
            operation_id=path.strip("/").replace("/", "_"),
        )


async def _one(
    live: LiveLocalizer, photo: "bytes | SightfixError", options: LocalizeOptions, request_id: str, urgency: Urgency
) -> BatchItem:
    try:
        if isinstance(photo, SightfixError):
            raise photo
        check_byte_count(len(photo), live.limits)
        answer = await live.localize(photo, options, request_id, lane=urgency.lane, deadline=urgency.deadline)
    except SightfixError as error:
        problem = problem_of(error, request_id)
        return BatchItem(status=problem.status, problem=problem)
    return BatchItem(status=200, answer=answer)


async def _read(request: Request, live: LiveLocalizer) -> "tuple[list[bytes | SightfixError], LocalizeOptions]":
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "application/json":
        body = await request.body()
        return await live.in_decoder(lambda: _read_json(body))
    if media_type != "multipart/form-data":
        raise RequestError(
            f"content type {media_type!r} is not accepted here",
            code="unsupported_media_type",
            remedy="Send multipart/form-data with parts named image, or application/json",
        )
    async with open_form(request, max_files=MAX_PHOTOS) as form:
        files = [part for name, part in form.multi_items() if name == "image" and isinstance(part, UploadFile)]
        if not files:
            raise RequestError(
                "there is no file part named image",
                code="validation_error",
                remedy="Send each photo as a file: curl -F image=@a.jpg -F image=@b.jpg",
            )
        options = options_of({**request.query_params, **text_fields(form)})
        return [await file.read() for file in files], options


def _read_json(body: bytes) -> "tuple[list[bytes | SightfixError], LocalizeOptions]":
    parsed = parse_json(BatchBody, body)
    return [_decoded(number, image) for number, image in enumerate(parsed.images)], parsed.options()


def _decoded(number: int, image: ImageBody) -> "bytes | SightfixError":
    try:
        return base64.b64decode(image.content, validate=True)
    except (binascii.Error, ValueError) as error:
        return RequestError(
            f"/images/{number}/content is not base64 ({error})",
            remedy="Send the photo's bytes as standard base64, without line breaks",
        )
