"""Fixtures that every floor's tests share."""

import os

# Several pytest workers share the cores: with as many threads each they wait for one another more than they work.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests import ONNX Runtime by themselves, too; see `load_onnxruntime`.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from index_builder.update import build_index
from retrieval.bundle import Bundle, open_bundle
from retrieval.describer import Describer
from tests.hypothesis_profiles import load_profile
from tests.milvus_lite import poll_often
from tests.places import Places, make_places
from tests.remembering_describer import RememberingDescriber
from tests.running_server import RunningServer, running_server

load_profile()

PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def photos_root() -> Path:
    """The folder of real photo sets beside the checkout; missing is a failure in CI and a skip elsewhere."""
    if not (PHOTOS / "README.md").is_file():
        message = "the real photo sets are not beside the checkout (../shared/data)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return PHOTOS


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    """The bundle that sightfix ships."""
    return open_bundle()


@pytest.fixture(scope="session")
def describer(bundle: Bundle) -> Describer:
    """A describer of the shipped bundle, which describes each image once."""
    return RememberingDescriber(bundle)


@dataclass(frozen=True)
class PublishedPlaces:
    """Twelve photos and the index made of them."""

    places: Places
    indexes: Path
    name: str


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory, describer: Describer) -> PublishedPlaces:
    """An index of twelve made-up places, shared by tests that only read it."""
    folder = tmp_path_factory.mktemp("published")
    places = make_places(folder, 12)
    build_index(places, describer, folder / "indexes", "places")
    return PublishedPlaces(places, folder / "indexes", "places")


@pytest.fixture(scope="session")
def milvus_polled_often() -> None:
    """What milvus-lite has built is noticed at once."""
    poll_often()


@pytest.fixture(scope="session")
def server(published: PublishedPlaces, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A real server process with HTTP and gRPC and the default limits that serves the twelve places."""
    log = tmp_path_factory.mktemp("server") / "log"
    with running_server(log, ["--indexes", str(published.indexes), "--grpc-port", "0"]) as running:
        running.wait_until_ready()
        yield running
