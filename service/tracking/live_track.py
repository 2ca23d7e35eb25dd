"""One track of a server, over whichever version of the index is served."""

import time
from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.localizer import Located
from retrieval.tracking import PlaceMap, Track, TrackSettings
from service.problems import RequestError
from service.tracking.answer import TrackAnswer, fix_answer
from service.tracking.motion import FrameMotion
from service.tracking.place_maps import PlaceMaps

_NO_ROWS: Final[NDArray[np.int64]] = np.empty(0, np.int64)
_NO_SCORES: Final = np.empty(0)


class LiveTrack:
    """A track. It holds a map, never an index: an idle one must not keep an old version's vectors in memory.

    Args:
        settings: how to track.
        places: of the version that is served.
        version: its name.
    """

    def __init__(self, settings: TrackSettings, places: PlaceMap, version: str) -> None:
        self._track = Track(places, settings)
        self._version = self._told = version
        self._at_s: float | None = None
        self._has_held = False

    @property
    def matches(self) -> int:
        """How many matches of a frame take part."""
        return self._track.settings.max_matches

    def check_order(self, motion: FrameMotion) -> None:
        """Refuse a frame that was taken before the last one.

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
            motion: when it was taken, and what the robot tells.
            located: its matches; None for a frame that could not be answered: then only time passes.
            maps: where maps of versions are.

        Raises:
            ParameterError: it was taken before the last one (``frame_out_of_order``); the track is then as before.
        """
        begun = time.perf_counter()
        if located is not None:
            self.carry_to(maps.of(located.place_index), located.place_index.version)
        rows, scores = (_NO_ROWS, _NO_SCORES) if located is None else (located.rows, located.scores)
        # The same instant again, such as a request that is repeated: nothing has moved.
        odometry = None if motion.at_s == self._at_s else motion.odometry
        fix = self._track.update(rows, scores, motion.at_s, odometry)
        carried_from = self._told if self._told != self._version else None
        self._at_s, self._told = motion.at_s, self._version
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
