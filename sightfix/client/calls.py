"""What is asked about photos and how the answer is read, without any network."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Literal, TypeVar

import httpx
import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ValidationError

from retrieval.errors import ServerError
from retrieval.geo import GeoPrior
from retrieval.localize.answer import LocalizeAnswer
from sightfix.client.answers import BatchAnswer, BatchItem, DescribedAnswer, Description, ServerInfo
from sightfix.client.errors import ProblemError
from sightfix.client.photos import EncodedPhoto

# Servers take no longer one; whoever is more patient than that waits for the answer all the same.
_LONGEST_DEADLINE_MS: Final = 600_000.0

Lane = Literal["robot", "bulk"]
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Options:
    """What may be asked beside the photo; as in `LocalizeOptions` of the server."""

    top_k: int = 10
    geo_prior: GeoPrior | None = None
    min_score: float | None = None

    def texts(self) -> dict[str, str]:
        """As parameters of a query string or a form."""
        texts = {"top_k": str(self.top_k)}
        if self.geo_prior is not None:
            prior = self.geo_prior
            texts["geo_prior"] = f"{prior.lat!r},{prior.lon!r},{prior.radius_m!r}"
        if self.min_score is not None:
            texts["min_score"] = repr(self.min_score)
        return texts

    def fields(self) -> dict[str, Any]:
        """As fields of a JSON object."""
        fields: dict[str, Any] = {"top_k": self.top_k}
        if self.geo_prior is not None:
            prior = self.geo_prior
            fields["geo_prior"] = {"lat": prior.lat, "lon": prior.lon, "radius_m": prior.radius_m}
        if self.min_score is not None:
            fields["min_score"] = self.min_score
        return fields


@dataclass(frozen=True, slots=True)
class Call(Generic[Answer]):
    """One request, which may be sent several times, and how to read its answer.

    Attributes:
        method, path: of the request.
        read: makes the answer of a response that is no error.
        arguments: further ones of httpx's `request`.
        fingerprint: of the model that answered, if the answer says so.
        repeatable: whether it does no harm to do it twice.
        timeout_s: for connecting, sending and reading, each; None for the client's.
    """

    method: str
    path: str
    read: Callable[[httpx.Response], Answer]
    arguments: dict[str, Any] = field(default_factory=dict)
    fingerprint: Callable[[Answer], str | None] = lambda _: None
    repeatable: bool = True
    timeout_s: float | None = None

    def answer(self, response: httpx.Response) -> Answer:
        """Read a response.

        Raises:
            ProblemError: the server refused.
            ServerError: it does not speak our protocol.
        """
        if response.is_error:
            raise ProblemError(response)
        try:
            return self.read(response)
        except ValidationError as error:
            raise ServerError("the answer is not a sightfix answer", where=str(response.url)) from error

    def request(self, lane: Lane | None, left_s: float | None) -> dict[str, Any]:
        """The arguments of httpx's `request`.

        Args:
            lane: who goes first; None leaves it to the server.
            left_s: seconds until the caller's deadline; None for none.
        """
        headers = dict(self.arguments.get("headers", {}))
        if lane is not None:
            headers["X-Lane"] = lane
        if left_s is not None:
            headers["X-Deadline-Ms"] = f"{min(max(left_s * 1e3, 1.0), _LONGEST_DEADLINE_MS):.0f}"
        timeout = {} if self.timeout_s is None else {"timeout": self.timeout_s}
        return {**self.arguments, **timeout, "method": self.method, "url": self.path, "headers": headers}


def localize_call(photo: EncodedPhoto, options: Options) -> Call[LocalizeAnswer]:
    """Where was this photo taken?"""
    return Call(
        "POST",
        "/localize",
        reads(LocalizeAnswer),
        {"content": photo.data, "params": options.texts(), "headers": {"Content-Type": photo.media_type}},
        lambda answer: answer.model.fingerprint,
    )


def batch_call(photos: Sequence[EncodedPhoto], options: Options) -> Call[list[BatchItem]]:
    """Where were these photos taken?"""

    def fingerprint(items: list[BatchItem]) -> str | None:
        return next((item.answer.model.fingerprint for item in items if item.answer is not None), None)

    files = [("image", (str(number), photo.data, photo.media_type)) for number, photo in enumerate(photos)]
    read = reads(BatchAnswer)
    return Call(
        "POST",
        "/localize/batch",
        lambda response: read(response).items,
        {"files": files, "data": options.texts()},
        fingerprint,
    )


def describe_call(photo: EncodedPhoto) -> Call[Description]:
    """What does the model make of this photo?"""
    read = reads(DescribedAnswer)

    def description(response: httpx.Response) -> Description:
        told = read(response)
        return Description(np.array(told.descriptor, np.float32), told.model, told.request_id)

    return Call(
        "POST",
        "/describe",
        description,
        {"content": photo.data, "headers": {"Content-Type": photo.media_type}},
        lambda described: described.model.fingerprint,
    )


def search_call(descriptor: ArrayLike, options: Options) -> Call[LocalizeAnswer]:
    """Where was the photo of this descriptor taken?"""
    body = json.dumps({"descriptor": np.asarray(descriptor, np.float64).tolist(), **options.fields()})
    return Call(
        "POST",
        "/search",
        reads(LocalizeAnswer),
        {"content": body.encode(), "headers": {"Content-Type": "application/json"}},
    )


def info_call() -> Call[ServerInfo]:
    """What is being served?"""
    return Call("GET", "/info", reads(ServerInfo))


def ready_call() -> Call[None]:
    """Can photos be localized now?"""
    return Call("GET", "/readyz", lambda _: None)


Model = TypeVar("Model", bound=BaseModel)


def reads(model: type[Model]) -> Callable[[httpx.Response], Model]:
    """How an answer of one kind is read. A newer server may say more: unknown fields are ignored."""
    return lambda response: model.model_validate_json(response.content, extra="ignore")
