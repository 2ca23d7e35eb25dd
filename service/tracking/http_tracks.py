"""Tracks that are opened over HTTP: found by id, by whoever opened them, and closed when no frame comes any more."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Final

from retrieval.searchable_index import SearchablePlaceIndex
from service.problems import RequestError
from service.tracking.live_track import LiveTrack
from service.tracking.open_tracks import OpenTracks
from service.tracking.parameters import TrackParameters

# Frames of one track that may be inside at once: one is localized, the others wait for their turn with their photos.
MAX_IN_HAND: Final = 4


@dataclass(eq=False, slots=True)
class HttpTrack:
    """One of them.

    Attributes:
        id: a secret of 128 bits.
        owner: name of the API key that opened it; None where there are no keys.
        track: that is open.
        used_at: on `time.monotonic`.
        in_hand: frames that are inside.
        turn: held by the frame that is localized.
    """

    id: str
    owner: str | None
    track: LiveTrack
    used_at: float
    in_hand: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @contextlib.asynccontextmanager
    async def frame(self) -> AsyncIterator[None]:
        """A context in which one frame is inside.

        Raises:
            RequestError: too many are (``track_busy``).
        """
        if self.in_hand >= MAX_IN_HAND:
            raise RequestError(
                f"{self.in_hand} frames of this track are being answered",
                code="track_busy",
                remedy="Send the next frame when one of them is answered",
            )
        self.in_hand += 1
        try:
            yield
        finally:
            self.in_hand -= 1
            self.used_at = time.monotonic()

    @contextlib.asynccontextmanager
    async def in_turn(self, deadline: float) -> AsyncIterator[None]:
        """A context in which no other frame of this track is answered.

        Args:
            deadline: on `time.monotonic`.

        Raises:
            RequestError: its turn does not come in time (``deadline_exceeded``).
        """
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await self.turn.acquire()
        except TimeoutError:
            raise RequestError(
                "the deadline passed while earlier frames of the track were answered",
                code="deadline_exceeded",
                remedy="Allow more time, or send the next frame when the one before is answered",
            ) from None
        try:
            yield
        finally:
            self.turn.release()


class HttpTracks:
    """Opens, finds and closes them. Used on the event loop only.

    Args:
        tracks: all tracks of the server.
        idle_s: a track is closed when no frame has come for so long.
    """

    def __init__(self, tracks: OpenTracks, idle_s: float) -> None:
        self._tracks = tracks
        self.idle_s = idle_s
        self._by_id: dict[str, HttpTrack] = {}

    async def open(
        self, parameters: TrackParameters, index: Callable[[], SearchablePlaceIndex], owner: str | None
    ) -> HttpTrack:
        """Open a track.

        Args:
            parameters: how to track.
            index: gives the version that is served.
            owner: name of the API key that opens it.

        Raises:
            RequestError: as `OpenTracks.open`.
        """
        track = await self._tracks.open(parameters, index)
        opened = HttpTrack(secrets.token_urlsafe(16), owner, track, time.monotonic())
        self._by_id[opened.id] = opened
        self._look_again(opened, self.idle_s)
        return opened

    def find(self, track_id: str, owner: str | None) -> HttpTrack:
        """The track of an id.

        Raises:
            RequestError: there is none, or it is somebody else's, which is not told apart (``track_not_found``).
        """
        found = self._by_id.get(track_id)
        if found is None or found.owner != owner:
            raise RequestError(
                "there is no such track",
                code="track_not_found",
                remedy=f"Open one with POST /tracks; it is closed when no frame comes for {self.idle_s:g} s",
            )
        return found

    def close(self, track: HttpTrack) -> None:
        """Forget a track."""
        self._by_id.pop(track.id, None)
        self._tracks.close(track.track)

    def _look_again(self, track: HttpTrack, seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds, self._close_if_idle, track)

    def _close_if_idle(self, track: HttpTrack) -> None:
        if track.id not in self._by_id:
            return
        left_s = self.idle_s if track.in_hand else track.used_at + self.idle_s - time.monotonic()
        if left_s <= 0.0:
            self.close(track)
        else:
            self._look_again(track, left_s)
