"""The open tracks of a server: the motion of their frames, their place maps, and the thread they run in."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Self, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from retrieval.errors import ParameterError, counted
from retrieval.index.searchable import SearchablePlaceIndex
from retrieval.localize.localizer import Located
from retrieval.tracking import Displacement, Distance, Odometry, PlaceMap, Speed, Track, TrackSettings
from service.problems import RequestError
from service.tracking.model import TrackAnswer, TrackParameters, fix_answer

_log = logging.getLogger("sightfix.service")
Value = TypeVar("Value")

# Seconds since 1970 pass it in the year 5138; milliseconds passed it in 1973.
_LATEST_S: Final = 1e11

_LARGEST: Final = 1e6

# When it may be worth asking again for a track.
_RETRY_S: Final = 10.0

_NO_ROWS: Final[NDArray[np.int64]] = np.empty(0, np.int64)
_NO_COSINES: Final = np.empty(0)

# What each parameter of the odometry says nothing without.
_NEEDS: Final = {
    "speed_std_mps": ("speed_mps",),
    "distance_std_m": ("distance_m",),
    "displacement_std_m": ("east_m",),
    "heading_deg": ("speed_mps", "distance_m"),
    "heading_std_deg": ("heading_deg",),
}


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
    """`FrameMotion` as parameters: flat, with units in the names. At most one of speed, distance and displacement."""

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
        """The motion that they describe."""
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


def _given(**values: float | None) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


class PlaceMaps:
    """The place map of each version that is in use: made once, shared by all tracks, dropped with its version.

    Safe to share between threads.

    Args:
        place_m: side of a place, metres.
    """

    def __init__(self, place_m: float) -> None:
        self.place_m = place_m
        self._maps: WeakKeyDictionary[SearchablePlaceIndex, PlaceMap] = WeakKeyDictionary()
        self._making = threading.Lock()

    def of(self, place_index: SearchablePlaceIndex) -> PlaceMap:
        """The map of a version. The first call for it takes about a second for a million references."""
        # Without the lock: a track over an old map does not wait for a new one.
        found = self._maps.get(place_index)
        if found is not None:
            return found
        with self._making:
            found = self._maps.get(place_index)
            if found is None:
                begun = time.perf_counter()
                found = PlaceMap(*place_index.all_positions(), self.place_m)
                self._maps[place_index] = found
                seconds = time.perf_counter() - begun
                _log.info("%d places of version %s were mapped in %.2f s", found.count, place_index.version, seconds)
            return found


class LiveTrack:
    """A track over the version that is served.

    It holds a map, never an index: an idle track must not keep an old version's vectors in memory.

    Args:
        settings: how to track.
        places: of the version that is served.
        version: its name.
    """

    def __init__(self, settings: TrackSettings, places: PlaceMap, version: str) -> None:
        self._track = Track(places, settings)
        self._version = self._reported_version = version
        self._at_s: float | None = None
        self._has_held = False

    @property
    def matches(self) -> int:
        """How many matches of a frame take part."""
        return self._track.settings.max_matches

    def check_order(self, motion: FrameMotion) -> None:
        """Reject a frame that was taken before the last one.

        Raises:
            RequestError: it was (``frame_out_of_order``).
        """
        if self._at_s is not None and motion.at_s < self._at_s:
            raise RequestError(
                f"captured_at_s {motion.at_s:.3f} is before {self._at_s:.3f} of an earlier frame",
                code="frame_out_of_order",
                remedy="Send frames in the order they were taken, or open another track",
            )

    def carry_to(self, places: PlaceMap, version: str) -> None:
        """Go on over another version of the index; the belief is taken along.

        Args:
            places: of it.
            version: its name.
        """
        self._track.carry_to(places)
        self._version = version

    def step(self, motion: FrameMotion, located: Located | None, maps: PlaceMaps) -> TrackAnswer:
        """Take in one frame.

        Args:
            motion: when it was taken, and its odometry.
            located: its matches; None for a frame that could not be answered: then only time passes.
            maps: where maps of versions are.

        Raises:
            ParameterError: it was taken before the last one (``frame_out_of_order``); the track is then as before.
        """
        begun = time.perf_counter()
        rows, cosines = _NO_ROWS, _NO_COSINES
        if located is not None:
            self.carry_to(maps.of(located.place_index), located.place_index.version)
            rows, cosines = located.ranking.rows, located.ranking.cosines
        # The same instant again, such as a request that is repeated: nothing has moved.
        odometry = None if motion.at_s == self._at_s else motion.odometry
        fix = self._track.update(rows, cosines, motion.at_s, odometry)
        carried_from = self._reported_version if self._reported_version != self._version else None
        self._at_s, self._reported_version = motion.at_s, self._version
        relocalized = self._has_held and self._track.was_lost and not fix.lost
        self._has_held = self._has_held or not fix.lost
        return TrackAnswer(
            status=fix.status,
            fix=fix_answer(fix),
            lost=fix.lost,
            relocalized=relocalized,
            matched=len(rows) > 0,
            frames=fix.frames,
            index_version=self._version,
            carried_from=carried_from,
            step_ms=(time.perf_counter() - begun) * 1e3,
        )


class OpenTracks:
    """Opens, steps and closes tracks. Steps run in a thread of their own: neither event loop nor model waits for them.

    Args:
        limit: how many may be open; 0: none, ever.
        place_m: side of a place, metres.
        on_step: called with the seconds of each step.
    """

    def __init__(self, limit: int, place_m: float, on_step: Callable[[float], None] = lambda _: None) -> None:
        self.limit = limit
        self.maps = PlaceMaps(place_m)
        self._on_step = on_step
        self._open: set[LiveTrack] = set()
        self._opening = 0
        self._thread = ThreadPoolExecutor(1, "track")

    @property
    def count(self) -> int:
        """How many are open."""
        return len(self._open) + self._opening

    async def open(self, parameters: TrackParameters, index: Callable[[], SearchablePlaceIndex]) -> LiveTrack:
        """Open a track.

        Args:
            parameters: how to track.
            index: gives the version that is served.

        Raises:
            RequestError: this server keeps no tracks (``tracks_disabled``) or not so many (``too_many_tracks``), values
                that do not fit together (``validation_error``), or whatever `index` raises.
        """
        if self.limit == 0:
            raise RequestError(
                "this server keeps no tracks", code="tracks_disabled", remedy="Its operator sets SIGHTFIX_MAX_TRACKS"
            )
        try:
            settings = parameters.settings(self.maps.place_m)
        except ParameterError as error:
            raise RequestError(error.what, code="validation_error", remedy=error.remedy) from error
        place_index = index()
        if self.count >= self.limit:
            raise RequestError(
                f"{counted(self.count, 'track is', 'tracks are')} open, and there may be {self.limit}",
                code="too_many_tracks",
                remedy="Close tracks that are not needed, or localize without one",
                retry_after_s=_RETRY_S,
            )
        self._opening += 1
        try:
            places = await self._in_thread(lambda: self.maps.of(place_index))
            # A caller that is cancelled before this line leaves nothing behind.
            track = LiveTrack(settings, places, place_index.version)
            self._open.add(track)
        finally:
            self._opening -= 1
        return track

    def close(self, track: LiveTrack) -> None:
        """Close a track; one that is closed already stays so."""
        self._open.discard(track)

    async def step(self, track: LiveTrack, motion: FrameMotion, located: Located | None) -> TrackAnswer:
        """Take one frame into a track.

        Args:
            track: that is open; never two steps of one track at a time.
            motion: of the frame.
            located: its matches; None for a frame that could not be answered.

        Raises:
            ParameterError: it was taken before the last one (``frame_out_of_order``); nothing has changed.
        """
        answer = await self._in_thread(lambda: track.step(motion, located, self.maps))
        self._on_step(answer.step_ms * 1e-3)
        return answer

    def prepare(self, place_index: SearchablePlaceIndex) -> None:
        """Make the map of a version that will be served, so that no frame waits for it; blocks."""
        if self._open:
            self.maps.of(place_index)

    def swapped(self, place_index: SearchablePlaceIndex) -> None:
        """Carry all tracks over to the version that is served now, idle ones too: the old map can be dropped."""
        self._thread.submit(self._carry_all, place_index)

    def stop(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _carry_all(self, place_index: SearchablePlaceIndex) -> None:
        for track in tuple(self._open):
            track.carry_to(self.maps.of(place_index), place_index.version)

    async def _in_thread(self, work: Callable[[], Value]) -> Value:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
