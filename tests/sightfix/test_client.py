"""The Python clients against a real server; what both do is tried with both."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from PIL import Image

from retrieval.errors import ImageError, ParameterError, ServerError
from retrieval.geo import GeoPrior
from retrieval.index.folder import current_version
from service.api_keys import make_key
from sightfix.client import (
    AsyncSightfixClient,
    Displacement,
    ProblemError,
    RetryPolicy,
    SightfixClient,
    TrackParameters,
)
from tests.conftest import PublishedPlaces
from tests.running_server import RunningServer, running_server


@pytest.fixture(scope="module")
def server(published: PublishedPlaces, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    log = tmp_path_factory.mktemp("client") / "log"
    with running_server(log, ["--indexes", str(published.indexes)]) as running:
        running.wait_until_ready()
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[SightfixClient]:
    with SightfixClient(server.url) as opened:
        yield opened


Ask = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest, server: RunningServer) -> Ask:
    """`ask(method, *arguments)` of either client."""

    def of_sync(method: str, *arguments: Any, **keywords: Any) -> Any:
        with SightfixClient(server.url) as client:
            return getattr(client, method)(*arguments, **keywords)

    def of_async(method: str, *arguments: Any, **keywords: Any) -> Any:
        async def one() -> Any:
            async with AsyncSightfixClient(server.url) as client:
                return await getattr(client, method)(*arguments, **keywords)

        return asyncio.run(one())

    return of_sync if request.param == "sync" else of_async


def test_every_kind_of_photo(ask: Ask, published: PublishedPlaces) -> None:
    path = published.places.rows[7].path
    with Image.open(path) as image:
        image.load()
    photos = [path, path.read_bytes(), np.asarray(image), image, image.convert("RGBA")]
    answers = [ask("localize", photo, top_k=3) for photo in photos]
    assert {answer.matches[0].reference_id for answer in answers} == {"photos/0007.jpg"}
    assert {round(answer.matches[0].score, 4) for answer in answers} == {1.0}


def test_a_pillow_image_is_turned_as_its_file_would_be(ask: Ask, published: PublishedPlaces, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(published.places.rows[7].path) as image:
        image.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        answer = ask("localize", turned)
    assert (answer.matches[0].reference_id, round(answer.matches[0].score, 4)) == ("photos/0007.jpg", 1.0)


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), "u1")]
)
def test_an_array_that_is_no_photo(ask: Ask, array: np.ndarray) -> None:
    with pytest.raises(ParameterError, match=r"not \(H, W, 3\) uint8"):
        ask("localize", array)


def test_a_batch(ask: Ask, published: PublishedPlaces) -> None:
    photos = [published.places.rows[2].path, b"\xff\xd8\xff broken", published.places.rows[5].path]
    items = ask("localize_batch", photos, top_k=1, geo_prior=GeoPrior(48.0, 11.0, 5000.0), min_score=0.1)
    assert [item.status for item in items] == [200, 422, 200]
    assert [item.answer.matches[0].reference_id for item in items if item.answer] == [
        "photos/0002.jpg",
        "photos/0005.jpg",
    ]
    assert items[1].problem.code == "image_undecodable"
    assert ask("localize_batch", []) == []


def test_describe_and_search(ask: Ask, published: PublishedPlaces) -> None:
    described = ask("describe", published.places.rows[4].path)
    assert (described.descriptor.shape, described.descriptor.dtype) == ((1280,), np.float32)
    prior = GeoPrior(48.0, 11.0, 5000.0)
    found = ask("search", described.descriptor, top_k=2, geo_prior=prior, min_score=0.5)
    assert found.matches[0].reference_id == "photos/0004.jpg"
    assert found.model == described.model
    assert ask("search", described.descriptor, fingerprint=described.model.fingerprint).model == described.model
    with pytest.raises(ProblemError) as other:
        ask("search", described.descriptor, fingerprint="0" * 64)
    assert other.value.code == "model_mismatch"


def test_a_track(ask: Ask, published: PublishedPlaces) -> None:
    opened = ask("open_track", TrackParameters(speed_mps=20.0, max_speed_mps=60.0))
    assert opened.idle_s > 0.0
    for number in range(3):
        answer = ask(
            "localize_frame",
            opened.id,
            published.places.rows[number].path,
            captured_at_s=100.0 + 5.0 * number,
            odometry=Displacement(100.0, 0.0),
            top_k=2,
        )
    assert answer.matches[0].reference_id == "photos/0002.jpg"
    assert (answer.track.frames, answer.track.matched, len(answer.matches)) == (3, True, 2)
    with pytest.raises(ProblemError) as late:
        ask("localize_frame", opened.id, published.places.rows[0].path, captured_at_s=50.0)
    assert late.value.code == "frame_out_of_order"
    ask("close_track", opened.id)
    with pytest.raises(ProblemError) as closed:
        ask("close_track", opened.id)
    assert closed.value.code == "track_not_found"


def test_what_is_served(ask: Ask, published: PublishedPlaces) -> None:
    info = ask("info")
    assert (info.index.name, info.index.size) == ("places", 12)
    assert info.bounds.lat_min == 48.0
    (listing,) = ask("indexes")
    assert listing.served == current_version(published.indexes / "places") == info.index.version
    assert ask("is_ready") is True
    assert ask("wait_until_ready", 5.0) is None


def test_lane_and_deadline_reach_the_server(ask: Ask, published: PublishedPlaces) -> None:
    path = published.places.rows[1].path
    assert ask("localize", path, lane="bulk", deadline_ms=20_000).matches[0].reference_id == "photos/0001.jpg"
    with pytest.raises(ProblemError) as refusal:
        ask("localize", path, lane="express")
    assert refusal.value.code == "validation_error"
    # More than the server takes: the client waits that long, and sends the longest deadline that the server takes.
    assert ask("localize", path, deadline_ms=700_000).matches[0].reference_id == "photos/0001.jpg"
    with pytest.raises(ParameterError, match="not above 0"):
        ask("localize", path, deadline_ms=0)


def test_keys_and_certificates(published: PublishedPlaces, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name in ("server", "client"):
        issued = authority.issue_cert("127.0.0.1")
        issued.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
    key = make_key(tmp_path / "keys.toml", "robot-7", ("localize",))
    arguments = ["--indexes", str(published.indexes), "--api-keys", str(tmp_path / "keys.toml")]
    arguments += ["--tls-cert", str(tmp_path / "server.pem"), "--tls-key", str(tmp_path / "server.key")]
    ca, pair = tmp_path / "ca.pem", (tmp_path / "client.pem", tmp_path / "client.key")
    with running_server(tmp_path / "log", [*arguments, "--tls-client-ca", str(ca)]) as running:
        with SightfixClient(running.url, api_key=key, verify=ca, cert=pair) as client:
            client.wait_until_ready(60.0)
            answer = client.localize(published.places.rows[3].path)
            assert answer.matches[0].reference_id == "photos/0003.jpg"
        with SightfixClient(running.url, verify=ca, cert=pair) as client, pytest.raises(ProblemError) as refusal:
            client.localize(published.places.rows[3].path)
        assert (refusal.value.status, refusal.value.code) == (401, "unauthenticated")
        with SightfixClient(running.url, cert=pair) as client, pytest.raises(ServerError) as untrusted:
            client.info()
        assert "the server's certificate is not trusted" in str(untrusted.value)
        with SightfixClient(running.url, api_key=key, verify=False, cert=pair) as client:
            assert client.info().index.name == "places"
        with (
            SightfixClient(running.url, verify=ca, retry=RetryPolicy(1)) as client,
            pytest.raises(ServerError, match="wants a certificate of yours"),
        ):
            client.info()
    with pytest.raises(ParameterError, match="certificates cannot be read"):
        SightfixClient("https://127.0.0.1", verify=tmp_path / "none.pem")


def test_a_file_and_its_bytes_get_the_same_answer(client: SightfixClient, published: PublishedPlaces) -> None:
    path = published.places.rows[7].path
    by_path, by_bytes = client.localize(path, top_k=3), client.localize(path.read_bytes(), top_k=3)
    assert [match.reference_id for match in by_path.matches] == [match.reference_id for match in by_bytes.matches]
    assert by_path.matches[0].reference_id == "photos/0007.jpg"
    assert len(by_path.matches) == 3


def test_parameters_reach_the_server(client: SightfixClient, published: PublishedPlaces) -> None:
    path = published.places.rows[7].path
    within = client.localize(path, geo_prior=GeoPrior(48.0, 11.0, 150.0))
    assert {match.reference_id for match in within.matches} == {"photos/0000.jpg", "photos/0001.jpg"}
    strict = client.localize(path, min_score=0.99)
    assert [match.reference_id for match in strict.matches] == ["photos/0007.jpg"]


def test_readiness(client: SightfixClient) -> None:
    assert client.is_ready() is True


def test_a_refusal_is_a_problem_with_its_code(client: SightfixClient, published: PublishedPlaces) -> None:
    with pytest.raises(ProblemError) as refusal:
        client.localize(published.places.rows[0].path, top_k=1000)
    assert (refusal.value.status, refusal.value.code) == (422, "validation_error")
    assert "/top_k: Input should be less than or equal to 100" in str(refusal.value)
    assert refusal.value.problem is not None
    assert refusal.value.retry_after_s is None


def test_a_file_that_is_no_photo_is_not_sent(client: SightfixClient, tmp_path: Path) -> None:
    letter = tmp_path / "letter.txt"
    letter.write_text("dear robot")
    with pytest.raises(ImageError) as error:
        client.localize(letter)
    assert str(error.value) == (
        f"{letter}: the image is of an unknown format, which is not accepted. Send JPEG, PNG, WebP or HEIC."
    )


def test_a_missing_file_is_named(client: SightfixClient, tmp_path: Path) -> None:
    with pytest.raises(ImageError) as error:
        client.localize(tmp_path / "none.jpg")
    assert str(error.value) == (
        f"{tmp_path / 'none.jpg'}: the photo cannot be read (No such file or directory). "
        "Check the path and its permissions."
    )


def test_an_unreachable_server_is_a_clear_error(published: PublishedPlaces) -> None:
    with SightfixClient("http://127.0.0.1:9") as client, pytest.raises(ServerError) as error:
        client.localize(published.places.rows[0].path)
    assert str(error.value) == (
        "http://127.0.0.1:9: the server cannot be reached (Connection refused). "
        "Check the address, and that the server runs: sightfix serve."
    )


def test_importing_the_client_loads_no_readers() -> None:
    """Neither the package nor its names need what reads references, searches indexes or serves."""
    code = "import sys, sightfix.client\nfrom sightfix.client import *\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "sightfix.client.generated.synchronous" in loaded
    for module in ("pyarrow", "pyproj", "faiss", "onnxruntime", "fastapi", "grpc", "retrieval.references"):
        assert module not in loaded
