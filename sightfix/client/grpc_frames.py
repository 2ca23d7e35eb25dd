"""What a client says on a stream of `sightfix.v1`, as messages."""

from typing import Final

from retrieval.errors import ParameterError
from retrieval.geo import GeoPrior
from retrieval.tracking import Distance, Odometry, Speed
from service.grpc.generated import localization_pb2 as pb
from service.tracking.model import TrackParameters
from sightfix.client.calls import Lane
from sightfix.client.tracking import odometry_values

_LANES: Final = {"robot": pb.LANE_ROBOT, "bulk": pb.LANE_BULK}


def settings_message(lane: Lane, drop_stale: bool, track: TrackParameters | None) -> pb.StreamSettings:
    """How the stream shall work.

    Args:
        lane: robot goes before bulk.
        drop_stale: whether the newest frame wins.
        track: of the camera, or None for none.

    Raises:
        ParameterError: there is no such lane.
    """
    if lane not in _LANES:
        raise ParameterError(f"there is no lane {lane!r}", remedy=f"Choose among {', '.join(_LANES)}")
    message = pb.StreamSettings(lane=_LANES[lane], drop_stale=drop_stale)
    if track is not None:
        message.track.CopyFrom(pb.TrackSettings(**track.model_dump(exclude_none=True)))
    return message


def options_message(top_k: int, geo_prior: GeoPrior | None, min_score: float | None) -> pb.LocalizeOptions:
    """What is asked of a frame."""
    message = pb.LocalizeOptions(top_k=top_k, min_score=min_score)
    if geo_prior is not None:
        message.geo_prior.CopyFrom(pb.GeoPrior(lat=geo_prior.lat, lon=geo_prior.lon, radius_m=geo_prior.radius_m))
    return message


def add_odometry(frame: pb.Frame, odometry: Odometry) -> None:
    """Say how the camera has moved since the frame before."""
    values = odometry_values(odometry)
    if isinstance(odometry, Speed):
        frame.speed.CopyFrom(pb.Speed(**values))
    elif isinstance(odometry, Distance):
        frame.distance.CopyFrom(pb.Distance(**values))
    else:
        frame.displacement.CopyFrom(pb.Displacement(**values))
