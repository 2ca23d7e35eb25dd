"""The answer to "where was this photo taken?" as JSON: its models, and the translation of a `Located` to them.

The Python client and the command line read and print the same models, so nothing heavy is imported here.
"""

from datetime import datetime
from typing import TYPE_CHECKING
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from retrieval.localize.evidence import FixMethod
from retrieval.localize.fix import FixStatus

if TYPE_CHECKING:
    from retrieval.describer import Describer
    from retrieval.index.searchable import SearchablePlaceIndex
    from retrieval.localize.fix import Fix
    from retrieval.localize.localizer import Located, Match, Timings


def _is_none(value: object) -> bool:
    return value is None


class AnswerPart(BaseModel):
    """Base of the answer's parts: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FixAnswer(AnswerPart):
    """The position estimate."""

    lat: float = Field(description="WGS84 latitude, degrees", examples=[55.69829])
    lon: float = Field(description="WGS84 longitude, degrees", examples=[13.19512])
    radius_m: float = Field(description="The truth lies within it 68 % of the time, if `calibrated`", examples=[12.4])
    confidence: float = Field(
        ge=0, le=1, description="Probability that the truth lies within 25 m, if `calibrated`", examples=[0.93]
    )
    calibrated: bool = Field(
        description="Whether radius and confidence were fitted to errors measured on the index's references"
    )
    covariance_enu: tuple[tuple[float, float], tuple[float, float]] = Field(
        description="Covariance of east and north, m²", examples=[((78.0, 3.1), (3.1, 64.2))]
    )
    method: FixMethod = Field(description="How the fix was made")
    support: int = Field(ge=1, description="How many matches speak for this place", examples=[7])


class MatchAnswer(AnswerPart):
    """One retrieved reference photo."""

    rank: int = Field(ge=1, description="1 is the best")
    reference_id: str = Field(examples=["images/05.jpg"])
    lat: float = Field(examples=[55.69830])
    lon: float = Field(examples=[13.19510])
    score: float = Field(
        description="Cosine between descriptors, higher is more alike; not a probability", examples=[0.83]
    )
    heading: float | None = Field(default=None, description="Direction of view, degrees clockwise from true north")
    captured_at: datetime | None = None
    session: str | None = None
    thumbnail: str | None = Field(default=None, description="Path of a small version of the photo on this server")
    inliers: int | None = Field(
        default=None,
        ge=0,
        description="Only where matches are re-ranked: how many points of the photo are found on this reference in one "
        "geometry. Matches of enough of them come first, the others by score",
        exclude_if=_is_none,
    )


class ModelAnswer(AnswerPart):
    """Which model described the photo."""

    name: str
    fingerprint: str
    precision: str
    provider: str = Field(description="Where it really computes", examples=["cpu"])
    runtime: str = Field(description="What computes, with its version", examples=["ONNX Runtime 1.32.0"])
    device: str = Field(examples=["CPU, 2 threads"])


class IndexAnswer(AnswerPart):
    """Which place index was searched."""

    name: str
    version: str
    size: int
    type: str


class TimingsAnswer(AnswerPart):
    """Where the time went, milliseconds. Parts that did not happen are 0."""

    decode: float
    queue: float = 0.0
    describe: float
    search: float
    rerank: float | None = Field(default=None, exclude_if=_is_none)
    fix: float
    total: float


class LocalizeAnswer(AnswerPart):
    """The whole answer for one photo."""

    request_id: str
    status: FixStatus
    fix: FixAnswer | None
    matches: list[MatchAnswer]
    model: ModelAnswer
    index: IndexAnswer
    timings_ms: TimingsAnswer


class Problem(BaseModel):
    """An error as RFC 9457 problem details, with a stable `code`."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["urn:sightfix:problem:image_undecodable"])
    title: str
    status: int
    detail: str
    instance: str | None = None
    code: str = Field(description="Stable and machine-readable", examples=["image_undecodable"])
    errors: list["FieldProblem"] | None = None


class FieldProblem(BaseModel):
    """One field of the request that is wrong."""

    pointer: str = Field(description="Where: a JSON pointer, or the parameter's name", examples=["/top_k"])
    message: str


Problem.model_rebuild()


def answer_of(located: "Located") -> LocalizeAnswer:
    """The answer for one photo or descriptor."""
    return LocalizeAnswer(
        request_id=located.request_id,
        status=located.status,
        fix=None if located.fix is None else _fix_answer(located.fix),
        matches=[_match_answer(rank, match) for rank, match in enumerate(located.matches, start=1)],
        model=model_answer(located.describer),
        index=index_answer(located.place_index),
        timings_ms=timings_answer(located.timings),
    )


def model_answer(describer: "Describer") -> ModelAnswer:
    """Which model describes."""
    computes = describer.description
    return ModelAnswer(
        name=describer.bundle.name,
        fingerprint=describer.bundle.fingerprint,
        precision=computes.precision,
        provider=computes.provider,
        runtime=computes.runtime,
        device=computes.device,
    )


def index_answer(place_index: "SearchablePlaceIndex") -> IndexAnswer:
    """Which place index is searched."""
    return IndexAnswer(
        name=place_index.name, version=place_index.version, size=place_index.count, type=place_index.type_name
    )


def timings_answer(timings: "Timings") -> TimingsAnswer:
    """Where the time went."""
    return TimingsAnswer(
        decode=timings.decode_ms,
        queue=timings.queue_ms,
        describe=timings.describe_ms,
        search=timings.search_ms,
        rerank=timings.rerank_ms,
        fix=timings.fix_ms,
        total=timings.total_ms,
    )


def _fix_answer(fix: "Fix") -> FixAnswer:
    return FixAnswer(
        lat=fix.position.lat,
        lon=fix.position.lon,
        radius_m=fix.radius_m,
        confidence=fix.confidence,
        calibrated=fix.calibrated,
        covariance_enu=fix.covariance_enu,
        method=fix.method,
        support=fix.support,
    )


def _match_answer(rank: int, match: "Match") -> MatchAnswer:
    reference = match.reference
    assert reference.position is not None, "a place index holds positions only"
    return MatchAnswer(
        rank=rank,
        reference_id=reference.id,
        lat=reference.position.lat,
        lon=reference.position.lon,
        score=match.score,
        heading=reference.heading_deg,
        captured_at=reference.captured_at,
        session=reference.session,
        thumbnail=_thumbnail(reference.id),
        inliers=match.inliers,
    )


def _thumbnail(reference_id: str) -> str:
    """The path under which the server has a small version of a reference photo."""
    # Browsers and proxies resolve dots and drop empty parts in a path, escaped or not.
    if any(part in ("", ".", "..") for part in reference_id.split("/")):
        return f"/references/image?id={quote(reference_id, safe='')}"
    return f"/references/{quote(reference_id, safe='/')}/image"
