"""What a frame of a track says of its camera's motion."""

from dataclasses import dataclass
from typing import Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from retrieval.tracking import Displacement, Distance, Odometry, Speed

# Seconds since 1970 pass it in the year 5138; milliseconds passed it in 1973.
_LATEST_S: Final = 1e11
_LARGEST: Final = 1e6


@dataclass(frozen=True, slots=True)
class FrameMotion:
    """When a frame was taken, and how its camera has moved since the one before.

    Attributes:
        at_s: seconds, on the camera's own clock.
        odometry: or None.
    """

    at_s: float
    odometry: Odometry | None = None


def _number(description: str, **rules: Any) -> Any:
    limits = {"ge": -_LARGEST, "le": _LARGEST, "allow_inf_nan": False, **rules}
    return Field(default=None, description=description, **limits)


class MotionParameters(BaseModel):
    """The same as parameters: flat, with units in the names. At most one of speed, distance and displacement."""

    model_config = ConfigDict(extra="forbid")

    captured_at_s: float = Field(
        ge=0,
        le=_LATEST_S,
        allow_inf_nan=False,
        description="When the frame was taken: seconds on any clock that does not go back, such as Unix time",
    )
    speed_mps: float | None = _number("Forward speed since the last frame; negative is backwards")
    speed_std_mps: float | None = _number("Its standard deviation; 0.5 if left out", ge=0)
    distance_m: float | None = _number("Distance travelled since the last frame; negative is backwards")
    distance_std_m: float | None = _number("Its standard deviation; 0.5 if left out", ge=0)
    east_m: float | None = _number("Displacement to the true east since the last frame, with north_m")
    north_m: float | None = _number("Displacement to the true north since the last frame, with east_m")
    displacement_std_m: float | None = _number("Its standard deviation on each axis; 0.5 if left out", ge=0)
    heading_deg: float | None = _number("Where the robot faces, clockwise from true north; with speed or distance")
    heading_std_deg: float | None = _number("Its standard deviation; 10 if left out", ge=0)

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if (self.east_m is None) != (self.north_m is None):
            raise ValueError("a displacement needs both east_m and north_m")
        if sum(value is not None for value in (self.speed_mps, self.distance_m, self.east_m)) > 1:
            raise ValueError("give one of speed, distance and displacement, not several")
        for name, needs in _NEEDS.items():
            if getattr(self, name) is not None and all(getattr(self, other) is None for other in needs):
                raise ValueError(f"{name} says nothing without {' or '.join(needs)}")
        return self

    def motion(self) -> FrameMotion:
        """The same for a track."""
        return FrameMotion(self.captured_at_s, self._odometry())

    def _odometry(self) -> Odometry | None:
        heading = _given(heading_deg=self.heading_deg, heading_std_deg=self.heading_std_deg)
        if self.speed_mps is not None:
            return Speed(self.speed_mps, **_given(std_mps=self.speed_std_mps), **heading)
        if self.distance_m is not None:
            return Distance(self.distance_m, **_given(std_m=self.distance_std_m), **heading)
        if self.east_m is not None and self.north_m is not None:
            return Displacement(self.east_m, self.north_m, **_given(std_m=self.displacement_std_m))
        return None


_NEEDS: Final = {
    "speed_std_mps": ("speed_mps",),
    "distance_std_m": ("distance_m",),
    "displacement_std_m": ("east_m",),
    "heading_deg": ("speed_mps", "distance_m"),
    "heading_std_deg": ("heading_deg",),
}


def _given(**values: float | None) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}
