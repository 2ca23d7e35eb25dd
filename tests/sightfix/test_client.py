"""The Python client against a real server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from retrieval.errors import ImageError, ServerError
from retrieval.geo import GeoPrior
from sightfix.client import ProblemError, SightfixClient
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


def test_the_server_says_when_it_is_ready(client: SightfixClient) -> None:
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


def test_a_server_that_is_not_there_is_a_clear_error(published: PublishedPlaces) -> None:
    with SightfixClient("http://127.0.0.1:9") as nobody, pytest.raises(ServerError) as error:
        nobody.localize(published.places.rows[0].path)
    assert str(error.value) == (
        "http://127.0.0.1:9: the server cannot be reached ([Errno 111] Connection refused). "
        "Check the address, and that the server runs: sightfix serve."
    )
