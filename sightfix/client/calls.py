"""The requests of the interface and how their answers are read, without any network."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote
from uuid import uuid4

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, TypeAdapter

from retrieval.geo import GeoPrior
from retrieval.tracking import Distance, Odometry, Speed
from sightfix.client.answers import (
    JOB_REQUEST,
    BatchAnswer,
    BatchItem,
    DescribedAnswer,
    Description,
    IndexListing,
    Job,
    JobFailurePage,
    JobPage,
    JobRequest,
    JobState,
    LocalizeAnswer,
    OpenedTrack,
    ServerInfo,
    TrackedAnswer,
    TrackParameters,
)
from sightfix.client.photos import EncodedPhoto
from sightfix.client.sending import Call

if TYPE_CHECKING:
    import httpx

Model = TypeVar("Model", bound=BaseModel)
_LISTINGS: Final = TypeAdapter(list[IndexListing])


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a request for a position; as `LocalizeOptions` of the server."""

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


def localize_call(photo: EncodedPhoto, options: Options) -> Call[LocalizeAnswer]:
    """Localize a photo."""
    return Call(
        "POST",
        "/localize",
        _reads(LocalizeAnswer),
        {"content": photo.data, "params": options.texts(), "headers": {"Content-Type": photo.media_type}},
        lambda answer: answer.model.fingerprint,
    )


def batch_call(photos: Sequence[EncodedPhoto], options: Options) -> Call[list[BatchItem]]:
    """Localize several photos."""

    def fingerprint(items: list[BatchItem]) -> str | None:
        return next((item.answer.model.fingerprint for item in items if item.answer is not None), None)

    files = [("image", (str(number), photo.data, photo.media_type)) for number, photo in enumerate(photos)]
    read = _reads(BatchAnswer)
    return Call(
        "POST",
        "/localize/batch",
        lambda response: read(response).items,
        {"files": files, "data": options.texts()},
        fingerprint,
    )


def describe_call(photo: EncodedPhoto) -> Call[Description]:
    """Describe a photo."""
    read = _reads(DescribedAnswer)

    def description(response: "httpx.Response") -> Description:
        answer = read(response)
        return Description(np.array(answer.descriptor, np.float32), answer.model, answer.request_id)

    return Call(
        "POST",
        "/describe",
        description,
        {"content": photo.data, "headers": {"Content-Type": photo.media_type}},
        lambda described: described.model.fingerprint,
    )


def search_call(descriptor: ArrayLike, fingerprint: str | None, options: Options) -> Call[LocalizeAnswer]:
    """Localize the photo of a descriptor."""
    of = {} if fingerprint is None else {"fingerprint": fingerprint}
    body = json.dumps({"descriptor": np.asarray(descriptor, np.float64).tolist(), **of, **options.fields()})
    return Call(
        "POST",
        "/search",
        _reads(LocalizeAnswer),
        {"content": body.encode(), "headers": {"Content-Type": "application/json"}},
    )


def info_call() -> Call[ServerInfo]:
    """The model and the index that are served."""
    return Call("GET", "/info", _reads(ServerInfo))


def ready_call() -> Call[None]:
    """Whether photos can be localized now."""
    return Call("GET", "/readyz", lambda _: None)


def open_track_call(parameters: TrackParameters | None) -> Call[OpenedTrack]:
    """Open a track."""
    body = {} if parameters is None else parameters.model_dump(exclude_none=True)
    # Done twice, one track would stay open unused.
    return Call("POST", "/tracks", _reads(OpenedTrack), {"json": body}, repeatable=False)


def localize_frame_call(
    track_id: str, photo: EncodedPhoto, captured_at_s: float, odometry: Odometry | None, options: Options
) -> Call[TrackedAnswer]:
    """Localize a frame of a track. Sending the same time again does not move the track twice."""
    motion: dict[str, float] = {
        "captured_at_s": captured_at_s,
        **(odometry_values(odometry) if odometry is not None else {}),
    }
    params = {**options.texts(), **{name: repr(float(value)) for name, value in motion.items()}}
    return Call(
        "POST",
        f"/tracks/{_part(track_id)}/localize",
        _reads(TrackedAnswer),
        {"content": photo.data, "params": params, "headers": {"Content-Type": photo.media_type}},
        lambda answer: answer.model.fingerprint,
    )


def close_track_call(track_id: str) -> Call[None]:
    """Close a track."""
    return Call("DELETE", f"/tracks/{_part(track_id)}", lambda _: None, repeatable=False)


def indexes_call() -> Call[list[IndexListing]]:
    """All indexes and their versions."""
    return Call("GET", "/indexes", lambda response: _LISTINGS.validate_json(response.content))


def index_call(name: str) -> Call[IndexListing]:
    """The versions of one index."""
    return Call("GET", f"/indexes/{_part(name)}", _reads(IndexListing))


def activate_call(name: str, version: str, expected: str | None, timeout_s: float) -> Call[IndexListing]:
    """Make a version the current one."""
    headers = {} if expected is None else {"If-Match": f'"{expected}"'}
    # Done twice it could undo what another client did in between.
    return Call(
        "POST",
        f"/indexes/{_part(name)}/activate",
        _reads(IndexListing),
        {"json": {"version": version}, "headers": headers},
        repeatable=False,
        timeout_s=timeout_s,
    )


def create_job_call(request: JobRequest, idempotency_key: str | None) -> Call[Job]:
    """Start a job. The key makes it one job, however often the request is sent."""
    headers = {"Content-Type": "application/json", "Idempotency-Key": idempotency_key or str(uuid4())}
    return Call("POST", "/jobs", _reads(Job), {"content": JOB_REQUEST.dump_json(request), "headers": headers})


def get_job_call(job_id: str) -> Call[Job]:
    """The state of a job."""
    return Call("GET", f"/jobs/{_part(job_id)}", _reads(Job))


def list_jobs_call(states: Sequence[JobState], page_size: int, page_token: str | None) -> Call[JobPage]:
    """One page of jobs."""
    params = _page(page_size, page_token)
    if states:
        params["state"] = ",".join(states)
    return Call("GET", "/jobs", _reads(JobPage), {"params": params})


def list_job_failures_call(job_id: str, page_size: int, page_token: str | None) -> Call[JobFailurePage]:
    """One page of the photos that a job could not index."""
    path = f"/jobs/{_part(job_id)}/failures"
    return Call("GET", path, _reads(JobFailurePage), {"params": _page(page_size, page_token)})


def cancel_job_call(job_id: str) -> Call[Job]:
    """Cancel a job."""
    return Call("POST", f"/jobs/{_part(job_id)}/cancel", _reads(Job))


def odometry_values(odometry: Odometry) -> dict[str, float]:
    """Odometry by the names that HTTP and gRPC have for it, with their units."""
    if isinstance(odometry, Speed):
        return {"speed_mps": odometry.mps, "speed_std_mps": odometry.std_mps, **_heading(odometry)}
    if isinstance(odometry, Distance):
        return {"distance_m": odometry.metres, "distance_std_m": odometry.std_m, **_heading(odometry)}
    return {"east_m": odometry.east_m, "north_m": odometry.north_m, "displacement_std_m": odometry.std_m}


def _heading(odometry: Speed | Distance) -> dict[str, float]:
    if odometry.heading_deg is None:
        return {}
    return {"heading_deg": odometry.heading_deg, "heading_std_deg": odometry.heading_std_deg}


def _page(size: int, token: str | None) -> dict[str, str]:
    return {"page_size": str(size)} if token is None else {"page_size": str(size), "page_token": token}


def _part(name: str) -> str:
    """One part of a path, quoted."""
    return quote(name, safe="")


def _reads(model: type[Model]) -> Callable[["httpx.Response"], Model]:
    """How an answer of one kind is read. A newer server may say more: unknown fields are ignored."""
    return lambda response: model.model_validate_json(response.content, extra="ignore")
