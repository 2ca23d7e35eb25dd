"""Folders of photos that carry their position."""

import csv
import os
import re
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrieval.errors import ReferenceDataError
from retrieval.geo import Position, haversine_m
from retrieval.references import Reference
from retrieval.references.exif import ExifFolder
from tests.retrieval.references.exif_photos import gps_tags, write_photo

HERE = gps_tags(48.5, 11.25)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".webp", ".heic"])
def test_every_format(tmp_path: Path, suffix: str) -> None:
    write_photo(tmp_path / f"a{suffix}", HERE, {"DateTimeOriginal": "2026:05:31 14:05:09"})
    (reference,) = ExifFolder(tmp_path)
    assert reference.id == f"a{suffix}"
    assert reference.path == tmp_path / f"a{suffix}"
    assert reference.position == Position(48.5, 11.25)
    assert reference.captured_at == datetime(2026, 5, 31, 14, 5, 9)
    assert reference.session is None


def test_exif_behind_the_pixels_of_a_png(tmp_path: Path) -> None:
    path = write_photo(tmp_path / "a.png", HERE)
    data = path.read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    last = data.index(b"IEND") - 4
    assert end < last
    path.write_bytes(data[:start] + data[end:last] + data[start:end] + data[last:])
    (reference,) = ExifFolder(tmp_path)
    assert reference.position == Position(48.5, 11.25)


def test_a_webp_with_a_chunk_of_odd_length_before_its_exif(tmp_path: Path) -> None:
    path = write_photo(tmp_path / "a.webp", HERE)
    data = path.read_bytes()
    start = data.index(b"EXIF")
    path.write_bytes(data[:start] + b"TEST" + (3).to_bytes(4, "little") + b"abc\0" + data[start:])
    (reference,) = ExifFolder(tmp_path)
    assert reference.position == Position(48.5, 11.25)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".heic"])
def test_pixels_are_never_decoded(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photo(tmp_path / f"a{suffix}", HERE, size=64)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(Image.Image, "load", refuse)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    monkeypatch.setattr("pillow_heif.HeifImage.data", property(refuse))
    assert len(list(ExifFolder(tmp_path))) == 1


def test_subfolders_are_sessions_and_the_order_is_that_of_names(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "b/10.jpg", "a/evening/1.jpg", "z.jpg", "a/9.jpg"):
        write_photo(tmp_path / name, HERE)
    source = ExifFolder(tmp_path)
    found = [(reference.id, reference.session) for reference in source]
    assert found == [
        ("z.jpg", None),
        ("a/9.jpg", "a"),
        ("a/evening/1.jpg", "a/evening"),
        ("b/10.jpg", "b"),
        ("b/2.jpg", "b"),
    ]
    assert len(source) == 5
    assert [reference.id for reference in source] == [name for name, _ in found]


def test_photos_left_out_are_named_with_the_reason(tmp_path: Path) -> None:
    write_photo(tmp_path / "good.jpg", HERE)
    write_photo(tmp_path / "nowhere.jpg")
    write_photo(tmp_path / "zero.jpg", gps_tags(0, 0))
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_bytes(b"not a photo, whatever its name says")
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe1\x00")
    Image.new("RGB", (4, 4)).save(tmp_path / "scan.tif")
    (tmp_path / "notes.txt").write_text("no photo")
    (tmp_path / "._good.jpg").write_bytes(b"the shadow that macOS writes")
    source = ExifFolder(tmp_path)
    assert [reference.id for reference in source] == ["good.jpg"]
    reasons = {photo.path.name: photo.reason for photo in source.skipped}
    assert reasons.pop("cut.jpg").startswith("its header is damaged")
    assert reasons == {
        "nowhere.jpg": "no GPS position in its EXIF",
        "zero.jpg": "its GPS position is 0, 0, which cameras write when they have none",
        "empty.jpg": "the image is empty (0 bytes)",
        "text.jpg": "the image is of an unknown format, which is not accepted",
        "scan.tif": ".tif photos are not read; convert it to JPEG, PNG, WebP or HEIC",
    }
    list(source)
    assert len(source.skipped) == 6, "a second pass starts anew"


def test_a_damaged_exif_block_costs_the_photo_only(tmp_path: Path) -> None:
    path = write_photo(tmp_path / "a.png", HERE)
    data = bytearray(path.read_bytes())
    start = data.index(b"eXIf") + 4
    data[start : start + 8] = b"MM\x00\x2a\xff\xff\xff\xf0"  # its first directory lies far outside
    path.write_bytes(data)
    write_photo(tmp_path / "b.jpg", HERE)
    source = ExifFolder(tmp_path)
    assert [reference.id for reference in source] == ["b.jpg"]
    (left_out,) = source.skipped
    assert left_out.path.name == "a.png"
    assert left_out.reason == "no GPS position in its EXIF (its EXIF is damaged)"


def test_a_link_back_to_the_folder_is_not_walked_twice(tmp_path: Path) -> None:
    write_photo(tmp_path / "a" / "1.jpg", HERE)
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert [reference.id for reference in ExifFolder(tmp_path)] == ["a/1.jpg"]


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_a_name_that_is_not_utf8_is_left_out(tmp_path: Path) -> None:
    write_photo(tmp_path / "a.jpg", HERE)
    try:
        (tmp_path / "a.jpg").rename(tmp_path / os.fsdecode(b"\xe4.jpg"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    write_photo(tmp_path / "b.jpg", HERE)
    source = ExifFolder(tmp_path)
    assert [reference.id for reference in source] == ["b.jpg"]
    assert [photo.reason for photo in source.skipped] == ["its name is not UTF-8"]


def test_no_such_folder(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    with pytest.raises(ReferenceDataError, match=re.escape(f"{folder}: there is no such folder. Check the path.")):
        ExifFolder(folder)
    folder.write_text("")
    with pytest.raises(ReferenceDataError, match=re.escape(f"{folder}: this is a file, not a folder. Check the path.")):
        ExifFolder(folder)


def test_a_folder_without_photos(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ReferenceDataError) as caught:
        list(ExifFolder(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path}: there is no photo in this folder. "
        "Give a folder of JPEG, PNG, WebP or HEIC photos; subfolders are searched too."
    )


def test_a_folder_without_any_position_is_an_error_with_counts_and_a_remedy(tmp_path: Path) -> None:
    for number in range(3):
        write_photo(tmp_path / f"{number}.jpg")
    write_photo(tmp_path / "zero.jpg", gps_tags(0, 0))
    with pytest.raises(ReferenceDataError) as caught:
        list(ExifFolder(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path}: no photo of 4 can be used: no GPS position in its EXIF (3); "
        "its GPS position is 0, 0, which cameras write when they have none (1). "
        "Take photos with location switched on in the camera, copy them without an app that removes it, "
        "or list their positions in a CSV with the columns path, lat, lon."
    )


def test_the_spec_opens_it_again(tmp_path: Path) -> None:
    assert ExifFolder(tmp_path).spec == f"exif:{tmp_path}"


def truth(folder: Path) -> dict[str, tuple[float, float]]:
    with (folder / "truth.csv").open(newline="") as file:
        return {row["path"]: (float(row["lat"]), float(row["lon"])) for row in csv.DictReader(file)}


def metres_off(references: list[Reference], expected: dict[str, tuple[float, float]]) -> np.ndarray:
    found = np.array([(r.position.lat, r.position.lon) for r in references if r.position])
    wanted = np.array([expected[reference.id] for reference in references])
    return haversine_m(*found.T, *wanted.T)


@pytest.mark.photos
@pytest.mark.parametrize(("name", "count"), [("lund_exif", 29), ("berlin_exif", 3)])
def test_real_phone_photos(photos_root: Path, name: str, count: int) -> None:
    source = ExifFolder(photos_root / name)
    references = list(source)
    expected = truth(photos_root / name)
    assert [reference.id for reference in references] == sorted(expected)
    assert (metres_off(references, expected) < 1.0).sum() == count
    assert all(reference.altitude_m is not None for reference in references)
    assert source.skipped == []


def test_a_pipe_with_the_name_of_a_photo_is_left_out(tmp_path: Path) -> None:
    """Whoever reads it waits for as long as somebody holds its other end and writes nothing."""
    write_photo(tmp_path / "a.jpg", HERE)
    os.mkfifo(tmp_path / "b.jpg")
    writer = os.open(tmp_path / "b.jpg", os.O_RDWR)
    try:
        folder = ExifFolder(tmp_path)
        assert [reference.id for reference in folder] == ["a.jpg"]
        assert [(one.path.name, one.reason) for one in folder.skipped] == [
            ("b.jpg", "it is not a file, but a pipe, a socket or a device")
        ]
    finally:
        os.close(writer)
