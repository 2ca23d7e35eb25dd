import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from index_builder.calibration.recalibrating import Judgement, PhotoCheck, Recalibrated
from retrieval.bundle import Bundle, open_bundle
from retrieval.errors import ParameterError, SightfixError
from retrieval.index.place_index import PlaceIndex
from sightfix.cli import app
from sightfix.commands.index_group import print_recalibrated
from sightfix.console import parse_bytes, parse_count
from tests.conftest import PublishedPlaces
from tests.forked import sightfix
from tests.places import make_places
from tests.retrieval.engines.colour_bundle import write_colour_bundle
from tests.retrieval.other_bundle import flip_byte


@pytest.fixture(scope="module")
def twice_indexed(published: PublishedPlaces, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an index of two versions, which nobody changes."""
    folder = tmp_path_factory.mktemp("indexed")
    rows = [f"{row.path},{row.position.lat},{row.position.lon}" for row in published.places.rows]
    for count in (12, 10):
        (folder / "refs.csv").write_text("path,lat,lon\n" + "\n".join(rows[:count]) + "\n")
        done = sightfix("index", "--name", "places", "csv:refs.csv", folder=folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def indexed(twice_indexed: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(twice_indexed, tmp_path, dirs_exist_ok=True)


def test_photos_come_first_or_options_do(indexed: Path) -> None:
    """`index --name places SPEC`, `index SPEC --name places` and `index build SPEC` are one command."""
    built = sightfix("index", "build", f"csv:{indexed / 'refs.csv'}", "--name", "again", folder=indexed)
    assert "published 10 references as again" in built.stdout
    help_ = sightfix("index", "--help", folder=indexed)
    assert "sightfix index PHOTOS is short for" in help_.stdout
    assert "doctor" in help_.stdout


class Town:
    """Photos that are indexed by the command line in this process, as `town`."""

    def __init__(self, folder: Path, photos: int) -> None:
        self.folder = folder
        self.write(photos)

    def write(self, photos: int) -> None:
        """So many photos and their table."""
        rows = make_places(self.folder, photos).rows
        lines = [f"{row.path},{row.position.lat},{row.position.lon}" for row in rows if row.position]
        (self.folder / "refs.csv").write_text("\n".join(["path,lat,lon", *lines]) + "\n")

    def index(self, *options: object) -> Result:
        arguments = ("index", f"csv:{self.folder / 'refs.csv'}", "--name", "town", "--indexes", self.indexes, *options)
        return CliRunner().invoke(app, [str(one) for one in arguments])

    def said(self, *options: object) -> str:
        """What indexing prints."""
        result = self.index(*options)
        assert result.exit_code == 0, result.output
        return " ".join(result.output.split())

    def refused(self, *options: object) -> str:
        """The error, or what the parser prints."""
        result = self.index(*options)
        assert result.exit_code != 0
        output = " ".join(result.output.replace("│", " ").split())
        return str(result.exception) if isinstance(result.exception, SightfixError) else output

    @property
    def indexes(self) -> Path:
        return self.folder / "indexes"

    @property
    def bundle(self) -> Bundle:
        """That the index holds."""
        held = PlaceIndex.open(self.indexes / "town").held_bundle()
        assert held is not None
        return held


def test_indexing_adapts_keeps_that_and_adapts_anew(tmp_path: Path) -> None:
    town = Town(tmp_path, 12)
    assert "adapted to 12 photos: 96 centroids in 3 layers, 512 numbers a descriptor" in town.said()
    fingerprint = town.bundle.fingerprint
    town.write(13)
    said = town.said()
    assert "adapted to 12 photos" in said
    assert "12 unchanged photos not described again" in said
    assert town.bundle.fingerprint == fingerprint
    said = town.said("--refit")
    assert "adapted to 13 photos" in said
    assert "not described again" not in said
    refitted = town.bundle
    assert refitted.fingerprint != fingerprint
    assert "adapted to 13 photos" in town.said("--dim", 64)
    assert (town.bundle.descriptor_dim, PlaceIndex.open(town.indexes / "town").manifest.descriptor_dim) == (64, 64)
    assert "64 numbers a descriptor" in town.said()


def test_indexing_does_not_adapt_where_that_is_not_wanted(tmp_path: Path) -> None:
    town = Town(tmp_path, 12)
    assert "adapted" not in town.said("--no-adapt")
    assert town.bundle.fingerprint == open_bundle().fingerprint
    assert "adapted to 12 photos" in town.said()
    assert "adapted" not in town.said("--no-adapt")
    assert town.bundle.fingerprint == open_bundle().fingerprint


def test_options_of_adapting_that_exclude_each_other(tmp_path: Path) -> None:
    town = Town(tmp_path, 12)
    for option in (("--refit",), ("--dim", 64)):
        assert "--no-adapt leaves nothing to fit" in town.refused("--no-adapt", *option)
    assert "should be greater than or equal to 16" in town.refused("--dim", 15)
    colours = write_colour_bundle(tmp_path / "colours")
    for option in (("--refit",), ("--dim", 64)):
        assert "cannot be adapted: its graph has no dense outputs" in town.refused("--bundle", colours.folder, *option)
    assert not (town.indexes / "town" / "CURRENT").exists()


def test_versions_are_listed_rolled_back_compared_and_pruned(indexed: Path) -> None:
    listed = json.loads(sightfix("index", "versions", "--index", "places", "--json", folder=indexed).stdout)
    assert [one["manifest"]["count"] for one in listed] == [12, 10]
    assert [one["current"] for one in listed] == [False, True]
    compared = sightfix("index", "diff", listed[0]["version"], "--csv", "changes.csv", folder=indexed)
    assert "10 unchanged, 0 added, 2 removed, 0 moved, 0 described again" in compared.stdout
    assert (indexed / "changes.csv").read_text().count('"removed"') == 2
    back = sightfix("index", "rollback", folder=indexed)
    assert f"current is {listed[0]['version']} of places; it was {listed[1]['version']}, which stays" in back.stdout
    forth = sightfix("index", "activate", listed[1]["version"], folder=indexed)
    assert forth.returncode == 0, forth.stderr
    pruned = sightfix("index", "prune", "--keep", "1", folder=indexed)
    assert pruned.stdout == f"removed {listed[0]['version']}\n"
    assert "→" in sightfix("index", "versions", folder=indexed).stdout


def test_what_versions_share_is_counted_once(twice_indexed: Path) -> None:
    printed = sightfix("index", "versions", folder=twice_indexed).stdout
    assert re.search(
        r"^together \d+\.?\d* MB: what versions share, such as their bundle, is there once$", printed, re.M
    )


def test_a_damaged_version_is_found_and_exits_1(indexed: Path) -> None:
    assert sightfix("index", "verify", "--all", "--photos", folder=indexed).returncode == 0
    version = json.loads(sightfix("index", "versions", "--json", folder=indexed).stdout)[1]["version"]
    flip_byte(indexed / "indexes" / "places" / "versions" / version / "vectors.faiss")
    done = sightfix("index", "verify", folder=indexed)
    assert done.returncode == 1
    assert f"damaged {version}" in done.stdout
    assert "sightfix index rollback --name places" in done.stdout


def test_an_index_travels_as_one_file(indexed: Path) -> None:
    done = sightfix("index", "export", "places.parquet", folder=indexed)
    assert "wrote 10 references to places.parquet" in done.stdout, done.stderr
    done = sightfix("index", "import", "places.parquet", "--name", "copy", folder=indexed)
    assert "a place index that holds it (--bundle)" in done.stderr  # ten photos are enough to adapt to
    done = sightfix("index", "import", "places.parquet", "--name", "copy", "--bundle", "indexes/places", folder=indexed)
    assert "published 10 references as copy" in done.stdout, done.stderr


def test_the_doctor_writes_a_page(indexed: Path) -> None:
    done = sightfix("index", "doctor", "--html", "map.html", "--json", "found.json", folder=indexed)
    assert "stretches without photos" in done.stdout, done.stderr
    assert (indexed / "map.html").read_text().startswith("<!doctype html>")
    assert json.loads((indexed / "found.json").read_text())["count"] == 10


def test_calibrating_needs_photos_of_places_in_the_index(indexed: Path) -> None:
    done = sightfix("index", "calibrate", folder=indexed)
    assert done.returncode == 1
    assert "give either photos of known position or --forget" in done.stderr
    done = sightfix("index", "calibrate", "--forget", "csv:refs.csv", folder=indexed)
    assert "give either photos of known position or --forget" in done.stderr
    done = sightfix("index", "calibrate", "csv:refs.csv", folder=indexed)
    assert done.returncode == 1
    assert "10 of 10 photos are in the index, and neither session nor time says" in done.stderr
    done = sightfix("index", "calibrate", "--forget", folder=indexed)
    assert "not calibrated too few references see what references of other sessions see" in done.stdout, done.stderr
    assert "published version" in done.stdout
    assert len(json.loads(sightfix("index", "versions", "--json", folder=indexed).stdout)) == 3


@pytest.mark.parametrize("occasions", [1, 3])
def test_what_calibrating_says(occasions: int, capsys: pytest.CaptureFixture[str]) -> None:
    now = Judgement(stated_share=0.49, calibration_error=0.054, radius_share=0.65)
    before = None if occasions == 1 else Judgement(stated_share=0.61, calibration_error=0.127, radius_share=0.5)
    split = "squares" if occasions == 1 else "occasions"
    check = PhotoCheck(626, occasions, 0.481, 0.047, before, "photos" if before else None, now, split)
    print_recalibrated(Recalibrated("campus", "2026-1", None, check))
    said = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert lines[0].startswith("626 photos of 1 occasion:" if before is None else "626 photos of 3 occasions: 48% of")
    assert ("before not calibrated" if before is None else "before 61% 0.127 50%") in lines
    assert "now, left-out photos 49% 0.054 65%" in lines
    assert ("now: squares of 100 m" if before is None else "now: sessions or blocks of time") in said
    assert ("if these are among them, these numbers are too good" in said) == (before is not None)
    assert "published version 2026-1 of campus" in said


def test_a_plan_has_a_row_for_every_type(tmp_path: Path) -> None:
    done = sightfix("plan", "--references", "50M", "--dim", "64", "--memory", "4G", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "50,000,000 references of 64 numbers, 4 GB of memory" in done.stdout
    for type_ in ("exact", "ivf-int8", "ivf-pq-fast", "hnsw"):
        assert f"\n{type_} " in done.stdout
    assert "too large" in done.stdout


@pytest.mark.parametrize(
    ("text", "count"),
    [("16G", 16 * 10**9), ("1.5TB", 1_500_000_000_000), ("16GiB", 2**34), ("512M", 512 * 10**6), ("7", 7)],
)
def test_sizes_are_read(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "G", "-1", "ten", "1e9", "0"])
def test_numbers_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ParameterError, match="50M"):
        parse_count(text)


def test_an_index_is_pushed_to_milvus_and_served_from_there(indexed: Path, published: PublishedPlaces) -> None:
    store = ("--store", f"milvus://{indexed}/milvus.db")
    versions = [one["version"] for one in json.loads(sightfix("index", "versions", "--json", folder=indexed).stdout)]
    pushed = sightfix("index", "push", *store, "--version", versions[0], folder=indexed)
    assert pushed.returncode == 0, pushed.stderr
    assert f"published version {versions[0]} of places in milvus://" in pushed.stdout
    assert "FLAT, exact" in pushed.stdout
    built = sightfix(
        "index", f"csv:{indexed / 'refs.csv'}", "--name", "places", *store, "--store-type", "hnsw", folder=indexed
    )
    assert built.returncode == 0, built.stderr
    assert "HNSW, recall@10" in built.stdout
    listed = json.loads(sightfix("index", "versions", "--json", *store, folder=indexed).stdout)
    assert [(one["manifest"]["count"], one["current"]) for one in listed] == [(12, False), (10, True)]
    assert "current is" in sightfix("index", "rollback", *store, folder=indexed).stdout
    assert sightfix("index", "verify", "--all", *store, folder=indexed).stdout.count("whole") == 2
    photo = str(published.places.rows[3].path)
    asked = sightfix("localize", photo, *store, "--json", folder=indexed)
    assert "Milvus holds no bundles" in asked.stderr
    store = (*store, "--bundle", str(indexed / "indexes" / "places"))
    asked = sightfix("localize", photo, *store, "--json", folder=indexed)
    assert asked.returncode == 0, asked.stderr
    answer = json.loads(asked.stdout)
    assert (answer["index"]["version"], answer["index"]["type"]) == (versions[0], "milvus:FLAT")
    assert answer["matches"][0]["reference_id"].endswith("photos/0003.jpg")
    evaluated = sightfix(
        "evaluate", "--index", "places", "--queries", f"csv:{indexed / 'refs.csv'}", *store, folder=indexed
    )
    assert evaluated.returncode == 0, evaluated.stderr
    assert "100.0" in evaluated.stdout


def test_wrong_store_options_say_what_is_right(indexed: Path) -> None:
    for option, text in (
        (("--store-type", "TREE"), "there is no Milvus index type 'TREE'"),
        (("--store-build", "nlist"), "--store-build 'nlist' is not NAME=VALUE"),
        (("--store-vectors", "int8"), "--store-vectors 'int8' is unknown"),
    ):
        done = sightfix("index", "push", "--store", "milvus://127.0.0.1:9", *option, folder=indexed)
        assert (done.returncode, text in done.stderr) == (1, True), done.stderr
    away = sightfix("index", "versions", "--store", "milvus://127.0.0.1:9", folder=indexed)
    assert (away.returncode, "Milvus cannot be reached" in away.stderr) == (1, True)
    assert "Traceback" not in away.stderr
