"""Answers that the client types itself. A newer server may say more: unknown fields are ignored."""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from retrieval.images import Preprocessing
from retrieval.index.manifest import Bounds
from retrieval.localize.answer import IndexAnswer, LocalizeAnswer, ModelAnswer, Problem


class Told(BaseModel):
    """Base of what a server tells."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ServerInfo(Told):
    """What is being served.

    Attributes:
        sightfix_version: of the server.
        model: describes photos.
        index: is searched.
        bounds: where the references lie.
        passed_over: why the model does not compute on a better provider.
        last_swap: what became of the version published last, if it is not served.
        limits: by name, such as `max_image_bytes`.
        preprocessing: how the model sees photos, if the server says so.
    """

    sightfix_version: str
    model: ModelAnswer
    index: IndexAnswer
    bounds: Bounds
    passed_over: list[str] = []
    last_swap: str | None = None
    limits: dict[str, float]
    preprocessing: Preprocessing | None = None


class IndexVersion(Told):
    """A published version of an index; `size` is its number of references, `bundle` the fingerprint of its model."""

    version: str
    created_at: datetime
    size: int
    bundle: str


class IndexListing(Told):
    """An index; `current` is what shall be served, `served` what this server answers with."""

    name: str
    current: str | None
    served: str | None
    versions: list[IndexVersion]


class OpenedTrack(Told):
    """A track that is open; it is closed when no frame has come for `idle_s` seconds."""

    id: str
    idle_s: float


class BatchItem(Told):
    """What became of one photo of a batch: an answer, or a problem, with the HTTP status it would have got alone."""

    status: int
    answer: LocalizeAnswer | None = None
    problem: Problem | None = None


class BatchAnswer(Told):
    """What became of each photo, in order."""

    request_id: str
    items: list[BatchItem]


class DescribedAnswer(Told):
    """A descriptor as JSON has it."""

    request_id: str
    descriptor: list[float]
    model: ModelAnswer


@dataclass(frozen=True, slots=True)
class Description:
    """A photo's descriptor.

    Attributes:
        descriptor: (D,) float32, unit length; comparable with those of the same fingerprint only.
        model: that described it.
        request_id: of the request.
    """

    descriptor: NDArray[np.float32]
    model: ModelAnswer
    request_id: str
