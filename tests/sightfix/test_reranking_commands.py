"""`--local-features` and `--rerank` on the command line."""

import json
from pathlib import Path

import pytest
from PIL import Image

from retrieval.evaluation import EvaluationReport
from service.answer import LocalizeAnswer
from tests.conftest import PublishedPlaces
from tests.forked import sightfix
from tests.places import Places
from tests.textured import make_textured_places, seen_from_elsewhere, textured


def write_table(places: Places, path: Path) -> str:
    lines = [f"{row.path},{row.position.lat},{row.position.lon}" for row in places.rows if row.position]
    path.write_text("path,lat,lon\n" + "\n".join(lines) + "\n")
    return f"csv:{path}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index with local features, and the same places seen from elsewhere."""
    folder = tmp_path_factory.mktemp("reranked")
    places = make_textured_places(folder, 8)
    done = sightfix("index", write_table(places, folder / "refs.csv"), "--local-features", folder=folder)
    assert done.returncode == 0, done.stderr
    (folder / "views").mkdir()
    views = []
    for number, row in enumerate(places.rows):
        path = folder / "views" / row.path.name
        Image.fromarray(seen_from_elsewhere(textured(number))).save(path)
        views.append(type(row)(id=row.id, path=path, position=row.position))
    write_table(Places(folder, views), folder / "queries.csv")
    return folder


def test_localize_shows_inliers(folder: Path) -> None:
    photo = str(folder / "views" / "0003.png")
    shown = sightfix("localize", photo, "--rerank", "8", folder=folder)
    assert shown.returncode == 0, shown.stderr
    assert "inliers" in shown.stdout
    assert "re-rank" in shown.stdout
    told = sightfix("localize", photo, "--rerank", "8", "--json", folder=folder).stdout
    answer = LocalizeAnswer.model_validate_json(told)
    assert answer.matches[0].reference_id.endswith("0003.png")
    assert (answer.matches[0].inliers or 0) > 60
    assert "inliers" not in sightfix("localize", photo, "--json", folder=folder).stdout


def test_evaluate_tells_what_changed(folder: Path) -> None:
    queries = f"csv:{folder / 'queries.csv'}"
    where = ("--index", "default", "--queries", queries, "--recall-at", "1,5")
    done = sightfix("evaluate", *where, "--rerank", "8", "--json", "after.json", folder=folder)
    assert done.returncode == 0, done.stderr
    assert "What re-ranking the best 8 changed" in done.stdout
    assert "Fixes are made from the matches in their new order" in done.stdout
    after = EvaluationReport.model_validate_json((folder / "after.json").read_text())
    assert sightfix("evaluate", *where, "--json", "before.json", folder=folder).returncode == 0
    before = EvaluationReport.model_validate_json((folder / "before.json").read_text())
    assert after.reranking is not None
    assert before.reranking is None
    assert after.recall[0].at[0].recall.value == 1.0
    assert after.reranking.changes[0].before == before.recall[0].at[0].recall.value
    fixes = [next(one for one in report.position_errors if one.answer == "fix") for report in (before, after)]
    assert (fixes[1].within_share.value or 0.0) >= (fixes[0].within_share.value or 0.0)


def test_without_features_the_remedy_is_told(folder: Path, published: PublishedPlaces) -> None:
    where = ("--index", published.name, "--indexes", str(published.indexes), "--rerank", "5")
    photo, queries = str(folder / "views" / "0003.png"), f"csv:{folder / 'queries.csv'}"
    for command in (("localize", photo, *where), ("evaluate", "--queries", queries, *where)):
        done = sightfix(*command, folder=folder)
        assert done.returncode == 1
        assert "Index the photos again with --local-features" in done.stderr
    done = sightfix("evaluate", "--queries", queries, "--database", queries, "--rerank", "5", folder=folder)
    assert done.returncode == 1
    assert "--rerank needs the local features of an index" in done.stderr
    done = sightfix("localize", photo, "--server", "http://127.0.0.1:9", "--rerank", "5", folder=folder)
    assert "Start the server with --rerank instead" in done.stderr


def test_serve_takes_it(folder: Path) -> None:
    done = sightfix("serve", "--check-config", "--rerank", "20", folder=folder)
    assert done.returncode == 0, done.stdout
    assert "the best 20 matches re-ranked" in done.stdout
    done = sightfix("serve", "--check-config", "--rerank", "101", folder=folder)
    assert done.returncode != 0


def test_indexing_again_keeps_the_features(folder: Path) -> None:
    done = sightfix("index", f"csv:{folder / 'refs.csv'}", folder=folder)
    assert done.returncode == 0, done.stderr
    listed = json.loads(sightfix("index", "versions", "--json", folder=folder).stdout)
    assert [one["manifest"]["local_features"] is not None for one in listed] == [True, True]
