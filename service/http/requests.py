"""Reads the requests about photos: how urgent they are, the photo in each of three forms, and what is asked of it."""

import asyncio
import base64
import binascii
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect

from retrieval.errors import ParameterError
from retrieval.geo import GeoPrior
from retrieval.images import MEDIA_TYPES, ImageLimits, check_byte_count
from retrieval.localize.localizer import MAX_TOP_K, LocalizeOptions
from service.problems import RequestError, validation_problem
from service.serving.admission import LANES, Lane, Urgency
from service.serving.localization import LocalizationService

Value = TypeVar("Value")
Body = TypeVar("Body", bound=BaseModel)
LANE_HEADER: Final = "X-Lane"
DEADLINE_HEADER: Final = "X-Deadline-Ms"
MAX_DEADLINE_MS: Final = 600_000

URGENCY_PARAMETERS: Final = [
    {
        "name": LANE_HEADER,
        "in": "header",
        "description": "robot is answered before bulk",
        "schema": {"type": "string", "enum": ["robot", "bulk"]},
    },
    {
        "name": DEADLINE_HEADER,
        "in": "header",
        "description": "Milliseconds after which the answer is of no use; what cannot make it is rejected at once",
        "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_DEADLINE_MS},
    },
]

IMAGE_MEDIA_TYPES: Final = tuple(name for names in MEDIA_TYPES.values() for name in names)
MULTIPART: Final = "multipart/form-data"
JSON: Final = "application/json"

# In one JSON body; the longest descriptors have some tens of thousands.
_MAX_VALUES: Final = 100_000


async def while_present(request: Request, work: Coroutine[Any, Any, Value]) -> Value:
    """Do some work, and cancel it when the client closes its connection.

    Args:
        request: its body must have been read to the end.
        work: what to do.

    Raises:
        ClientDisconnect: the client has left.
        Exception: whatever the work raises.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_leave(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, leaving):
            if not task.done():
                task.cancel()


async def _leave(request: Request) -> None:
    """Return when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def urgency_of(request: Request, localization: LocalizationService, default_lane: Lane = "robot") -> Urgency:
    """Read lane and deadline from the headers; the deadline counts from now.

    Raises:
        RequestError: an unknown lane, or a deadline that is not a positive number of milliseconds.
    """
    given = request.headers.get(LANE_HEADER, default_lane)
    lane = next((known for known in LANES if known == given), None)
    if lane is None:
        raise RequestError(
            f"the header {LANE_HEADER} {given!r} is no lane", code="validation_error", remedy="Send robot or bulk"
        )
    text = request.headers.get(DEADLINE_HEADER)
    if text is None:
        return localization.urgency(lane)
    try:
        milliseconds = float(text)
    except ValueError:
        milliseconds = math.nan
    if not 0 < milliseconds <= MAX_DEADLINE_MS:
        raise RequestError(
            f"the header {DEADLINE_HEADER} {text!r} is not a number of milliseconds above 0",
            code="validation_error",
            remedy=f"Send such as 500; at most {MAX_DEADLINE_MS}",
        )
    return localization.urgency(lane, milliseconds / 1e3)


class GeoPriorBody(BaseModel):
    """A circle in which the answer must lie."""

    model_config = ConfigDict(extra="forbid")

    lat: float = Field(ge=-90, le=90, allow_inf_nan=False, description="Centre, degrees", examples=[55.6983])
    lon: float = Field(ge=-180, lt=360, allow_inf_nan=False, description="Centre, degrees", examples=[13.1951])
    radius_m: float = Field(gt=0, le=GeoPrior.MAX_RADIUS_M, allow_inf_nan=False, description="Metres", examples=[500])


class LocalizeParameters(BaseModel):
    """What may be asked beside the image."""

    model_config = ConfigDict(extra="forbid")

    top_k: int = Field(default=10, ge=1, le=MAX_TOP_K, description="How many matches to return")
    geo_prior: GeoPriorBody | None = None
    min_score: float | None = Field(
        default=None, ge=-1, le=1, allow_inf_nan=False, description="Leave out matches below this cosine"
    )

    def options(self) -> LocalizeOptions:
        """The same for the localizer."""
        prior = self.geo_prior
        return LocalizeOptions(
            top_k=self.top_k,
            geo_prior=GeoPrior(prior.lat, prior.lon, prior.radius_m) if prior else None,
            min_score=self.min_score,
        )


class ImageBody(BaseModel):
    """An image inside JSON."""

    model_config = ConfigDict(extra="forbid")

    content: str = Field(description="The encoded photo (JPEG, PNG, WebP, HEIC) as base64")


class LocalizeBody(LocalizeParameters):
    """A localize request as JSON."""

    image: ImageBody


@dataclass(frozen=True, slots=True)
class LocalizeRequest:
    """An image and what is asked of it."""

    image: bytes
    options: LocalizeOptions


# Runs work on a body somewhere else than on the event loop.
InThread = Callable[[Callable[[], LocalizeRequest]], Awaitable[LocalizeRequest]]


def media_type_of(request: Request, accepted: Sequence[str]) -> str:
    """The content type of a request, without its parameters.

    Raises:
        RequestError: it is none of those that are accepted (``unsupported_media_type``).
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in accepted:
        raise RequestError(
            f"content type {media_type!r} is not accepted" if media_type else "the request has no content type",
            code="unsupported_media_type",
            remedy=f"Send {' or '.join(filter(None, (', '.join(accepted[:-1]), accepted[-1])))}",
        )
    return media_type


async def read_localize_request(request: Request, limits: ImageLimits, in_thread: InThread) -> LocalizeRequest:
    """Read the request in whichever of its three forms it came.

    Args:
        request: unread.
        limits: of encoded images.
        in_thread: where megabytes of JSON are parsed, so that the event loop does not wait for them.

    Raises:
        RequestError: another content type (415), malformed JSON, multipart or base64 (400), a parameter that is
            unknown or outside its range (422), no image part (422).
        ImageError: the image is over the byte limit.
    """
    media_type = media_type_of(request, (*IMAGE_MEDIA_TYPES, MULTIPART, JSON))
    if media_type == MULTIPART:
        parsed = await _read_multipart(request)
    elif media_type == JSON:
        _reject_query_parameters(request)
        body = await request.body()
        parsed = await in_thread(lambda: _read_json(body))
    else:
        parsed = LocalizeRequest(await request.body(), options_of(dict(request.query_params)))
    check_byte_count(len(parsed.image), limits)
    return parsed


def _read_json(body: bytes) -> LocalizeRequest:
    parsed = parse_json(LocalizeBody, body)
    return LocalizeRequest(decode_base64(parsed.image.content, "/image/content"), parsed.options())


def decode_base64(text: str, pointer: str) -> bytes:
    """Decode a photo in JSON.

    Args:
        text: standard base64.
        pointer: to it in the JSON, for errors.

    Raises:
        RequestError: it is not base64 (``malformed_request``).
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(
            f"{pointer} is not base64 ({error})",
            remedy="Send the photo's bytes as standard base64, without line breaks",
        ) from error


def parse_json(model: type[Body], body: bytes) -> Body:
    """Parse a JSON body.

    Raises:
        RequestError: it is not JSON (400), has too many values (413), or a field is wrong (422).
    """
    # No photo in base64 holds a comma. What is no photo, no descriptor and no odometry would cost a thousand times its
    # size: a note of each value that is wrong.
    if body.count(b",") > _MAX_VALUES:
        raise RequestError(
            f"the JSON has more than {_MAX_VALUES} values", code="body_too_large", remedy="Send fewer at once"
        )
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        if error.error_count() == 1:  # what is no JSON at all is one error
            first = error.errors(include_url=False, include_input=False)[0]
            if first["type"] == "json_invalid":
                reason = first["ctx"]["error"]
                raise RequestError(f"the body is not JSON ({reason})", remedy="Check the request body") from error
        raise validation_problem(error) from error


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a body, with its references replaced by what they refer to: OpenAPI has no place for them."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inlined(part: Any) -> Any:
        if isinstance(part, list):
            return [inlined(item) for item in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return inlined(definitions[part["$ref"].rpartition("/")[2]])
        return {key: inlined(value) for key, value in part.items()}

    result: dict[str, Any] = inlined(schema)
    return result


def json_body(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """What OpenAPI says of a JSON body that is read from the request itself."""
    content = {JSON: {"schema": json_schema(model)}}
    return {"requestBody": {"required": required, "content": content}}


async def _read_multipart(request: Request) -> LocalizeRequest:
    async with open_form(request, max_files=1) as form:
        image = form.get("image")
        if not isinstance(image, UploadFile):
            raise RequestError(
                "there is no file part named image",
                code="validation_error",
                remedy="Send the photo as a file: curl -F image=@photo.jpg",
            )
        return LocalizeRequest(await image.read(), options_of({**request.query_params, **text_fields(form)}))


@asynccontextmanager
async def open_form(request: Request, max_files: int) -> AsyncIterator[FormData]:
    """Read a multipart body.

    Raises:
        RequestError: it is malformed, or has too many parts.
    """
    try:
        form = await request.form(max_files=max_files, max_fields=16)
    except (MultiPartException, HTTPException, UnicodeError) as error:
        reason = error.detail if isinstance(error, HTTPException) else str(error) or "malformed"
        raise RequestError(
            f"the multipart body cannot be read ({reason})", remedy="Check the boundary and that the body is complete"
        ) from error
    try:
        yield form
    finally:
        await form.close()


def text_fields(form: FormData) -> dict[str, str]:
    """The fields of a form that are no files."""
    return {name: value for name, value in form.multi_items() if isinstance(value, str)}


def options_of(texts: Mapping[str, str]) -> LocalizeOptions:
    """What to ask, from parameters given as text; a geo prior is ``lat,lon,radius_m`` or the JSON object."""
    values: dict[str, Any] = dict(texts)
    if "geo_prior" in values:
        values["geo_prior"] = _geo_prior(values["geo_prior"])
    try:
        return LocalizeParameters.model_validate(values).options()
    except ValidationError as error:
        raise validation_problem(error) from error
    except ParameterError as error:
        raise RequestError(error.what, code="validation_error", remedy=error.remedy) from error


def _geo_prior(text: str) -> dict[str, Any]:
    if text.lstrip().startswith("{"):
        try:
            parsed: dict[str, Any] = json.loads(text)
            return parsed
        except (ValueError, RecursionError) as error:
            raise RequestError(f"/geo_prior is not JSON ({error})", code="validation_error") from error
    parts = text.split(",")
    if len(parts) != 3:
        raise RequestError(
            f"/geo_prior {text!r} is not three numbers",
            code="validation_error",
            remedy="Give lat,lon,radius_m, such as geo_prior=55.6983,13.1951,500",
        )
    return dict(zip(("lat", "lon", "radius_m"), parts, strict=True))


def _reject_query_parameters(request: Request) -> None:
    if request.query_params:
        raise RequestError(
            f"query parameter {next(iter(request.query_params))!r} beside a JSON body",
            code="validation_error",
            remedy="Put the parameters into the JSON",
        )
