"""What a client says about a track and the motion of its camera."""

from urllib.parse import quote

from retrieval.tracking import Distance, Odometry, Speed
from service.tracking.model import TrackedAnswer, TrackParameters
from sightfix.client.answers import OpenedTrack
from sightfix.client.calls import Call, Options, reads
from sightfix.client.photos import EncodedPhoto

Values = dict[str, float]


def odometry_values(odometry: Odometry) -> Values:
    """By the names that HTTP and gRPC have for them, with their units."""
    if isinstance(odometry, Speed):
        return {"speed_mps": odometry.mps, "speed_std_mps": odometry.std_mps, **_heading(odometry)}
    if isinstance(odometry, Distance):
        return {"distance_m": odometry.metres, "distance_std_m": odometry.std_m, **_heading(odometry)}
    return {"east_m": odometry.east_m, "north_m": odometry.north_m, "displacement_std_m": odometry.std_m}


def open_track_call(parameters: TrackParameters | None) -> Call[OpenedTrack]:
    """Keep a track."""
    body = {} if parameters is None else parameters.model_dump(exclude_none=True)
    # Done twice, a track that nobody knows would be open.
    return Call("POST", "/tracks", reads(OpenedTrack), {"json": body}, repeatable=False)


def localize_frame_call(
    track_id: str, photo: EncodedPhoto, captured_at_s: float, odometry: Odometry | None, options: Options
) -> Call[TrackedAnswer]:
    """Where was this frame taken, and where is the camera? The same time again moves nothing twice."""
    motion: Values = {"captured_at_s": captured_at_s, **(odometry_values(odometry) if odometry is not None else {})}
    params = {**options.texts(), **{name: repr(float(value)) for name, value in motion.items()}}
    return Call(
        "POST",
        f"{_path(track_id)}/localize",
        reads(TrackedAnswer),
        {"content": photo.data, "params": params, "headers": {"Content-Type": photo.media_type}},
        lambda answer: answer.model.fingerprint,
    )


def close_track_call(track_id: str) -> Call[None]:
    """Forget the track."""
    return Call("DELETE", _path(track_id), lambda _: None, repeatable=False)


def _path(track_id: str) -> str:
    return f"/tracks/{quote(track_id, safe='')}"


def _heading(odometry: Speed | Distance) -> Values:
    if odometry.heading_deg is None:
        return {}
    return {"heading_deg": odometry.heading_deg, "heading_std_deg": odometry.heading_std_deg}
