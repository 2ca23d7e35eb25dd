"""Localize, Describe, Search and GetServerInfo against a real process; the answers are those of HTTP."""

import grpc
import httpx
import numpy as np
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RequestInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from service.grpc.generated import localization_pb2 as pb
from service.grpc.generated.localization_pb2_grpc import LocalizationServiceStub
from tests.conftest import PublishedPlaces
from tests.running_server import RunningServer

JPEG = {"Content-Type": "image/jpeg"}


def photo(published: PublishedPlaces, number: int) -> bytes:
    return published.places.rows[number].path.read_bytes()


def details(error: grpc.RpcError) -> dict[str, object]:
    """The details of a status by their kind."""
    status: Status | None = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None, error
    found = {}
    for kind in (ErrorInfo, RequestInfo, BadRequest):
        for detail in status.details:
            message = kind()
            if detail.Unpack(message):
                found[kind.__name__] = message
    return found


def test_the_answer_is_that_of_http(
    process: RunningServer, stub: LocalizationServiceStub, published: PublishedPlaces
) -> None:
    over_http = httpx.post(
        f"{process.url}/localize?top_k=3&geo_prior=48,11,5000&min_score=-1", content=photo(published, 4), headers=JPEG
    ).json()
    request = pb.LocalizeRequest(
        image=photo(published, 4),
        options=pb.LocalizeOptions(top_k=3, geo_prior=pb.GeoPrior(lat=48, lon=11, radius_m=5000), min_score=-1),
        lane=pb.LANE_BULK,
    )
    answer = stub.Localize(request).answer
    assert pb.FixStatus.Name(answer.status) == f"FIX_STATUS_{over_http['status']}"
    for ours, theirs in zip(answer.matches, over_http["matches"], strict=True):
        assert (ours.rank, ours.reference_id, ours.lat, ours.lon) == (
            theirs["rank"], theirs["reference_id"], theirs["lat"], theirs["lon"],
        )  # fmt: skip
        assert ours.score == pytest.approx(theirs["score"], abs=1e-6)
        assert (ours.heading_deg, ours.thumbnail) == (theirs["heading"], theirs["thumbnail"])
        assert not ours.HasField("captured_at")
        assert theirs["captured_at"] is None
    fix = over_http["fix"]
    for name in ("lat", "lon", "radius_m", "confidence", "calibrated", "method", "support"):
        assert getattr(answer.fix, name) == pytest.approx(fix[name]), name
    covariance = answer.fix.covariance_enu
    assert [[covariance.east_m2, covariance.east_north_m2], [covariance.east_north_m2, covariance.north_m2]] == [
        pytest.approx(row) for row in fix["covariance_enu"]
    ]
    for ours, theirs in ((answer.model, over_http["model"]), (answer.index, over_http["index"])):
        assert {field.name: value for field, value in ours.ListFields()} == theirs
    # `rerank_ms` is there only where matches were re-ranked.
    told = {f.name for f in answer.timings.DESCRIPTOR.fields} - {"rerank_ms"}
    assert told == {f"{name}_ms" for name in over_http["timings_ms"]}
    assert answer.timings.total_ms > answer.timings.describe_ms > 0


def test_no_match_has_no_fix(stub: LocalizationServiceStub, published: PublishedPlaces) -> None:
    prior = pb.GeoPrior(lat=-48, lon=11, radius_m=10)
    answer = stub.Localize(
        pb.LocalizeRequest(image=photo(published, 4), options=pb.LocalizeOptions(geo_prior=prior))
    ).answer
    assert answer.status == pb.FIX_STATUS_NO_MATCH
    assert not answer.HasField("fix")
    assert len(answer.matches) == 0


def test_describe_and_search_are_localize_in_two_steps(
    process: RunningServer, stub: LocalizationServiceStub, published: PublishedPlaces
) -> None:
    described = stub.Describe(pb.DescribeRequest(image=photo(published, 7), request_id="d-7"))
    over_http = httpx.post(f"{process.url}/describe", content=photo(published, 7), headers=JPEG).json()
    np.testing.assert_allclose(described.descriptor_values, over_http["descriptor"], atol=1e-6)
    assert described.request_id == "d-7"
    assert described.model.fingerprint == over_http["model"]["fingerprint"]
    found = stub.Search(
        pb.SearchRequest(descriptor_values=described.descriptor_values, options=pb.LocalizeOptions(top_k=2))
    ).answer
    assert found.matches[0].reference_id == "photos/0007.jpg"
    assert len(found.matches) == 2
    assert found.timings.describe_ms == 0
    request = pb.SearchRequest(descriptor_values=described.descriptor_values, fingerprint=described.model.fingerprint)
    assert stub.Search(request).answer.matches[0].reference_id == "photos/0007.jpg"
    request.fingerprint = "0" * 64
    with pytest.raises(grpc.RpcError) as other:
        stub.Search(request)
    assert other.value.code() == grpc.StatusCode.FAILED_PRECONDITION


def test_the_server_tells_what_it_serves(process: RunningServer, stub: LocalizationServiceStub) -> None:
    info = stub.GetServerInfo(pb.GetServerInfoRequest())
    over_http = httpx.get(f"{process.url}/info").json()
    assert info.sightfix_version == over_http["sightfix_version"]
    assert info.index.size == over_http["index"]["size"] == 12
    assert info.limits.max_image_bytes == over_http["limits"]["max_image_bytes"] == 1 << 20
    assert info.limits.max_frames_in_flight == 4
    assert {name: getattr(info.bounds, name) for name in over_http["bounds"]} == over_http["bounds"]
    assert not info.HasField("last_swap")


def test_the_request_id_comes_back(stub: LocalizationServiceStub, published: PublishedPlaces) -> None:
    data = photo(published, 1)
    for message, metadata, expected in (
        ("mine", (), "mine"),
        ("", (("x-request-id", "meta-1"),), "meta-1"),
        ("mine", (("x-request-id", "meta-1"),), "mine"),
    ):
        response, call = stub.Localize.with_call(pb.LocalizeRequest(image=data, request_id=message), metadata=metadata)
        assert response.answer.request_id == expected
        assert dict(call.trailing_metadata())["x-request-id"] == expected
    odd = stub.Localize(pb.LocalizeRequest(image=data, request_id="a\nb")).answer.request_id
    assert len(odd) == 32
    with pytest.raises(grpc.RpcError) as refused:
        stub.Localize(pb.LocalizeRequest(image=b"", request_id="bad-1"))
    assert dict(refused.value.trailing_metadata())["x-request-id"] == "bad-1"
    assert details(refused.value)["RequestInfo"].request_id == "bad-1"


OPTIONS = pb.LocalizeOptions
BAD_OPTIONS = [
    (OPTIONS(top_k=0), "options.top_k"),
    (OPTIONS(top_k=101), "options.top_k"),
    (OPTIONS(min_score=1.5), "options.min_score"),
    (OPTIONS(min_score=float("nan")), "options.min_score"),
    (OPTIONS(geo_prior=pb.GeoPrior(lat=91, lon=11, radius_m=5)), "options.geo_prior.lat"),
    (OPTIONS(geo_prior=pb.GeoPrior(lat=48, lon=11)), "options.geo_prior.radius_m"),
    (OPTIONS(geo_prior=pb.GeoPrior(lat=48, lon=float("inf"), radius_m=5)), "options.geo_prior.lon"),
]


@pytest.mark.parametrize(("options", "field"), BAD_OPTIONS)
def test_a_wrong_field_is_named(
    stub: LocalizationServiceStub, published: PublishedPlaces, options: pb.LocalizeOptions, field: str
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        stub.Localize(pb.LocalizeRequest(image=photo(published, 1), options=options))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert details(refused.value)["ErrorInfo"].reason == "VALIDATION_ERROR"
    assert [violation.field for violation in details(refused.value)["BadRequest"].field_violations] == [field]
    assert refused.value.details().startswith(field)


def test_a_lane_that_there_is_not(stub: LocalizationServiceStub, published: PublishedPlaces) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        stub.Localize(pb.LocalizeRequest(image=photo(published, 1), lane=7))  # type: ignore[arg-type]
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details().startswith("lane: there is no lane 7")


def test_bad_photos(stub: LocalizationServiceStub, published: PublishedPlaces) -> None:
    import io

    from PIL import Image

    wide = io.BytesIO()
    Image.new("1", (2001, 1000)).save(wide, "PNG")
    for data, code, reason in (
        (b"", grpc.StatusCode.INVALID_ARGUMENT, "EMPTY_BODY"),
        (b"\xff\xd8\xff nothing", grpc.StatusCode.INVALID_ARGUMENT, "IMAGE_UNDECODABLE"),
        (b"GIF89a" + b"0" * 100, grpc.StatusCode.INVALID_ARGUMENT, "UNSUPPORTED_MEDIA_TYPE"),
        (photo(published, 1)[:400], grpc.StatusCode.INVALID_ARGUMENT, "IMAGE_UNDECODABLE"),
        (wide.getvalue(), grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_PIXELS"),
        (b"\xff" * ((1 << 20) + 1), grpc.StatusCode.RESOURCE_EXHAUSTED, "BODY_TOO_LARGE"),
    ):
        for call, message in (
            (stub.Localize, pb.LocalizeRequest(image=data)),
            (stub.Describe, pb.DescribeRequest(image=data)),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                call(message)  # type: ignore[operator]
            assert (refused.value.code(), details(refused.value)["ErrorInfo"].reason) == (code, reason)


def test_a_message_over_the_limit_is_refused_by_grpc(stub: LocalizationServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        stub.Localize(pb.LocalizeRequest(image=b"\xff" * ((1 << 20) + (1 << 17))))
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], "descriptor_values has 1 numbers, the model's descriptors have 1280"),
        ([1.0] * 1280, "descriptor_values has length 35.78, not 1"),
        ([float("nan")] * 1280, "descriptor_values has length nan, not 1"),
    ],
)
def test_a_descriptor_that_is_none(stub: LocalizationServiceStub, values: list[float], message: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        stub.Search(pb.SearchRequest(descriptor_values=values))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details().startswith(message)


def test_a_deadline_that_cannot_be_met(stub: LocalizationServiceStub, published: PublishedPlaces) -> None:
    with pytest.raises(grpc.RpcError) as late:
        stub.Localize(pb.LocalizeRequest(image=photo(published, 1)), timeout=0.002)
    # Whoever notices first: the client's own clock, or the server, which refuses what it cannot answer in time.
    assert late.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)


def test_a_method_that_there_is_not(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary("/sightfix.v1.LocalizationService/Guess")(b"")
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_message_that_is_no_protobuf(channel: grpc.Channel, published: PublishedPlaces) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary("/sightfix.v1.LocalizationService/Localize")(b"\xff\xff\xff")
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert details(refused.value)["ErrorInfo"].reason == "MALFORMED_REQUEST"
    good = pb.LocalizeStreamRequest(frame=pb.Frame(frame_id=1, image=photo(published, 1))).SerializeToString()
    responses = channel.stream_stream("/sightfix.v1.LocalizationService/LocalizeStream")(iter([good, b"\xff\xff\xff"]))
    assert pb.LocalizeStreamResponse.FromString(next(responses)).answer.matches
    with pytest.raises(grpc.RpcError) as ended:
        next(responses)
    assert ended.value.code() == grpc.StatusCode.INVALID_ARGUMENT
