"""The typed answers of a server. A newer server may say more: unknown fields are ignored."""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from retrieval.images import Preprocessing
from service.answer import IndexAnswer, LocalizeAnswer, ModelAnswer, Problem
from service.jobs.model import (
    FINISHED,
    JOB_REQUEST,
    AppendJobRequest,
    FullJobRequest,
    Job,
    JobFailurePage,
    JobPage,
    JobRequest,
    JobState,
    RemoveJobRequest,
)
from service.tracking.model import TrackAnswer, TrackedAnswer, TrackParameters

# The other modules of the client import all models from here.
__all__ = [
    "FINISHED",
    "JOB_REQUEST",
    "AppendJobRequest",
    "BatchAnswer",
    "BatchItem",
    "Bounds",
    "DescribedAnswer",
    "Description",
    "FullJobRequest",
    "IndexListing",
    "IndexVersion",
    "Job",
    "JobFailurePage",
    "JobPage",
    "JobRequest",
    "JobState",
    "LocalizeAnswer",
    "OpenedTrack",
    "Problem",
    "RemoveJobRequest",
    "ServerInfo",
    "TrackAnswer",
    "TrackParameters",
    "TrackedAnswer",
]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Bounds(_Answer):
    """The smallest latitudes and longitudes that hold all references, degrees.

    `lon_min` is the western and `lon_max` the eastern edge: it is smaller where the box crosses the antimeridian.
    """

    lat_min: float
    lat_max: float
    lon_min: float
    lon_max: float


class ServerInfo(_Answer):
    """The model and the index that are served.

    Attributes:
        sightfix_version: of the server.
        model: describes photos.
        index: is searched.
        bounds: where the references lie.
        passed_over: why the model does not compute on a better provider.
        last_swap: why the version published last is not served, if it is not.
        limits: by name, such as `max_image_bytes`.
        preprocessing: the size and filter to which the model's photos are resized, if the server says so.
    """

    sightfix_version: str
    model: ModelAnswer
    index: IndexAnswer
    bounds: Bounds
    passed_over: list[str] = []
    last_swap: str | None = None
    limits: dict[str, float]
    preprocessing: Preprocessing | None = None


class IndexVersion(_Answer):
    """A published version of an index; `size` is its number of references, `bundle` the fingerprint of its model."""

    version: str
    created_at: datetime
    size: int
    bundle: str


class IndexListing(_Answer):
    """An index; `current` is the version to be served, `served` the one this server answers with."""

    name: str
    current: str | None
    served: str | None
    versions: list[IndexVersion]


class OpenedTrack(_Answer):
    """A track that is open; it is closed when no frame has come for `idle_s` seconds."""

    id: str
    idle_s: float


class BatchItem(_Answer):
    """The answer for one photo of a batch, or a problem; with the HTTP status that it would have got alone."""

    status: int
    answer: LocalizeAnswer | None = None
    problem: Problem | None = None


class BatchAnswer(_Answer):
    """The items of a batch, in the order of its photos."""

    request_id: str
    items: list[BatchItem]


class DescribedAnswer(_Answer):
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
