"""Bundles and place indexes that an earlier version wrote open unchanged and give the same answers."""

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from retrieval.bundle import open_bundle
from sightfix.cli import app
from tests.running_server import forked_server

WRITTEN = Path(__file__).parent / "data" / "written_by_c0fdd7f"
ANSWERS: dict[str, dict[str, Any]] = json.loads((WRITTEN / "answers.json").read_text())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: opening an index may create its lock file."""
    return shutil.copytree(WRITTEN, tmp_path_factory.mktemp("old") / "written")


@pytest.mark.parametrize(
    ("index", "query"), [(index, query) for index, queries in ANSWERS.items() for query in queries]
)
def test_an_index_of_commit_c0fdd7f_answers_as_it_did(written: Path, index: str, query: str) -> None:
    options = ["--index", index, "--indexes", str(written / "indexes"), "--bundle", str(written / "bundle"), "--json"]
    result = CliRunner().invoke(app, ["localize", str(written / "queries" / query), *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    answer, then = json.loads(result.stdout), ANSWERS[index][query]
    assert answer["status"] == then["status"]
    # Another processor may round the last bits of descriptors differently.
    for name in ("lat", "lon"):
        assert answer["fix"][name] == pytest.approx(then["fix"][name], abs=2e-6)
    assert answer["fix"]["confidence"] == pytest.approx(then["fix"]["confidence"], abs=2e-3)
    assert answer["fix"]["radius_m"] == pytest.approx(then["fix"]["radius_m"], rel=1e-2)
    assert answer["fix"]["calibrated"] == then["fix"]["calibrated"]
    assert [match["reference_id"] for match in answer["matches"]] == [
        match["reference_id"] for match in then["matches"]
    ]
    scores = [match["score"] for match in then["matches"]]
    assert [match["score"] for match in answer["matches"]] == pytest.approx(scores, abs=1e-3)


def test_local_features_of_commit_c0fdd7f_are_still_compared(written: Path) -> None:
    options = ["--index", "graph", "--indexes", str(written / "indexes"), "--bundle", str(written / "bundle")]
    query = str(written / "queries" / "0.jpg")
    result = CliRunner().invoke(app, ["localize", query, *options, "--rerank", "20", "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    matches = json.loads(result.stdout)["matches"]
    assert all(isinstance(match["inliers"], int) for match in matches)


@pytest.mark.parametrize("index", sorted(ANSWERS))
def test_a_version_of_commit_c0fdd7f_verifies(written: Path, index: str) -> None:
    result = CliRunner().invoke(app, ["index", "verify", "--name", index, "--indexes", str(written / "indexes")])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("command", ["localize", "evaluate", "serve"])
def test_an_index_of_commit_c0fdd7f_says_which_bundle_it_needs(written: Path, command: str) -> None:
    """It holds none, and its bundle is not the one that is shipped now."""
    bundle = open_bundle(written / "bundle")
    query = str(written / "queries" / "0.jpg")
    arguments = {
        "localize": ["localize", query],
        "evaluate": ["evaluate", "--queries", str(written / "queries")],
        "serve": ["serve", "--check-config"],
    }[command]
    options = ["--index", "exact", "--indexes", str(written / "indexes")]
    result = CliRunner().invoke(app, [*arguments, *options])
    assert result.exit_code == 1
    told = result.stdout if command == "serve" else str(result.exception)
    told = " ".join(told.split())
    assert f"the index was described with bundle {bundle.name} ({bundle.fingerprint[:12]});" in told
    assert "Name the folder of that bundle: --bundle FOLDER." in told


def test_an_index_of_commit_c0fdd7f_is_served_with_its_bundle(written: Path, tmp_path: Path) -> None:
    options = ["--index", "exact", "--indexes", str(written / "indexes"), "--bundle", str(written / "bundle")]
    query = (written / "queries" / "0.jpg").read_bytes()
    with forked_server(tmp_path / "log", options) as server:
        server.wait_until_ready()
        answer = httpx.post(f"{server.url}/localize", content=query, headers={"Content-Type": "image/jpeg"}).json()
    then = ANSWERS["exact"]["0.jpg"]
    assert answer["status"] == then["status"]
    assert [match["reference_id"] for match in answer["matches"]][: len(then["matches"])] == [
        match["reference_id"] for match in then["matches"]
    ]
