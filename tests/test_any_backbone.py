"""Nets of timm, with random weights, go all the way: exported by name, adapted to a place, indexed, served."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from index_builder.update import build_index
from retrieval.bundle import open_bundle
from retrieval.bundle.adaptation import adapt_bundle
from retrieval.describer import Describer
from retrieval.images import read_image
from service.http.app import create_app
from service.serving.localization import LocalizationService
from service.settings import ServerSettings
from sightfix.cli import app
from tests.places import make_places

PHOTOS = 12
BIG = [
    ("resnet50", "224"),
    ("resnet50", "322"),
    ("deit_small_distilled_patch16_224", "224"),
    ("deit_small_distilled_patch16_224", "320"),
    ("vit_small_patch14_dinov2", "224"),
    ("vit_small_patch14_dinov2", "322"),
]
CASES = [
    ("test_resnet", "96"),
    ("test_vit", "64x96"),
    *(pytest.param(*case, marks=pytest.mark.nightly) for case in BIG),
]


@pytest.fixture(scope="module")
def any_net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("net") / "exported"
    options = ["--weights", "none", "--size", "96", "--out", str(folder)]
    assert CliRunner().invoke(app, ["export", "timm:test_resnet", *options]).exit_code == 0
    return folder


@pytest.mark.parametrize(("name", "size"), CASES)
def test_exported_adapted_indexed_and_served(name: str, size: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    exported = tmp_path / "exported"
    options = ["--weights", "none", "--size", size, "--out", str(exported)]
    result = CliRunner().invoke(app, ["export", f"timm:{name}", *options])
    assert result.exit_code == 0, result.output

    places = make_places(tmp_path, PHOTOS)
    base = open_bundle(exported)
    photos = np.stack([read_image(row.path, base.preprocessing) for row in places])
    adapted = adapt_bundle(base, [photos[:5], photos[5:]], tmp_path / "adapted", "made-up places")
    assert adapted.manifest.parity is not None
    assert adapted.manifest.parity.min_cosine >= 0.9999
    assert adapted.manifest.dense_outputs == base.manifest.dense_outputs

    describer = Describer(adapted, threads=1)
    together = describer.describe(photos)
    for count in (1, 2, 7):
        assert (describer.describe(photos[:count]) * together[:count]).sum(axis=1).min() >= 0.9999
    build_index(places, describer, tmp_path / "indexes", "places")

    settings = ServerSettings(indexes=tmp_path / "indexes", threads=1, metrics="off")
    localization = LocalizationService(settings)
    with TestClient(create_app(localization)) as client:
        localization.live.wait_until_loaded(60.0)
        for row in places.rows[::5]:
            answer = client.post("/localize", content=row.path.read_bytes(), headers={"Content-Type": "image/jpeg"})
            assert answer.status_code == 200, answer.text
            assert answer.json()["model"]["name"] == adapted.name
            assert answer.json()["matches"][0]["reference_id"] == row.id


@pytest.mark.parametrize("colour", ["noise", "black"])
@pytest.mark.parametrize("count", [2, 8, 24])
def test_photos_that_hardly_differ_to_a_net_are_no_reason_to_fail(
    any_net: Path, colour: str, count: int, tmp_path: Path
) -> None:
    photos = np.zeros((count, 96, 96, 3), np.uint8)
    if colour == "noise":
        photos = np.random.default_rng(0).integers(0, 256, photos.shape, np.uint8)
    adapted = adapt_bundle(open_bundle(any_net), [photos], tmp_path / "adapted", colour)
    described = Describer(adapted, threads=1).describe(photos)
    assert np.isfinite(described).all()
    np.testing.assert_allclose(np.linalg.norm(described, axis=1), 1.0, atol=1e-5)
