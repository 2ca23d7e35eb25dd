"""Where a job may read: below the source roots, whatever a client writes."""

from pathlib import Path

import pytest

from retrieval.errors import ReferenceDataError
from retrieval.references import open_references
from retrieval.references.spec import READERS
from service.jobs.sources import PATH_OPTIONS, ConfinedSource, confined_spec
from service.problems import RequestError
from tests.places import make_places
from tests.service.jobs.town import Town


@pytest.fixture
def roots(town: Town) -> list[Path]:
    """Two roots beside a folder that is none, which has the same content as one of them."""
    town.write_photos(2)
    secret = town.folder / "secret"
    make_places(secret, 2)
    (secret / "refs.csv").write_text("path,lat,lon\nphotos/0000.jpg,48,11\n")
    second = town.folder / "second"
    (second / "village").mkdir(parents=True)
    (town.roots / "to_secret").symlink_to(secret)
    (town.roots / "town" / "secret.csv").symlink_to(secret / "refs.csv")
    (town.roots / "to_second").symlink_to(second)
    (town.roots / "loop").symlink_to(town.roots / "loop")
    return [town.roots, second]


@pytest.mark.parametrize(
    ("spec", "opened"),
    [
        ("csv:town/refs.csv", "csv:{0}/town/refs.csv"),
        ("town", "{0}/town"),
        ("exif:town/photos", "exif:{0}/town/photos"),
        ("exif:village", "exif:{1}/village"),
        ("exif:to_second/village", "exif:{1}/village"),
        ("exif:./town/./photos", "exif:{0}/town/photos"),
        ("csv:town/refs.csv?every=2&root=town/photos", "csv:{0}/town/refs.csv?every=2&root={0}/town/photos"),
        ("csv:{0}/town/refs.csv", "csv:{0}/town/refs.csv"),
        ("exif:town?sessions=2026/*,a", "exif:{0}/town?sessions=2026/*,a"),
    ],
)
def test_sources_below_a_root_are_opened(roots: list[Path], spec: str, opened: str) -> None:
    assert confined_spec(spec.format(*roots), roots) == opened.format(*(root.resolve() for root in roots))


@pytest.mark.parametrize(
    "spec",
    [
        "csv:../secret/refs.csv",
        "csv:town/../../secret/refs.csv",
        "csv:town/../town/refs.csv",
        "exif:..",
        "..",
        "/",
        "/etc",
        "exif:/etc",
        "csv:/etc/passwd",
        "csv:{secret}/refs.csv",
        "exif:{secret}/nothing",
        "exif:{roots}x",
        "exif:to_secret/photos",
        "to_secret",
        "csv:town/secret.csv",
        "http://example.org/refs.csv",
        "https://example.org/",
        "csv:http://example.org/refs.csv",
        "exif:file:///etc",
        "file:///etc/passwd",
        "s3://bucket/photos",
        "exif:loop",
        "csv:town/refs.csv?root=../secret",
        "csv:town/refs.csv?root=/etc",
        "csv:town/refs.csv?root=%2Fetc",
        "csv:town/refs.csv?root=%2e%2e/secret",
        "csv:town/refs.csv?root=to_secret",
        "msls:town?cities=../../secret",
        "msls:town?cities=a,%2e%2e%2fsecret",
        "gsv-cities:town?cities=/etc",
        "msls:town?keys=/etc/passwd",
        "nordland:town?names=../secret/refs.csv",
    ],
)
def test_what_leads_out_of_the_roots_is_refused(roots: list[Path], town: Town, spec: str) -> None:
    text = spec.format(secret=town.folder / "secret", roots=town.roots)
    with pytest.raises(RequestError) as info:
        confined_spec(text, roots)
    assert info.value.code == "source_not_allowed"
    assert "secret/refs" not in str(info.value).replace(text, "")


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ("exif:nothing", "source_not_found"),
        ("exif:town/photos/x.jpg/y", "source_not_found"),
        ("exif:{root}/nothing", "source_not_found"),
        ("exif:", "validation_error"),
        ("?every=2", "validation_error"),
        ("ftp:town", "validation_error"),
        ("exif:" + "a" * 300, "source_not_allowed"),
        ("exif:a\0b", "source_not_allowed"),
    ],
)
def test_what_cannot_be_opened_is_told(roots: list[Path], spec: str, code: str) -> None:
    with pytest.raises(RequestError) as info:
        confined_spec(spec.format(root=roots[0]), roots)
    assert info.value.code == code


def test_without_roots_nothing_is_opened() -> None:
    with pytest.raises(RequestError, match="Start it with at least one source root") as info:
        confined_spec("exif:town", [])
    assert info.value.code == "jobs_disabled"


def test_every_option_of_every_reader_is_known_to_be_a_path_or_not() -> None:
    """A new option that names a file must be added to PATH_OPTIONS."""
    known = {"sessions", "bbox", "every", "limit", "missing", "zone", "cities", "split", "part", "subtask", "tolerance"}
    known |= {"path", "lat", "lon", "id", "heading", "altitude", "captured_at", "session"}
    options = {name for reader in READERS.values() for name in reader.options.model_fields}
    assert options - known == PATH_OPTIONS


@pytest.mark.parametrize(
    "row", ["../../secret/photos/0000.jpg", "{secret}/photos/0000.jpg", "photos/link.jpg", "linked/0000.jpg"]
)
def test_a_table_may_not_list_photos_outside(roots: list[Path], town: Town, row: str) -> None:
    secret = town.folder / "secret"
    (town.roots / "town/photos/link.jpg").symlink_to(secret / "photos/0000.jpg")
    (town.roots / "town/linked").symlink_to(secret / "photos")
    (town.roots / "town" / "refs.csv").write_text(f"path,lat,lon\n{row.format(secret=secret)},48,11\n")
    source = ConfinedSource(open_references(confined_spec("csv:town/refs.csv", roots)), roots, "csv:town/refs.csv")
    with pytest.raises(ReferenceDataError, match="this photo lies outside the source roots") as info:
        list(source)
    assert info.value.code == "source_not_allowed"


def test_a_link_from_root_to_root_is_inside(roots: list[Path], town: Town) -> None:
    make_places(roots[1], 1)
    (town.roots / "town" / "other.jpg").symlink_to(roots[1] / "photos/0000.jpg")
    (town.roots / "town" / "refs.csv").write_text("path,lat,lon\nother.jpg,48,11\nphotos/0001.jpg,48,11.1\n")
    source = ConfinedSource(open_references(confined_spec("csv:town/refs.csv", roots)), roots, "csv:town/refs.csv")
    assert [reference.id for reference in source] == ["other.jpg", "photos/0001.jpg"]
    assert (len(source), source.spec) == (2, "csv:town/refs.csv")
