"""Nordland: frames of a train journey, placed by their number."""

from pathlib import Path

import numpy as np
import pytest

from retrieval.errors import ReferenceDataError
from retrieval.references import Reference
from retrieval.references.named_folders import NordlandFolder, NordlandOptions


def folder(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def read(root: Path, **options: object) -> list[Reference]:
    return list(NordlandFolder(root, NordlandOptions.model_validate(options)))


def plane(references: list[Reference]) -> np.ndarray:
    return np.array([reference.plane_m for reference in references])


@pytest.mark.parametrize("tolerance", [10, 1, 0])
def test_25_metres_hold_just_the_frames_that_count_as_one_place(tmp_path: Path, tolerance: int) -> None:
    folder(tmp_path, *(f"images-{frame:05d}.png" for frame in range(40)))
    references = read(tmp_path, tolerance=tolerance)
    metres = np.abs(plane(references)[:, None, 1] - plane(references)[None, :, 1])
    frames = np.abs(np.arange(40)[:, None] - np.arange(40)[None, :])
    np.testing.assert_array_equal(metres <= 25.0, frames <= tolerance)


def test_frames_have_no_position_and_a_season(tmp_path: Path) -> None:
    folder(tmp_path, "summer/images-00021.png")
    assert read(tmp_path) == [
        Reference(
            id="summer/images-00021.png",
            path=tmp_path / "summer" / "images-00021.png",
            position=None,
            plane_m=(0.0, 50.0),
            session="summer",
            metadata={"frame": "21"},
        )
    ]


def test_the_last_number_of_a_name_is_the_frame(tmp_path: Path) -> None:
    folder(tmp_path, "2013_spring_00042.jpg", "000007.png")
    assert [reference.metadata["frame"] for reference in read(tmp_path)] == ["7", "42"]


def test_dummy_coordinates_in_the_name(tmp_path: Path) -> None:
    # num_image 21 of download_nordland.py: north = 21 * 25 / 10.5, cut to one decimal.
    folder(tmp_path, "images/test/database/@0@00050.0@@@@@21@@@@@@@@.jpg")
    (reference,) = read(tmp_path)
    assert (reference.plane_m, reference.position) == ((0.0, 50.0), None)
    assert reference.metadata == {"frame": "21"}
    assert reference.session == "images/test/database"


def test_a_list_of_names_numbers_the_frames(tmp_path: Path) -> None:
    photos = folder(tmp_path / "photos", *(f"images-{frame:05d}.png" for frame in (1, 2, 50, 99)))
    (tmp_path / "clean.txt").write_text("images-00099.png\nimages-00001.png\n\nimages-00050.png\n")
    source = NordlandFolder(photos, NordlandOptions(names=str(tmp_path / "clean.txt")))
    assert [reference.metadata["frame"] for reference in source] == ["0", "1", "2"]
    assert [(photo.path.name, photo.reason) for photo in source.skipped] == [
        ("images-00002.png", "it is not in the list of names")
    ]


def test_a_list_of_names_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ReferenceDataError, match=r"clean\.txt: there is no such file\. Check the path\."):
        read(tmp_path, names=str(tmp_path / "clean.txt"))


def test_no_frame_numbers(tmp_path: Path) -> None:
    folder(tmp_path, "train.jpg")
    with pytest.raises(ReferenceDataError) as caught:
        read(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: no photo of 1 can be used: its name has no frame number (1). "
        "Give a folder of photos named by their frame, such as summer/images-00001.png."
    )
