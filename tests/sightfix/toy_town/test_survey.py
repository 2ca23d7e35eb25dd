"""A written survey: exact positions in CSV and EXIF, finished once, used again."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrieval.errors import StorageError
from retrieval.geo import haversine_m
from retrieval.references import open_references
from sightfix.toy_town import ToyTown, photographs, plan_queries, plan_references, write_survey

SIZE = (96, 72)


@pytest.fixture(scope="module")
def town() -> ToyTown:
    return ToyTown(seed=0, columns=1, rows=1)


@pytest.fixture(scope="module")
def folder(town: ToyTown, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("survey")
    write_survey(town, folder, references=24, queries=6, size=SIZE)
    return folder


def test_the_csv_holds_the_planned_positions_exactly(town: ToyTown, folder: Path) -> None:
    planned = {photo.path: photo for photo in plan_references(town, 24)}
    rows = list(open_references(f"csv:{folder / 'references.csv'}"))
    assert len(rows) == len(planned) >= 24
    for row in rows:
        photo = planned[row.id]
        assert row.position is not None
        assert row.position.lat == pytest.approx(photo.position.lat, abs=1e-8)
        assert row.position.lon == pytest.approx(photo.position.lon, abs=1e-8)
        assert row.heading_deg == pytest.approx(photo.camera.heading_deg, abs=0.01)
        assert row.session == photo.session
        assert row.captured_at == photo.captured_at


def test_exif_says_the_same_as_the_csv(folder: Path) -> None:
    by_csv = {Path(row.id).name: row for row in open_references(f"csv:{folder / 'queries.csv'}")}
    by_exif = list(open_references(f"exif:{folder / 'queries'}"))
    assert len(by_exif) == len(by_csv) == 6
    for row in by_exif:
        same = by_csv[row.id]
        assert row.position is not None
        assert same.position is not None
        assert haversine_m(row.position.lat, row.position.lon, same.position.lat, same.position.lon) < 0.1
        assert row.heading_deg == pytest.approx(same.heading_deg, abs=0.01)
        assert row.captured_at == same.captured_at


def test_a_finished_survey_is_used_again_and_another_size_is_drawn_anew(town: ToyTown, folder: Path) -> None:
    before = (folder / "references" / "00000.jpg").stat().st_mtime_ns
    drawn: list[int] = []
    write_survey(town, folder, references=24, queries=6, size=SIZE, on_progress=drawn.append)
    assert drawn == []
    assert (folder / "references" / "00000.jpg").stat().st_mtime_ns == before
    write_survey(town, folder, references=24, queries=7, size=SIZE, on_progress=drawn.append)
    assert sum(drawn) == len(plan_references(town, 24)) + 7
    write_survey(town, folder, references=24, queries=6, size=SIZE)


def test_an_interrupted_survey_is_not_taken_for_a_finished_one(town: ToyTown, tmp_path: Path) -> None:
    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_survey(town, tmp_path, references=24, queries=6, size=SIZE, on_progress=stop)
    drawn: list[int] = []
    write_survey(town, tmp_path, references=24, queries=6, size=SIZE, on_progress=drawn.append)
    assert sum(drawn) == len(plan_references(town, 24)) + 6


def test_photos_without_files_are_the_written_ones_before_compression(town: ToyTown, folder: Path) -> None:
    for photo, image in photographs(town, plan_queries(town, 3), SIZE):
        written = np.asarray(Image.open(folder / photo.path))
        assert image.shape == (72, 96, 3)
        assert np.abs(written.astype(int) - image).mean() < 8


def test_a_folder_that_cannot_be_written_is_a_clear_error(town: ToyTown, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StorageError) as error:
        write_survey(town, tmp_path / "taken", references=24, queries=6, size=SIZE)
    assert str(error.value).startswith(f"{tmp_path / 'taken'}: writing failed (")
