"""Follow a camera with one gRPC stream: the newest frame wins, and the stream is opened anew when it breaks.

    python examples/python/follow_camera.py FRAMES --server 127.0.0.1:50051 --fps 10 [--track]

FRAMES is a folder of JPEG files in order of their names, which stands for your camera: replace `frames_of`.
"""

import argparse
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from retrieval.errors import ServerError
from sightfix.client import TrackParameters
from sightfix.client.grpc_stream import FrameOutcome, FrameStream

RECONNECT_S = 1.0


def frames_of(folder: Path, fps: float) -> Iterator[Path]:
    """The frames of a camera, at the pace at which it takes them."""
    begun = time.monotonic()
    for number, path in enumerate(sorted(folder.glob("*.jpg"))):
        time.sleep(max(0.0, begun + number / fps - time.monotonic()))
        yield path


def line_of(outcome: FrameOutcome) -> str:
    """What became of a frame, for people."""
    if outcome.problem is not None:
        return f"{outcome.frame_id:6d}  {outcome.problem.code}"
    answer, track = outcome.answer, outcome.track
    if answer is None or answer.fix is None:
        return f"{outcome.frame_id:6d}  NO_MATCH"
    fix = answer.fix
    text = f"{outcome.frame_id:6d}  {answer.status}  {fix.lat:.6f}, {fix.lon:.6f}  ± {fix.radius_m:.0f} m"
    if track is not None and track.fix is not None:
        text += f"  track {track.fix.lat:.6f}, {track.fix.lon:.6f}  ± {track.fix.radius_m:.0f} m"
    return text


def follow(frames: Iterator[Path], server: str, api_key: str | None, track: bool) -> None:
    """Send frames until there are none; what is missed while the server is away is gone."""
    first = 1
    while True:
        settings = TrackParameters() if track else None
        with FrameStream(server, drop_stale=True, api_key=api_key, track=settings) as stream:
            camera = _Camera(stream, frames, first)
            camera.start()
            try:
                for outcome in stream:
                    print(line_of(outcome), flush=True)
            except ServerError as error:
                if not error.code.endswith("_unavailable"):
                    raise  # a wrong key or wrong settings do not get better
                print(error, file=sys.stderr, flush=True)
        camera.join()
        if camera.at_end:
            return
        first = camera.next_id
        time.sleep(RECONNECT_S)


class _Camera(threading.Thread):
    """Films into a stream until that ends or there are no more frames."""

    def __init__(self, stream: FrameStream, frames: Iterator[Path], first: int) -> None:
        super().__init__(name="camera", daemon=True)
        self._stream = stream
        self._frames = frames
        self.next_id = first
        self.at_end = False

    def run(self) -> None:
        for frame in self._frames:
            try:
                self._stream.send(frame, frame_id=self.next_id, top_k=3, deadline_ms=1000)
            except ServerError:
                return  # whoever reads the outcomes hears why
            finally:
                self.next_id += 1
        self.at_end = True
        self._stream.finish()


def main() -> None:
    """Read the arguments and follow."""
    parser = argparse.ArgumentParser(description="Follow a camera with one gRPC stream.")
    parser.add_argument("frames", type=Path, help="folder of JPEG files")
    parser.add_argument("--server", default="127.0.0.1:50051", help="host and gRPC port")
    parser.add_argument("--fps", type=float, default=10.0, help="frames a second")
    parser.add_argument("--track", action="store_true", help="keep a track over the frames")
    given = parser.parse_args()
    follow(frames_of(given.frames, given.fps), given.server, os.environ.get("SIGHTFIX_API_KEY"), given.track)


if __name__ == "__main__":
    main()
