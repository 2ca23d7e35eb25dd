"""The answers of the localizer as the messages of `sightfix.v1`."""

from typing import Final

from retrieval.localize.answer import FixAnswer, IndexAnswer, LocalizeAnswer, MatchAnswer, ModelAnswer, TimingsAnswer
from retrieval.localize.fix import FixStatus
from service.grpc.generated import localization_pb2 as pb
from service.http.routes.health import InfoAnswer
from service.tracking.model import TrackAnswer, TrackedFixAnswer

_STATUS: Final = {
    FixStatus.LOCATED: pb.FIX_STATUS_LOCATED,
    FixStatus.AMBIGUOUS: pb.FIX_STATUS_AMBIGUOUS,
    FixStatus.NO_MATCH: pb.FIX_STATUS_NO_MATCH,
}


def answer_message(answer: LocalizeAnswer) -> pb.LocalizeAnswer:
    """The whole answer for one photo."""
    return pb.LocalizeAnswer(
        request_id=answer.request_id,
        status=_STATUS[answer.status],
        fix=None if answer.fix is None else _fix(answer.fix),
        matches=[_match(match) for match in answer.matches],
        model=model_message(answer.model),
        index=index_message(answer.index),
        timings=_timings(answer.timings_ms),
    )


def model_message(model: ModelAnswer) -> pb.ModelInfo:
    """Which model described the photo."""
    return pb.ModelInfo(
        name=model.name,
        fingerprint=model.fingerprint,
        precision=model.precision,
        provider=model.provider,
        runtime=model.runtime,
        device=model.device,
    )


def index_message(index: IndexAnswer) -> pb.IndexInfo:
    """Which place index was searched."""
    return pb.IndexInfo(name=index.name, version=index.version, size=index.size, type=index.type)


def info_message(info: InfoAnswer, max_frames_in_flight: int) -> pb.GetServerInfoResponse:
    """What is being served.

    Args:
        info: as GET /info tells it.
        max_frames_in_flight: frames of one stream that may be worked on at once.
    """
    limits = info.limits
    return pb.GetServerInfoResponse(
        sightfix_version=info.sightfix_version,
        model=model_message(info.model),
        passed_over=info.passed_over,
        index=index_message(info.index),
        bounds=pb.GeoBounds(
            lat_min=info.bounds.lat_min,
            lat_max=info.bounds.lat_max,
            lon_min=info.bounds.lon_min,
            lon_max=info.bounds.lon_max,
        ),
        last_swap=info.last_swap,
        limits=pb.Limits(
            max_image_bytes=int(limits["max_image_bytes"]),
            max_pixels=int(limits["max_pixels"]),
            max_waiting=int(limits["max_waiting"]),
            max_batch=int(limits["max_batch"]),
            deadline_ms=limits["deadline_ms"],
            max_frames_in_flight=max_frames_in_flight,
            max_tracks=int(limits["max_tracks"]),
        ),
    )


def track_message(track: TrackAnswer) -> pb.TrackAnswer:
    """A track after a frame."""
    return pb.TrackAnswer(
        status=_STATUS[track.status],
        fix=None if track.fix is None else _tracked_fix(track.fix),
        lost=track.lost,
        relocalized=track.relocalized,
        matched=track.matched,
        frames=track.frames,
        index_version=track.index_version,
        carried_from=track.carried_from,
        step_ms=track.step_ms,
    )


def _tracked_fix(fix: TrackedFixAnswer) -> pb.TrackedFix:
    return pb.TrackedFix(
        lat=fix.lat,
        lon=fix.lon,
        radius_m=fix.radius_m,
        confidence=fix.confidence,
        covariance_enu=_covariance(fix.covariance_enu),
    )


def _covariance(covariance: tuple[tuple[float, float], tuple[float, float]]) -> pb.CovarianceEnu:
    (east, east_north), (_, north) = covariance
    return pb.CovarianceEnu(east_m2=east, east_north_m2=east_north, north_m2=north)


def _fix(fix: FixAnswer) -> pb.Fix:
    return pb.Fix(
        lat=fix.lat,
        lon=fix.lon,
        radius_m=fix.radius_m,
        confidence=fix.confidence,
        calibrated=fix.calibrated,
        covariance_enu=_covariance(fix.covariance_enu),
        method=fix.method,
        support=fix.support,
    )


def _match(match: MatchAnswer) -> pb.Match:
    return pb.Match(
        rank=match.rank,
        reference_id=match.reference_id,
        lat=match.lat,
        lon=match.lon,
        score=match.score,
        heading_deg=match.heading,
        captured_at=None if match.captured_at is None else match.captured_at.isoformat(),
        session=match.session,
        thumbnail=match.thumbnail,
        inliers=match.inliers,
    )


def _timings(timings: TimingsAnswer) -> pb.Timings:
    return pb.Timings(
        decode_ms=timings.decode,
        queue_ms=timings.queue,
        describe_ms=timings.describe,
        search_ms=timings.search,
        fix_ms=timings.fix,
        total_ms=timings.total,
        rerank_ms=timings.rerank,
    )
