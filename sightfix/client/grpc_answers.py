"""The messages of `sightfix.v1` as the typed answers that the HTTP clients give."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from retrieval.localize.answer import FixAnswer, IndexAnswer, LocalizeAnswer, MatchAnswer, ModelAnswer, TimingsAnswer
from retrieval.localize.fix import FixStatus
from service.grpc.generated import localization_pb2 as pb
from service.tracking.model import TrackAnswer, TrackedFixAnswer

_STATUS: Final = {
    pb.FIX_STATUS_LOCATED: FixStatus.LOCATED,
    pb.FIX_STATUS_AMBIGUOUS: FixStatus.AMBIGUOUS,
    pb.FIX_STATUS_NO_MATCH: FixStatus.NO_MATCH,
}


@dataclass(frozen=True, slots=True)
class FrameProblem:
    """Why a frame was not localized.

    Attributes:
        code: stable, as in the HTTP interface, such as `superseded`.
        detail: for people.
        retry_after_s: when it is worth trying again, if it is.
    """

    code: str
    detail: str
    retry_after_s: float | None = None


def localize_answer(message: pb.LocalizeAnswer) -> LocalizeAnswer:
    """The whole answer for one photo."""
    model, index, timings = message.model, message.index, message.timings
    return LocalizeAnswer(
        request_id=message.request_id,
        status=_STATUS[message.status],
        fix=_fix(message.fix) if message.HasField("fix") else None,
        matches=[_match(match) for match in message.matches],
        model=ModelAnswer(
            name=model.name,
            fingerprint=model.fingerprint,
            precision=model.precision,
            provider=model.provider,
            runtime=model.runtime,
            device=model.device,
        ),
        index=IndexAnswer(name=index.name, version=index.version, size=index.size, type=index.type),
        timings_ms=TimingsAnswer(
            decode=timings.decode_ms,
            queue=timings.queue_ms,
            describe=timings.describe_ms,
            search=timings.search_ms,
            fix=timings.fix_ms,
            total=timings.total_ms,
            rerank=timings.rerank_ms if timings.HasField("rerank_ms") else None,
        ),
    )


def frame_problem(status: Status) -> FrameProblem:
    """Why a frame was not localized."""
    info, retry = ErrorInfo(), RetryInfo()
    retry_after_s: float | None = None
    for detail in status.details:
        detail.Unpack(info)
        if detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToMilliseconds() / 1e3
    return FrameProblem(info.reason.lower() or "internal_error", status.message, retry_after_s)


def track_answer(message: pb.TrackAnswer) -> TrackAnswer:
    """The track after a frame."""
    return TrackAnswer(
        status=_STATUS[message.status],
        fix=_tracked_fix(message.fix) if message.HasField("fix") else None,
        lost=message.lost,
        relocalized=message.relocalized,
        matched=message.matched,
        frames=message.frames,
        index_version=message.index_version,
        carried_from=message.carried_from if message.HasField("carried_from") else None,
        step_ms=message.step_ms,
    )


def _tracked_fix(fix: pb.TrackedFix) -> TrackedFixAnswer:
    return TrackedFixAnswer(
        lat=fix.lat,
        lon=fix.lon,
        radius_m=fix.radius_m,
        confidence=fix.confidence,
        covariance_enu=_covariance(fix.covariance_enu),
    )


def _covariance(message: pb.CovarianceEnu) -> tuple[tuple[float, float], tuple[float, float]]:
    return (message.east_m2, message.east_north_m2), (message.east_north_m2, message.north_m2)


def _fix(fix: pb.Fix) -> FixAnswer:
    return FixAnswer.model_validate(
        {
            "lat": fix.lat,
            "lon": fix.lon,
            "radius_m": fix.radius_m,
            "confidence": fix.confidence,
            "calibrated": fix.calibrated,
            "covariance_enu": _covariance(fix.covariance_enu),
            "method": fix.method,
            "support": fix.support,
        }
    )


def _match(match: pb.Match) -> MatchAnswer:
    return MatchAnswer(
        rank=match.rank,
        reference_id=match.reference_id,
        lat=match.lat,
        lon=match.lon,
        score=match.score,
        heading=match.heading_deg if match.HasField("heading_deg") else None,
        captured_at=datetime.fromisoformat(match.captured_at) if match.HasField("captured_at") else None,
        session=match.session if match.HasField("session") else None,
        thumbnail=match.thumbnail if match.HasField("thumbnail") else None,
        inliers=match.inliers if match.HasField("inliers") else None,
    )
