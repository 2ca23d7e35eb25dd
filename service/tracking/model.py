"""A track on the wire: what a client may choose when it opens one, and what it gets for each frame.

What a track costs and what a place is belong to the operator.
"""

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from retrieval.localize.fix import FixStatus
from retrieval.tracking import TrackedFix, TrackSettings
from service.answer import AnswerPart, LocalizeAnswer

_DEFAULTS: Final = TrackSettings()

# Tracks share one thread: whatever a client asks for, a step takes some tens of milliseconds at the worst.
_MAX_SPEED_MPS: Final = 100.0

_MAX_PLACES: Final = 1024
_MAX_PAIRS: Final = 50_000

# Highest speed over usual speed.
_SPEED_RATIO: Final = _DEFAULTS.max_speed_mps / _DEFAULTS.speed_mps


def _number(description: str, **rules: Any) -> Any:
    return Field(default=None, allow_inf_nan=False, description=description, **rules)


class TrackParameters(BaseModel):
    """How a camera moves, and how much its frames count. All may be left out; see `TrackSettings` for each."""

    model_config = ConfigDict(extra="forbid")

    speed_mps: float | None = _number(
        f"How fast it usually is, on each axis; a third of max_speed_mps, or {_DEFAULTS.speed_mps:g}",
        gt=0,
        le=_MAX_SPEED_MPS,
    )
    max_speed_mps: float | None = _number(
        f"No faster than this; three times speed_mps, or {_DEFAULTS.max_speed_mps:g}", gt=0, le=_MAX_SPEED_MPS
    )
    jump_rate: float | None = _number(
        f"How often a second the belief is wrong for no reason of motion; {_DEFAULTS.jump_rate:g}", ge=0, le=10
    )
    miss_share: float | None = _number(
        f"How often the true place is not among the matches; {_DEFAULTS.miss_share:g}", gt=0, lt=1
    )
    contrast: float | None = _number(
        f"What one frame may count at most, less where places look alike; {_DEFAULTS.contrast:g}", gt=0, le=1e9
    )
    score_scale: float | None = _number(
        f"A match so much below the best counts 1/e as much, where scores lie as far apart as usual; "
        f"{_DEFAULTS.score_scale:g}",
        gt=0,
        le=2,
    )
    match_std_m: float | None = _number(
        f"How far from a reference that it rightly matches; {_DEFAULTS.match_std_m:g}", ge=0.1, le=50
    )
    evidence_s: float | None = _number(
        f"Frames closer together share the evidence of one; {_DEFAULTS.evidence_s:g}", ge=0, le=3600
    )
    evidence_m: float | None = _number(
        f"Frames closer together by odometry count less; {_DEFAULTS.evidence_m:g}", ge=0, le=1000
    )

    def settings(self, place_m: float) -> TrackSettings:
        """The settings of the track.

        Args:
            place_m: side of a place, metres.

        Raises:
            ParameterError: values that do not fit together.
        """
        given = {name: value for name, value in self.model_dump().items() if value is not None}
        if self.max_speed_mps is not None:
            given.setdefault("speed_mps", self.max_speed_mps / _SPEED_RATIO)
        elif self.speed_mps is not None:
            given["max_speed_mps"] = min(self.speed_mps * _SPEED_RATIO, _MAX_SPEED_MPS)
        return TrackSettings(place_m=place_m, max_places=_MAX_PLACES, max_pairs=_MAX_PAIRS, **given)


class TrackedFixAnswer(AnswerPart):
    """Where a track's camera most likely is."""

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
        default=None, description="The version until now, where another one is served: the belief was taken along"
    )
    step_ms: float = Field(description="What the track took, milliseconds")


class TrackedAnswer(LocalizeAnswer):
    """The whole answer for one frame of a track: that of the photo alone, and the track after it."""

    track: TrackAnswer


def fix_answer(fix: TrackedFix) -> TrackedFixAnswer | None:
    """The fix of a track; None before any frame had a match."""
    if fix.position is None or fix.radius_m is None or fix.covariance_enu is None:
        return None
    return TrackedFixAnswer(
        lat=fix.position.lat,
        lon=fix.position.lon,
        radius_m=fix.radius_m,
        confidence=fix.confidence,
        covariance_enu=fix.covariance_enu,
    )
