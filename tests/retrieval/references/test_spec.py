"""One string that opens any reference database."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval.errors import ParameterError, ReferenceDataError
from retrieval.references import READERS, ReferenceSource, open_references
from tests.retrieval.references.exif_photos import gps_tags, write_photo


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def complaint(spec: str) -> str:
    with pytest.raises((ParameterError, ReferenceDataError)) as caught:
        open_references(spec)
    return str(caught.value)


def test_the_readers() -> None:
    assert list(READERS) == ["exif", "csv", "parquet", "utm", "gsv-cities", "msls", "nordland"]


def test_prefix_and_options(here: Path) -> None:
    touch("photos/1.jpg")
    Path("refs.csv").write_text("file,latitude,lng,tour\n1.jpg,1,2,day 1\n")
    spec = "csv:refs.csv?root=photos&session=tour&sessions=day*&limit=5"
    source = open_references(spec)
    assert isinstance(source, ReferenceSource)
    assert source.spec == spec
    assert source.root == Path("photos")
    assert [(r.id, r.session) for r in source] == [("1.jpg", "day 1")]
    assert list(open_references(source.spec)) == list(source)


def test_percent_signs_and_plus_signs_in_values(here: Path) -> None:
    touch("1.jpg")
    Path("refs.csv").write_text("path,lat,lon,session\n1.jpg,1,2,a&b+c=50%\n")
    (reference,) = open_references("csv:refs.csv?sessions=a%26b+c=50%25")
    assert reference.session == "a&b+c=50%"


def test_suffixes(here: Path) -> None:
    touch("1.jpg")
    text = "path\tlat\tlon\n1.jpg\t1\t2\n"
    for name in ("refs.csv", "refs.tsv", "refs.txt", "REFS.CSV"):
        Path(name).write_text(text)
        assert open_references(name).spec == f"csv:{name}"
    pq.write_table(pa.table({"path": ["1.jpg"], "lat": [1.0], "lon": [2.0]}), "refs.parquet")
    assert open_references("refs.parquet?limit=1").spec == "parquet:refs.parquet?limit=1"


@pytest.mark.parametrize(
    ("files", "spec"),
    [
        (["a.jpg", "b/c.jpg"], "exif:photos"),
        (["train/@1@2@.jpg", "train/z.jpg"], "utm:photos"),
        (["Dataframes/London.csv", "Images/London/a.JPG"], "gsv-cities:photos"),
    ],
)
def test_folders(here: Path, files: list[str], spec: str) -> None:
    touch(*(f"photos/{name}" for name in files))
    assert open_references("photos").spec == spec
    assert open_references("photos?limit=3").spec == f"{spec}?limit=3"


def test_a_folder_with_one_table_of_photos(here: Path) -> None:
    write_photo(here / "photos" / "1.jpg", gps_tags(48.5, 11.25))
    Path("photos/expenses.csv").write_text("date,amount\n2026-05-31,12\n")
    assert open_references("photos").spec == "exif:photos"
    Path("photos/refs.csv").write_text("path,lat,lon\n1.jpg,1,2\n")
    assert open_references("photos?limit=1").spec == "csv:photos/refs.csv?limit=1"
    Path("photos/more.csv").write_text("path,lat,lon\n1.jpg,1,2\n")
    assert complaint("photos") == (
        "photos: the tables more.csv and refs.csv both list photos. "
        "Name one of them, as in csv:photos/more.csv, or exif:photos to read the photos themselves."
    )
    assert [reference.id for reference in open_references("exif:photos")] == ["1.jpg"]


def test_windows_drives_are_paths() -> None:
    assert complaint(r"C:\photos\town") == r"C:\photos\town: there is no such file or folder. Check the path."


def test_paths_with_signs_of_the_spec(here: Path) -> None:
    touch("my:photos/a.jpg", "what?/a.jpg")
    assert open_references("my:photos").spec == "exif:my:photos"
    assert open_references("exif:what?").root == Path("what?")


def test_the_home_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch("photos/a.jpg")
    monkeypatch.setenv("HOME", str(here))
    assert open_references("exif:~/photos").root == here / "photos"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gps:photos", "gps:photos: there is no reader 'gps'. "
         "Choose exif, csv, parquet, utm, gsv-cities, msls, nordland, or give a path alone."),
        ("https://example.org/a.csv", "https://example.org/a.csv: there is no reader 'https'. "
         "Choose exif, csv, parquet, utm, gsv-cities, msls, nordland, or give a path alone."),
        ("nowhere", "nowhere: there is no such file or folder. Check the path."),
        ("exif:nowhere", "nowhere: there is no such folder. Check the path."),
        ("nowhere.csv", "nowhere.csv: there is no such file. Check the path."),
        ("", "the spec '' names no file or folder. Write a path, such as exif:photos/ or csv:refs.csv."),
        ("csv:", "the spec 'csv:' names no file or folder. Write a path, such as exif:photos/ or csv:refs.csv."),
        ("a.jpg", "a.jpg: this is a single photo. Give the folder of your photos, or a table of them."),
        ("a.doc", "a.doc: this is neither a folder nor a table. Give a folder of photos, a .csv or a .parquet."),
        ("exif:.?recursive=no",
         "the reader exif has no option 'recursive'. Its options are sessions, bbox, every, limit."),
        ("exif:.?limit", ".?limit: option 'limit' has no value. Write ?limit=VALUE."),
        ("exif:.?limit=1&limit=2", ".?limit=1&limit=2: option 'limit' is given twice. Give it once."),
    ],
)  # fmt: skip
def test_bad_specs(here: Path, spec: str, message: str) -> None:
    touch("a.jpg", "a.doc")
    assert complaint(spec) == message


@pytest.mark.photos
@pytest.mark.parametrize(("name", "kind", "count"), [("bgu_campus", "csv", 1475), ("lund_exif/images", "exif", 29)])
def test_real_folders(photos_root: Path, name: str, kind: str, count: int) -> None:
    source = open_references(str(photos_root / name))
    assert source.spec.startswith(f"{kind}:")
    assert len(list(source)) == len(source) == count
