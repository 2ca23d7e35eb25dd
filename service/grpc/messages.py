"""The messages of `sightfix.v1.LocalizationService`: requests, by the rules of the HTTP interface, and answers.

Messages and wire models have the same field names but for a few; those are the ones that are spelt out here.
"""

from typing import Any, Final

from pydantic import ValidationError

from retrieval.errors import ParameterError
from retrieval.localize.fix import FixStatus
from retrieval.localize.localizer import LocalizeOptions
from service.answer import IndexAnswer, LocalizeAnswer, MatchAnswer, ModelAnswer
from service.grpc.calls import wrong_field, wrong_fields
from service.grpc.generated import localization_pb2 as pb
from service.http.requests import LocalizeParameters
from service.http.routes.health import InfoAnswer
from service.problems import RequestError
from service.serving.admission import Lane
from service.tracking.model import TrackAnswer

_LANES: Final[dict[int, Lane]] = {pb.LANE_UNSPECIFIED: "robot", pb.LANE_ROBOT: "robot", pb.LANE_BULK: "bulk"}

_STATUS: Final = {
    FixStatus.LOCATED: pb.FIX_STATUS_LOCATED,
    FixStatus.AMBIGUOUS: pb.FIX_STATUS_AMBIGUOUS,
    FixStatus.NO_MATCH: pb.FIX_STATUS_NO_MATCH,
}

_DEFAULT_OPTIONS: Final = LocalizeOptions()


def options_of(options: pb.LocalizeOptions, path: str) -> LocalizeOptions:
    """What to ask for one photo.

    Args:
        options: as the client sent them.
        path: of the field that holds them, for errors.

    Raises:
        RequestError: a value outside its range (``validation_error``).
    """
    values = fields_of(options)
    if not values:
        return _DEFAULT_OPTIONS
    if "geo_prior" in values:
        values["geo_prior"] = fields_of(options.geo_prior)
    try:
        return LocalizeParameters.model_validate(values).options()
    except ValidationError as error:
        raise wrong_fields(error, f"{path}.") from error
    except ParameterError as error:
        raise RequestError(error.what, code="validation_error", remedy=error.remedy) from error


def lane_of(lane: int, path: str) -> Lane:
    """The lane that a message names; robot if it names none.

    Raises:
        RequestError: there is no such lane (``validation_error``).
    """
    known = _LANES.get(lane)
    if known is None:
        raise wrong_field(path, f"there is no lane {lane}", remedy="Send LANE_ROBOT or LANE_BULK")
    return known


def fields_of(message: Any) -> dict[str, Any]:
    """The fields of a message that are set; those that are not optional always are."""
    return {
        field.name: getattr(message, field.name)
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or message.HasField(field.name)
    }


def answer_message(answer: LocalizeAnswer) -> pb.LocalizeAnswer:
    """The whole answer for one photo."""
    fix = answer.fix
    return pb.LocalizeAnswer(
        request_id=answer.request_id,
        status=_STATUS[answer.status],
        fix=None if fix is None else pb.Fix(**{**dict(fix), "covariance_enu": _covariance(fix.covariance_enu)}),
        matches=[_match(match) for match in answer.matches],
        model=model_message(answer.model),
        index=index_message(answer.index),
        timings=pb.Timings(**{f"{stage}_ms": value for stage, value in answer.timings_ms}),
    )


def model_message(model: ModelAnswer) -> pb.ModelInfo:
    """The model that described the photo."""
    return pb.ModelInfo(**dict(model))


def index_message(index: IndexAnswer) -> pb.IndexInfo:
    """The place index that was searched."""
    return pb.IndexInfo(**dict(index))


def info_message(info: InfoAnswer, max_frames_in_flight: int) -> pb.GetServerInfoResponse:
    """What is being served.

    Args:
        info: as in GET /info.
        max_frames_in_flight: frames of one stream that may be worked on at once.
    """
    # In JSON all limits are numbers of one kind.
    counts: dict[str, Any] = {name: int(value) for name, value in info.limits.items() if name != "deadline_ms"}
    return pb.GetServerInfoResponse(
        sightfix_version=info.sightfix_version,
        model=model_message(info.model),
        passed_over=info.passed_over,
        index=index_message(info.index),
        bounds=pb.GeoBounds(**dict(info.bounds)),
        last_swap=info.last_swap,
        limits=pb.Limits(**counts, deadline_ms=info.limits["deadline_ms"], max_frames_in_flight=max_frames_in_flight),
    )


def track_message(track: TrackAnswer) -> pb.TrackAnswer:
    """A track after a frame."""
    fix = track.fix
    tracked = None if fix is None else pb.TrackedFix(**{**dict(fix), "covariance_enu": _covariance(fix.covariance_enu)})
    return pb.TrackAnswer(**{**dict(track), "status": _STATUS[track.status], "fix": tracked})


def _covariance(covariance: tuple[tuple[float, float], tuple[float, float]]) -> pb.CovarianceEnu:
    (east, east_north), (_, north) = covariance
    return pb.CovarianceEnu(east_m2=east, east_north_m2=east_north, north_m2=north)


def _match(match: MatchAnswer) -> pb.Match:
    fields = dict(match)
    fields["heading_deg"] = fields.pop("heading")
    if match.captured_at is not None:
        fields["captured_at"] = match.captured_at.isoformat()
    return pb.Match(**fields)
