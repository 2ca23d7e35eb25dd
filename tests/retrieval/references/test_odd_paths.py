"""Paths that lead nowhere or to what is no file: an error that says so or a photo left out, never a wait."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from retrieval.errors import ImageError, ReferenceDataError
from retrieval.images import read_image_bytes
from retrieval.references import open_references
from tests.retrieval.references.exif_photos import gps_tags, write_photo

LONG = "a" * 5000 + ".jpg"


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    """Opening a pipe that nobody writes to would wait for ever."""
    signal.alarm(60)
    yield
    signal.alarm(0)


def test_a_pipe_among_photos_is_left_out(tmp_path: Path) -> None:
    write_photo(tmp_path / "a.jpg", gps_tags(48.0, 11.0))
    os.mkfifo(tmp_path / "b.jpg")
    source = open_references(f"exif:{tmp_path}")
    assert [row.id for row in source] == ["a.jpg"]
    assert [(one.path.name, one.reason) for one in source.skipped] == [
        ("b.jpg", "it is not a file, but a pipe, a socket or a device")
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x\0.jpg", r"the photo cannot be read \(its path holds a NUL character\)"),
        (LONG, r"the photo cannot be read \(File name too long\)"),
        (".", r"the photo cannot be read \(Is a directory\)"),
    ],
    ids=["NUL", "long", "folder"],
)
def test_a_path_that_is_no_file_is_an_unreadable_photo(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(ImageError, match=text) as info:
        read_image_bytes(tmp_path / name)
    assert info.value.code == "image_unreadable"


def test_a_pipe_without_a_writer_is_an_empty_photo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert read_image_bytes(tmp_path / "pipe.jpg") == b""


def test_a_pipe_with_a_writer_is_read(tmp_path: Path) -> None:
    """As a shell gives it: sightfix localize <(...)."""
    reader, writer = os.pipe()
    os.write(writer, b"bytes of a photo")
    os.close(writer)
    assert read_image_bytes(Path(f"/dev/fd/{reader}")) == b"bytes of a photo"
    os.close(reader)


@pytest.mark.parametrize("name", ["x\0.jpg", LONG, "pipe.jpg"], ids=["NUL", "long", "pipe"])
def test_a_table_that_lists_such_a_path(tmp_path: Path, name: str) -> None:
    write_photo(tmp_path / "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    table = tmp_path / "refs.csv"
    table.write_text(f"path,lat,lon\na.jpg,48,11\n{name},48,11\n")
    with pytest.raises(ReferenceDataError, match="there is no photo"):
        list(open_references(f"csv:{table}"))
    source = open_references(f"csv:{table}?missing=skip")
    assert [row.id for row in source] == ["a.jpg"]
    assert len(source.skipped) == 1


@pytest.mark.parametrize("spec", [LONG, f"csv:{LONG}", f"exif:{LONG}", f"{LONG}?limit=3"])
def test_a_spec_too_long_for_a_path(spec: str) -> None:
    with pytest.raises(ReferenceDataError, match="this cannot be the path of a file or folder") as info:
        open_references(spec)
    assert len(str(info.value)) < 400
