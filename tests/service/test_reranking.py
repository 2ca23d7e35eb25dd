"""A server that re-ranks: features in the decode threads, told in the answer, refused at the start without features."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image

import retrieval.verification.verifier
from index_builder.index_design import IndexDesign
from index_builder.update import UpdateSettings, build_index
from retrieval.describer import Describer
from retrieval.index.folder import current_version
from retrieval.verification.local_features import LocalFeatures
from service.answer import LocalizeAnswer
from service.configuration import check_settings
from service.grpc.messages import answer_message
from service.http.app import create_app
from service.serving.localization import LocalizationService
from service.settings import ServerSettings
from sightfix.client.grpc_stream import localize_answer
from tests.conftest import PublishedPlaces
from tests.retrieval.encoded import encode
from tests.textured import make_textured_places, seen_from_elsewhere, textured

JPEG = {"Content-Type": "image/jpeg"}


def publish(folder: Path, describer: Describer, *, local_features: bool = True) -> str:
    settings = UpdateSettings(design=IndexDesign(local_features=local_features))
    build_index(make_textured_places(folder, 6), describer, folder / "indexes", "places", settings)
    return current_version(folder / "indexes" / "places")


def settings(folder: Path) -> ServerSettings:
    return ServerSettings(indexes=folder / "indexes", watch_interval_s=3600, threads=1, rerank=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, describer: Describer) -> Path:
    folder = tmp_path_factory.mktemp("reranked")
    publish(folder, describer)
    return folder


@pytest.fixture(scope="module")
def http(folder: Path) -> Iterator[TestClient]:
    localization = LocalizationService(settings(folder))
    with TestClient(create_app(localization), raise_server_exceptions=False) as client:
        localization.live.wait_until_loaded(60.0)
        assert localization.live.readiness.state == "ready", localization.live.readiness.reason
        yield client


@pytest.fixture(scope="module")
def photo() -> bytes:
    return encode(Image.fromarray(seen_from_elsewhere(textured(3))), "JPEG")


def test_the_answer_says_that_it_was_re_ranked(http: TestClient, photo: bytes) -> None:
    response = http.post("/localize?top_k=6", content=photo, headers=JPEG)
    answer = LocalizeAnswer.model_validate_json(response.content)
    inliers = [match.inliers for match in answer.matches]
    assert sum(count is not None for count in inliers) == 4
    assert answer.timings_ms.rerank is not None
    assert "rerank;dur=" in response.headers["Server-Timing"]
    geo = http.post("/localize", content=photo, headers={**JPEG, "Accept": "application/geo+json"}).json()
    assert any("inliers" in feature["properties"] for feature in geo["features"])
    assert localize_answer(answer_message(answer)).matches == answer.matches
    assert localize_answer(answer_message(answer)).timings_ms == answer.timings_ms


def test_features_are_found_in_the_decode_threads(
    http: TestClient, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    decode = retrieval.verification.verifier.decode_features

    def recorded(*args, **kwargs) -> LocalFeatures:
        names.append(threading.current_thread().name)
        return decode(*args, **kwargs)

    monkeypatch.setattr(retrieval.verification.verifier, "decode_features", recorded)
    assert http.post("/localize", content=photo, headers=JPEG).status_code == 200
    assert [name.partition("_")[0] for name in names] == ["decode"]


def test_a_descriptor_alone_is_searched_for_as_ever(http: TestClient, photo: bytes) -> None:
    descriptor = http.post("/describe", content=photo, headers=JPEG).json()["descriptor"]
    answer = http.post("/search", json={"descriptor": descriptor, "top_k": 6}).json()
    assert len(answer["matches"]) == 6
    assert not any("inliers" in match for match in answer["matches"])
    assert "rerank" not in answer["timings_ms"]


def test_an_index_without_features_is_refused_at_the_start(published: PublishedPlaces) -> None:
    wanted = ServerSettings(indexes=published.indexes, threads=1, rerank=20)
    localization = LocalizationService(wanted)
    localization.start()
    localization.live.wait_until_loaded(60.0)
    assert localization.live.readiness.state == "failed"
    assert localization.live.failure is not None
    assert localization.live.failure.code == "no_local_features"
    assert "Index the photos again with --local-features" in localization.live.readiness.reason
    localization.stop()
    [finding] = [finding for finding in check_settings(wanted) if finding.what == "place index"]
    assert not finding.ok
    assert "holds no local features" in finding.detail


def test_the_configuration_is_checked(folder: Path) -> None:
    [finding] = [finding for finding in check_settings(settings(folder)) if finding.what == "place index"]
    assert finding.ok, finding.detail
    assert finding.detail.endswith("6 references, exact, the best 4 matches re-ranked")


def test_a_version_without_features_is_not_swapped_in(tmp_path: Path, describer: Describer) -> None:
    first = publish(tmp_path, describer)
    localization = LocalizationService(settings(tmp_path))
    localization.start()
    localization.live.wait_until_loaded(60.0)
    assert localization.live.readiness.state == "ready", localization.live.readiness.reason
    publish(tmp_path, describer, local_features=False)
    localization.live.look_for_new_version()
    assert localization.live.require().place_index.version == first
    second = publish(tmp_path, describer)
    localization.live.look_for_new_version()
    assert localization.live.require().place_index.version == second
    localization.stop()
