"""POST /describe and POST /search: the two halves of /localize, for clients that keep descriptors."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from retrieval.localize.localizer import Localizer
from service.answer import LocalizeAnswer, ModelAnswer, model_answer
from service.http.requests import (
    URGENCY_PARAMETERS,
    LocalizeParameters,
    json_body,
    parse_json,
    read_localize_request,
    urgency_of,
    while_present,
)
from service.http.routes.localize import PHOTO_CONTENT, answer_response, problem_responses
from service.problems import RequestError, request_id_of
from service.serving.localization import LocalizationService

OCTETS: Final = "application/octet-stream"

# Descriptors in JSON are rounded by their writers.
_UNIT_TOLERANCE: Final = 1e-2


class DescribeAnswer(BaseModel):
    """A photo's descriptor."""

    request_id: str
    descriptor: list[float] = Field(description="Unit length; comparable with those of the same fingerprint only")
    model: ModelAnswer


class SearchBody(LocalizeParameters):
    """A descriptor to search for."""

    # The first wrong number is enough: there may be a hundred thousand.
    descriptor: list[float] = Field(description="Of the model that /info names, unit length", fail_fast=True)
    fingerprint: str | None = Field(
        default=None, description="Of the model that gave the descriptor; refused when another serves by now"
    )


def add_descriptor_routes(app: FastAPI, localization: LocalizationService) -> None:
    """Add POST /describe and POST /search, also under /v1."""

    async def describe(request: Request) -> Response:
        urgency = urgency_of(request, localization)
        localization.check_room(urgency)
        parsed = await read_localize_request(request, localization.limits, localization.in_decoder)
        described = await while_present(request, localization.describe(parsed.image, urgency))
        headers = {
            "X-Request-Id": request_id_of(request),
            "Server-Timing": f"decode;dur={described.decode_ms:.1f}, queue;dur={described.queue_ms:.1f}",
        }
        model = model_answer(described.describer)
        if OCTETS in request.headers.get("accept", ""):
            data = described.descriptor.astype("<f4").tobytes()
            return Response(data, media_type=OCTETS, headers={**headers, "X-Model-Fingerprint": model.fingerprint})
        answer = DescribeAnswer(
            request_id=request_id_of(request), descriptor=described.descriptor.tolist(), model=model
        )
        return Response(answer.model_dump_json(), media_type="application/json", headers=headers)

    async def search(request: Request) -> Response:
        urgency = urgency_of(request, localization)
        localization.check_room(urgency)
        raw = await request.body()
        body = await localization.in_decoder(lambda: parse_json(SearchBody, raw))
        localizer = localization.live.require()
        descriptor = checked_descriptor(body.descriptor, localizer, body.fingerprint)
        work = localization.search(descriptor, localizer, body.options(), request_id_of(request), urgency)
        return answer_response(request, await while_present(request, work))

    for prefix in ("", "/v1"):
        shared: dict[str, Any] = {
            "methods": ["POST"],
            "responses": problem_responses(),
            "include_in_schema": not prefix,
        }
        app.add_api_route(
            f"{prefix}/describe",
            describe,
            summary="Describe a photo",
            description=f"The descriptor as JSON; with `Accept: {OCTETS}` as little-endian float32.",
            response_model=DescribeAnswer,
            openapi_extra={
                "parameters": URGENCY_PARAMETERS,
                "requestBody": {"required": True, "content": PHOTO_CONTENT},
            },
            **shared,
        )
        app.add_api_route(
            f"{prefix}/search",
            search,
            summary="Localize by a descriptor",
            response_model=LocalizeAnswer,
            openapi_extra={"parameters": URGENCY_PARAMETERS, **json_body(SearchBody)},
            **shared,
        )


def checked_descriptor(
    numbers: Sequence[float] | np.ndarray,
    localizer: Localizer,
    fingerprint: str | None,
    where: str = "/descriptor",
) -> np.ndarray:
    """A descriptor that came from outside.

    Args:
        numbers: as they were sent.
        localizer: whose model the descriptor must be of.
        fingerprint: of the model that it is of, where the client says.
        where: the descriptor stands in the request.

    Returns:
        (dim,) float32, unit length.

    Raises:
        RequestError: another length, in numbers or as a vector (``validation_error``); of another model
            (``model_mismatch``).
    """
    bundle = localizer.describer.bundle
    if fingerprint not in (None, bundle.fingerprint):
        raise RequestError(
            f"{where} is of another model than {bundle.name} ({bundle.fingerprint[:12]}), which serves now",
            code="model_mismatch",
            remedy="Describe the photo again",
        )
    dim = bundle.descriptor_dim
    if len(numbers) != dim:
        raise RequestError(
            f"{where} has {len(numbers)} numbers, the model's descriptors have {dim}",
            code="validation_error",
            remedy="Describe the photo with the model that /info names",
        )
    descriptor = np.array(numbers, np.float64)
    length = float(np.linalg.norm(descriptor))
    if not abs(length - 1.0) <= _UNIT_TOLERANCE:
        raise RequestError(
            f"{where} has length {length:.4g}, not 1",
            code="validation_error",
            remedy="Send the descriptor as /describe gave it",
        )
    return np.asarray(descriptor / length, np.float32)
