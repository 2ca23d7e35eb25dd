"""From real photos to a fix over HTTP: phone photos with EXIF, and a campus from its CSV."""

import csv
from pathlib import Path

import httpx
import numpy as np
import pytest

from benchmarks.campus import PROTOCOLS, describe_campus
from index_builder.update import build_index
from retrieval.describer import Describer
from retrieval.geo import haversine_m
from retrieval.index.place_index import PlaceIndex
from retrieval.references import open_references
from service.answer import LocalizeAnswer
from tests.running_server import forked_server

JPEG = {"Content-Type": "image/jpeg"}


@pytest.mark.photos
@pytest.mark.parametrize(
    ("name", "count"), [("berlin_exif", 3), pytest.param("lund_exif", 29, marks=pytest.mark.nightly)]
)
def test_a_folder_of_phone_photos_answers_over_http_with_the_photo_itself_first(
    photos_root: Path, describer: Describer, tmp_path: Path, name: str, count: int
) -> None:
    with (photos_root / name / "truth.csv").open() as file:
        truth = {Path(row["path"]).name: (float(row["lat"]), float(row["lon"])) for row in csv.DictReader(file)}
    source = open_references(f"exif:{photos_root / name / 'images'}")
    built = build_index(source, describer, tmp_path / "indexes", name)
    index = PlaceIndex.open(built.folder)
    references = index.references(np.arange(index.count))
    errors = [
        float(haversine_m(row.position.lat, row.position.lon, *truth[row.id])) for row in references if row.position
    ]
    assert len(errors) == len(truth) == count
    assert max(errors) < 1.0
    with forked_server(tmp_path / "log", ["--indexes", str(tmp_path / "indexes")]) as server:
        server.wait_until_ready()
        for photo in sorted(truth):
            data = (photos_root / name / "images" / photo).read_bytes()
            response = httpx.post(f"{server.url}/localize", content=data, headers=JPEG)
            answer = LocalizeAnswer.model_validate_json(response.content)
            assert answer.matches[0].reference_id == photo
            assert answer.fix is not None
            assert haversine_m(answer.fix.lat, answer.fix.lon, *truth[photo]) < 25.0


@pytest.mark.nightly
@pytest.mark.photos
def test_the_default_bundle_recognises_the_campus_as_promised(photos_root: Path, describer: Describer) -> None:
    campus = describe_campus(describer, photos_root)
    floors = {"cross-phone": 0.46, "day-night": 0.42}
    for protocol in PROTOCOLS:
        at_one = campus.evaluate(protocol).recall[0].at[0]
        assert at_one.recall.value is not None
        assert at_one.recall.value >= floors[protocol]
        assert at_one.chance == pytest.approx(0.084, abs=0.002)
