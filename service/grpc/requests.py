"""What the messages of `sightfix.v1` ask for; the rules are those of the HTTP interface."""

from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from retrieval.errors import ParameterError
from retrieval.localizer import LocalizeOptions
from service.batching import Lane
from service.grpc.errors import wrong_field, wrong_fields
from service.grpc.generated import localization_pb2 as pb
from service.live_localizer import LiveLocalizer
from service.localize_request import LocalizeParameters
from service.problems import RequestError
from service.urgency import MAX_DEADLINE_MS

if TYPE_CHECKING:
    from service.grpc.calls import Context

_LANES: Final[dict[int, Lane]] = {pb.LANE_UNSPECIFIED: "robot", pb.LANE_ROBOT: "robot", pb.LANE_BULK: "bulk"}
_PLAIN: Final = LocalizeOptions()


def options_of(options: pb.LocalizeOptions, path: str) -> LocalizeOptions:
    """What to ask for one photo.

    Args:
        options: as the client sent them.
        path: of the field that holds them, for errors.

    Raises:
        RequestError: a value outside its range (``validation_error``).
    """
    values: dict[str, Any] = {}
    if options.HasField("top_k"):
        values["top_k"] = options.top_k
    if options.HasField("min_score"):
        values["min_score"] = options.min_score
    if options.HasField("geo_prior"):
        prior = options.geo_prior
        values["geo_prior"] = {"lat": prior.lat, "lon": prior.lon, "radius_m": prior.radius_m}
    if not values:
        return _PLAIN
    try:
        return LocalizeParameters.model_validate(values).options()
    except ValidationError as error:
        raise wrong_fields(error, f"{path}.") from error
    except ParameterError as error:
        raise RequestError(error.what, code="validation_error", remedy=error.remedy) from error


def lane_of(lane: int, path: str) -> Lane:
    """Who goes first.

    Raises:
        RequestError: there is no such lane (``validation_error``).
    """
    known = _LANES.get(lane)
    if known is None:
        raise wrong_field(path, f"there is no lane {lane}", remedy="Send LANE_ROBOT or LANE_BULK")
    return known


def deadline_of(context: "Context", live: LiveLocalizer) -> float:
    """When the answer must be there, on `time.monotonic`: the call's deadline, or the server's usual one."""
    left_s = context.time_remaining()
    return live.deadline(None if left_s is None else min(left_s, MAX_DEADLINE_MS / 1e3))
