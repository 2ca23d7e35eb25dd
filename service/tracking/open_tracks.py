"""All tracks that are open: how many there may be, and the one thread in which they are stepped."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from retrieval.errors import ParameterError
from retrieval.localizer import Located
from retrieval.searchable_index import SearchablePlaceIndex
from service.problems import RequestError
from service.tracking.answer import TrackAnswer
from service.tracking.live_track import LiveTrack
from service.tracking.motion import FrameMotion
from service.tracking.parameters import TrackParameters
from service.tracking.place_maps import PlaceMaps

Value = TypeVar("Value")

# When it may be worth asking again for a track.
_RETRY_S: Final = 10.0


class OpenTracks:
    """Opens, steps and closes tracks. Steps run in a thread of their own: neither event loop nor model waits for them.

    Args:
        limit: how many may be open; 0: none, ever.
        place_m: side of a place, metres.
        on_step: told the seconds that each step took; called on the tracking thread.
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
            RequestError: this server keeps no tracks (``tracks_disabled``), or not so many (``too_many_tracks``); or
                values that do not fit together (``validation_error``); or whatever `index` raises.
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
                f"{self.count} tracks are open, and there may be {self.limit}",
                code="too_many_tracks",
                remedy="Close tracks that are not needed, or localize without one",
                retry_after_s=_RETRY_S,
            )
        self._opening += 1
        try:
            places = await self._in_thread(lambda: self.maps.of(place_index))
            # Whoever is cancelled before this line leaves nothing behind, and after it has the track.
            track = LiveTrack(settings, places, place_index.version)
            self._open.add(track)
        finally:
            self._opening -= 1
        return track

    def close(self, track: LiveTrack) -> None:
        """Forget a track; one that is closed already stays so."""
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
        """Make the map of a version that will be served, so that no frame waits for it; not on the event loop."""
        if self._open:
            self.maps.of(place_index)

    def swapped(self, place_index: SearchablePlaceIndex) -> None:
        """Another version is served: take all tracks there, idle ones too, so that the old map can go."""
        self._thread.submit(self._carry_all, place_index)

    def stop(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _carry_all(self, place_index: SearchablePlaceIndex) -> None:
        for track in tuple(self._open):
            track.carry_to(self.maps.of(place_index), place_index.version)

    async def _in_thread(self, work: Callable[[], Value]) -> Value:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
