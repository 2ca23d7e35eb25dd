"""Commands that open an index need no `--bundle`, whichever model described it; given one, it must be the same."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import httpx
import pytest
import torch
from typer.testing import CliRunner, Result

from index_builder.push import push_version
from retrieval.bundle import Bundle, open_bundle
from retrieval.bundle.vlad import LEAST_PHOTOS
from retrieval.errors import BundleError, ModelIndexMismatchError
from retrieval.index.milvus.connection import MilvusAddress
from retrieval.index.milvus.store import MilvusStore
from retrieval.index.place_index import PlaceIndex
from sightfix.cli import app
from tests.places import make_places
from tests.retrieval.engines.colour_bundle import write_colour_bundle
from tests.retrieval.other_bundle import change_manifest, write_other_bundle
from tests.retrieval.refusal import refused
from tests.running_server import forked_server
from tests.training.small_encoder import small_encoder, small_recipe
from training.checkpoint import save_encoder

JPEG: Final = {"Content-Type": "image/jpeg"}


def shipped(_: Path) -> Bundle:
    return open_bundle()


def of_the_same_name(folder: Path) -> Bundle:
    """As the shipped one is called, and described otherwise."""
    return write_other_bundle(open_bundle(), folder / "model", name=open_bundle().name)


def foreign(folder: Path) -> Bundle:
    return write_colour_bundle(folder / "model", offset=1.0)


def trained(folder: Path) -> Bundle:
    torch.manual_seed(0)
    recipe = small_recipe()
    checkpoint = save_encoder(folder / "checkpoint", small_encoder(recipe), recipe)
    exported = CliRunner().invoke(app, ["export", str(checkpoint.folder), "--out", str(folder / "model")])
    assert exported.exit_code == 0, exported.output
    return open_bundle(folder / "model")


MODELS: Final[dict[str, Callable[[Path], Bundle]]] = {
    "shipped": shipped,
    "adapted": shipped,
    "of the same name": of_the_same_name,
    "foreign": foreign,
    "trained": trained,
}


@dataclass(frozen=True)
class Indexed:
    """Photos and their index; where the bundle was is nothing any more, unless it is the shipped one."""

    folder: Path
    fingerprint: str
    count: int = 6

    @property
    def indexes(self) -> Path:
        return self.folder / "indexes"

    @property
    def spec(self) -> str:
        return f"csv:{self.folder / 'refs.csv'}"

    @property
    def photo(self) -> Path:
        return self.folder / "photos" / "0002.jpg"

    def run(self, *arguments: object) -> Result:
        return CliRunner().invoke(app, [*map(str, arguments), "--indexes", str(self.indexes)])


@pytest.fixture(scope="module", params=MODELS)
def indexed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Indexed:
    folder = tmp_path_factory.mktemp("indexed")
    count = LEAST_PHOTOS + 2 if request.param == "adapted" else 6
    rows = make_places(folder, count).rows
    lines = [f"{row.path},{row.position.lat},{row.position.lon}" for row in rows if row.position]
    (folder / "refs.csv").write_text("\n".join(["path,lat,lon", *lines]) + "\n")
    bundle = MODELS[request.param](folder)
    made = Indexed(folder, bundle.fingerprint, count)
    result = made.run("index", made.spec, "--name", "town", "--bundle", bundle.folder)
    assert result.exit_code == 0, result.output
    if request.param == "adapted":
        made = replace(made, fingerprint=PlaceIndex.open(made.indexes / "town").manifest.bundle.fingerprint)
        assert made.fingerprint != bundle.fingerprint
    shutil.rmtree(folder / "model", ignore_errors=True)
    return made


def test_localize(indexed: Indexed) -> None:
    result = indexed.run("localize", indexed.photo, "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["model"]["fingerprint"] == indexed.fingerprint
    assert answer["matches"][0]["reference_id"] == "photos/0002.jpg"


def test_evaluate(indexed: Indexed) -> None:
    report = indexed.folder / "report.json"
    result = indexed.run("evaluate", "--index", "town", "--queries", indexed.spec, "--json", report)
    assert result.exit_code == 0, result.output
    (radius,) = json.loads(report.read_text())["recall"]
    assert radius["at"][0]["recall"]["value"] == 1.0


def test_serve(indexed: Indexed, tmp_path: Path) -> None:
    with forked_server(tmp_path / "log", ["--index", "town", "--indexes", str(indexed.indexes)]) as server:
        server.wait_until_ready()
        answer = httpx.post(f"{server.url}/localize", content=indexed.photo.read_bytes(), headers=JPEG).json()
        assert answer["model"]["fingerprint"] == indexed.fingerprint
        assert answer["matches"][0]["reference_id"] == "photos/0002.jpg"


def test_check_config(indexed: Indexed) -> None:
    result = indexed.run("serve", "--check-config")
    assert result.exit_code == 0, result.output
    assert indexed.fingerprint[:12] in result.stdout


def test_indexing_again_keeps_the_model(indexed: Indexed, tmp_path: Path) -> None:
    shutil.copytree(indexed.indexes, tmp_path / "indexes")
    again = replace(indexed, folder=tmp_path)
    result = again.run("index", indexed.spec, "--name", "town")
    assert result.exit_code == 0, result.output
    assert f"{indexed.count} unchanged photos not described again" in result.stdout
    assert PlaceIndex.open(again.indexes / "town").manifest.bundle.fingerprint == indexed.fingerprint
    changed = again.run("index", indexed.spec, "--name", "town", "--bundle", "default", "--no-adapt")
    assert changed.exit_code == 0, changed.output
    assert PlaceIndex.open(again.indexes / "town").open_bundle().fingerprint == open_bundle().fingerprint


def test_an_override_must_be_the_same(indexed: Indexed, tmp_path: Path) -> None:
    same = indexed.run("localize", indexed.photo, "--bundle", indexed.indexes / "town", "--json")
    assert json.loads(same.stdout)["model"]["fingerprint"] == indexed.fingerprint
    another = write_colour_bundle(tmp_path / "another", 24, 24, offset=1.0)
    for command in (
        ("localize", indexed.photo),
        ("evaluate", "--index", "town", "--queries", indexed.spec),
        ("index", "calibrate", indexed.spec),
    ):
        failed = indexed.run(*command, "--bundle", another.folder).exception
        assert isinstance(failed, ModelIndexMismatchError)
        assert f"({indexed.fingerprint[:12]})" in failed.what
        assert "Leave out --bundle, for the index holds its own" in str(failed)


def test_a_milvus_needs_it_named_unless_it_is_the_shipped_one(indexed: Indexed, tmp_path: Path) -> None:
    store = MilvusStore(MilvusAddress.parse(f"milvus://{tmp_path}/milvus.db"))
    index = PlaceIndex.open(indexed.indexes / "town")
    push_version(index, store)
    there = store.open("town")
    assert there.held_bundle() is None
    assert not there.manifest.bundle.held
    if indexed.fingerprint == open_bundle().fingerprint:
        assert there.open_bundle() == open_bundle()
    else:
        name = index.manifest.bundle.name
        text = (
            f"{there.where}: the index was described with bundle {name} ({indexed.fingerprint[:12]}); it is not the "
            "one shipped with sightfix, and Milvus holds no bundles. Name the folder of that bundle, or of the place "
            f"index that was pushed, which holds it: --bundle {indexed.indexes / 'town'}."
        )
        with refused(ModelIndexMismatchError, text, "model_index_mismatch"):
            there.open_bundle()
    assert there.open_bundle(indexed.indexes / "town").fingerprint == indexed.fingerprint
    store.close()


def test_a_version_of_before_needs_it_named_unless_it_is_the_shipped_one(indexed: Indexed, tmp_path: Path) -> None:
    """As versions were written before they held their bundle."""
    shutil.copytree(indexed.indexes, tmp_path / "indexes")
    old = Indexed(tmp_path, indexed.fingerprint)
    index = PlaceIndex.open(old.indexes / "town")
    kept = shutil.move(index.folder / "bundle", tmp_path / "kept")
    change_manifest(index.folder, {"bundle/held": False})
    without = old.run("localize", indexed.photo, "--json")
    if indexed.fingerprint == open_bundle().fingerprint:
        assert json.loads(without.stdout)["model"]["fingerprint"] == indexed.fingerprint
    else:
        assert isinstance(without.exception, ModelIndexMismatchError)
        name = index.manifest.bundle.name
        assert f"described with bundle {name} ({indexed.fingerprint[:12]});" in str(without.exception)
        assert "Name the folder of that bundle: --bundle FOLDER." in str(without.exception)
    named = old.run("localize", indexed.photo, "--bundle", kept, "--json")
    assert json.loads(named.stdout)["model"]["fingerprint"] == indexed.fingerprint
    assert isinstance(old.run("localize", indexed.photo, "--bundle", old.indexes / "town").exception, BundleError)


def test_a_damaged_model_is_told_by_verify_and_doctor(indexed: Indexed, tmp_path: Path) -> None:
    shutil.copytree(indexed.indexes, tmp_path / "indexes")
    damaged = Indexed(tmp_path, indexed.fingerprint)
    folder = PlaceIndex.open(damaged.indexes / "town").folder
    assert "its bundle is damaged" not in damaged.run("index", "doctor").stdout
    (folder / "bundle" / "model.onnx").write_bytes(b"")
    verified = damaged.run("index", "verify")
    assert verified.exit_code == 1
    assert f"damaged {folder.name}: {folder / 'bundle' / 'model.onnx'}: the file has 0 bytes" in verified.stdout
    report = tmp_path / "doctor.json"
    shown = damaged.run("index", "doctor", "--json", report).stdout
    assert f"its bundle is damaged {folder / 'bundle' / 'model.onnx'}: the file has 0 bytes" in shown
    assert "model.onnx" in json.loads(report.read_text())["bundle_problem"]
