"""The settings of a track, how a camera moves and how much a frame counts, and the odometry that frames come with."""

import math
from dataclasses import dataclass, fields
from typing import Final

from retrieval.errors import ParameterError

# Of metres, metres a second and degrees. Nothing on the ground reaches it, and its square is still a number.
_LARGEST: Final = 1e6

# Name: lowest, highest, whether the lowest itself is allowed.
_DOMAINS: Final[dict[str, tuple[float, float, bool]]] = {
    "place_m": (0.5, 1000.0, True),
    "score_scale": (0.0, 2.0, False),
    "match_std_m": (0.1, 1000.0, True),
    "miss_share": (0.0, 1.0, False),
    "contrast": (0.0, 1e9, False),
    "evidence_s": (0.0, 3600.0, True),
    "evidence_m": (0.0, 1000.0, True),
    "speed_mps": (0.0, 400.0, False),
    "max_speed_mps": (0.0, 400.0, False),
    "jump_rate": (0.0, 10.0, True),
    "max_reach_m": (1.0, 100_000.0, True),
    "max_matches": (1, 1000, True),
    "max_places": (1, 1_000_000, True),
    "max_pairs": (1, 100_000_000, True),
}


@dataclass(frozen=True, slots=True)
class TrackSettings:
    """How much frames count, how a camera moves, and what a track may cost. Chosen on simulated drives.

    Attributes:
        place_m: references in one cell of this side are one place, metres.
        score_scale: a match whose cosine is this much below the best counts 1/e as much, in an index whose scores
            have the `USUAL_SPREAD`, as in `FixSettings`.
        match_std_m: how far the camera stands from a reference that it rightly matches, metres, one σ per axis.
        miss_share: probability that the true place is not among a frame's matches, in (0, 1).
        contrast: at most this many times likelier is a frame at a place that it fully matches than its `miss_share`
            elsewhere. Lower for places that look alike: frames in a row err together, so none may count in full.
        evidence_s: frames closer together than this, seconds, share the evidence of one; 0 lets every frame count, also
            two of the same instant.
        evidence_m: frames closer together than this by odometry, metres, count less; standing ones a tenth. 0 turns
            it off.
        speed_mps: without odometry, σ of the displacement per axis grows by this each second, m/s.
        max_speed_mps: without odometry, no place farther than this allows is reached, m/s.
        jump_rate: how often a second the belief is wrong for a reason that no motion explains (kidnapped, locked on
            a look-alike).
        max_reach_m: when motion could lead farther than this, the track starts anew, metres.
        max_matches: how many of a frame's best matches take part.
        max_places: how many places the belief may hold.
        max_pairs: how many pairs of places one prediction may look at.

    Raises:
        ParameterError: a value outside its domain, or `max_speed_mps` below `speed_mps`.
    """

    place_m: float = 5.0
    score_scale: float = 0.032
    match_std_m: float = 10.0
    miss_share: float = 0.2
    contrast: float = 5.0
    evidence_s: float = 1.0
    evidence_m: float = 2.0
    speed_mps: float = 5.0
    max_speed_mps: float = 15.0
    jump_rate: float = 0.03
    max_reach_m: float = 500.0
    max_matches: int = 20
    max_places: int = 4096
    max_pairs: int = 200_000

    def __post_init__(self) -> None:
        for field in fields(self):
            _check(field.name, getattr(self, field.name), whole=field.type is int)
        if self.miss_share == 1.0:
            raise ParameterError("miss_share 1 of a track means that no frame counts", remedy="Give less")
        if self.max_speed_mps < self.speed_mps:
            raise ParameterError(
                f"max_speed_mps {self.max_speed_mps} of a track is below its speed_mps {self.speed_mps}",
                remedy="Give the highest speed as max_speed_mps",
            )


def _check(name: str, value: float, *, whole: bool) -> None:
    low, high, closed = _DOMAINS[name]
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise ParameterError(f"{name} {value!r} of a track is not a {'whole ' if whole else ''}number")
    if not math.isfinite(value) or not low <= value <= high or (value == low and not closed):
        opening = "[" if closed else "("
        raise ParameterError(f"{name} {value} of a track is outside {opening}{low:g}, {high:g}]")


@dataclass(frozen=True, slots=True)
class Speed:
    """Forward speed, held since the last frame.

    Attributes:
        mps: m/s; negative is backwards.
        std_mps: its standard deviation, m/s.
        heading_deg: direction that the robot faces, degrees clockwise from true north, or None.
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
        heading_deg: direction that the robot faces, degrees clockwise from true north, or None.
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
