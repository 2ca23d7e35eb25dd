"""What a robot can tell about its own motion since the last frame: a speed, a distance, or a displacement."""

import math
from dataclasses import dataclass
from typing import Final

from retrieval.errors import ParameterError

# Of metres, metres a second and degrees. Nothing on the ground reaches it, and its square is still a number.
_LARGEST: Final = 1e6


@dataclass(frozen=True, slots=True)
class Speed:
    """Forward speed, held since the last frame.

    Attributes:
        mps: m/s; negative is backwards.
        std_mps: its standard deviation, m/s.
        heading_deg: where the robot faces, degrees clockwise from true north, or None.
        heading_std_deg: the heading's standard deviation, degrees.

    Raises:
        ParameterError: a number that is not finite or absurdly large, or a negative standard deviation.
    """

    mps: float
    std_mps: float = 0.5
    heading_deg: float | None = None
    heading_std_deg: float = 10.0

    def __post_init__(self) -> None:
        _check_finite("speed mps", self.mps)
        _check_std("speed std_mps", self.std_mps)
        _check_heading(self.heading_deg, self.heading_std_deg)


@dataclass(frozen=True, slots=True)
class Distance:
    """Distance travelled since the last frame, as wheels count it.

    Attributes:
        metres: negative is backwards.
        std_m: its standard deviation, metres.
        heading_deg: where the robot faces, degrees clockwise from true north, or None.
        heading_std_deg: the heading's standard deviation, degrees.

    Raises:
        ParameterError: a number that is not finite or absurdly large, or a negative standard deviation.
    """

    metres: float
    std_m: float = 0.5
    heading_deg: float | None = None
    heading_std_deg: float = 10.0

    def __post_init__(self) -> None:
        _check_finite("distance metres", self.metres)
        _check_std("distance std_m", self.std_m)
        _check_heading(self.heading_deg, self.heading_std_deg)


@dataclass(frozen=True, slots=True)
class Displacement:
    """Displacement since the last frame in true east and north, not in the robot's own axes.

    Attributes:
        east_m, north_m: metres.
        std_m: standard deviation per axis, metres.

    Raises:
        ParameterError: a number that is not finite or absurdly large, or a negative standard deviation.
    """

    east_m: float
    north_m: float
    std_m: float = 0.5

    def __post_init__(self) -> None:
        _check_finite("displacement east_m", self.east_m)
        _check_finite("displacement north_m", self.north_m)
        _check_std("displacement std_m", self.std_m)


Odometry = Speed | Distance | Displacement


def _check_finite(name: str, value: float) -> None:
    if not (math.isfinite(value) and abs(value) <= _LARGEST):
        raise ParameterError(f"odometry: {name} is {value}", remedy="Leave the odometry out of frames that have none")


def _check_std(name: str, value: float) -> None:
    if not (math.isfinite(value) and 0.0 <= value <= _LARGEST):
        raise ParameterError(
            f"odometry: {name} {value} is not a standard deviation", remedy="Give 0 or more, in the unit it has"
        )


def _check_heading(heading_deg: float | None, std_deg: float) -> None:
    if heading_deg is not None:
        _check_finite("heading_deg", heading_deg)
        _check_std("heading_std_deg", std_deg)
