"""What a track answers for a frame."""

from pydantic import Field

from retrieval.answer import AnswerPart, LocalizeAnswer
from retrieval.fix import FixStatus
from retrieval.tracking import TrackedFix


class TrackedFixAnswer(AnswerPart):
    """Where a track believes its camera to be."""

    lat: float = Field(description="WGS84 latitude, degrees", examples=[55.69829])
    lon: float = Field(description="WGS84 longitude, degrees", examples=[13.19512])
    radius_m: float = Field(description="Holds 68 % of the belief; of a lost track that is the whole map")
    confidence: float = Field(ge=0, le=1, description="The belief within 25 m; not calibrated")
    covariance_enu: tuple[tuple[float, float], tuple[float, float]] = Field(
        description="Covariance of east and north, m²", examples=[((31.0, 2.2), (2.2, 18.4))]
    )


class TrackAnswer(AnswerPart):
    """A track after a frame."""

    status: FixStatus = Field(description="LOCATED where more than half the belief is around the fix")
    fix: TrackedFixAnswer | None = Field(description="None until a frame had a match")
    lost: bool = Field(description="Most of the belief is anywhere: no place is held")
    relocalized: bool = Field(
        description="It had held a place and lost it, perhaps in the gap before this frame, and holds one again"
    )
    matched: bool = Field(description="Whether the frame's matches were weighed in; else only time passed")
    frames: int = Field(ge=0, description="How many the track has seen, those without matches included")
    index_version: str = Field(description="Over whose places the belief is")
    carried_from: str | None = Field(
        default=None,
        description="The version until now, where another one is served: the belief was taken along",
    )
    step_ms: float = Field(description="What the track took, milliseconds")


class TrackedAnswer(LocalizeAnswer):
    """The whole answer for one frame of a track: that of the photo alone, and the track after it."""

    track: TrackAnswer


def fix_answer(fix: TrackedFix) -> TrackedFixAnswer | None:
    """The fix of a track; None where nothing is believed."""
    if fix.position is None or fix.radius_m is None or fix.covariance_enu is None:
        return None
    return TrackedFixAnswer(
        lat=fix.position.lat,
        lon=fix.position.lon,
        radius_m=fix.radius_m,
        confidence=fix.confidence,
        covariance_enu=fix.covariance_enu,
    )
