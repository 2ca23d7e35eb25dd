"""The quality check: what passes, what does not, and what is measured."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from index_builder.quality import QualityReport, QualitySettings, Queries, check_photos, recall_of
from index_builder.update import build_index
from retrieval.bundle import Bundle
from retrieval.describer import Describer, Descriptors
from retrieval.errors import ModelIndexMismatchError, PlaceIndexError
from retrieval.index.place_index import PlaceIndex
from retrieval.index.searchable import SearchResult
from tests.places import Places, make_places
from tests.retrieval.other_bundle import write_other_bundle


def check(folder: Path, describer: Describer, settings: QualitySettings | None = None) -> QualityReport:
    return check_photos(PlaceIndex.open(folder), describer, settings)


def build(tmp_path: Path, describer: Describer, count: int) -> tuple[Places, Path]:
    places = make_places(tmp_path, count)
    return places, build_index(places, describer, tmp_path / "indexes", "town").folder


def test_a_whole_version_passes(tmp_path: Path, describer: Describer) -> None:
    _, folder = build(tmp_path, describer, 12)
    asked: list[None] = []
    settings = QualitySettings(canaries=5)
    index = PlaceIndex.open(folder)
    report = check_photos(index, describer, settings, check_stopped=lambda: asked.append(None))
    assert report == QualityReport(
        canaries=5, unreadable_canaries=0, self_matches=5, held_out_queries=5, recall=1.0, recall_at=10
    )
    assert len(asked) > 5


def test_an_index_of_one_reference_passes(tmp_path: Path, describer: Describer) -> None:
    _, folder = build(tmp_path, describer, 1)
    assert check(folder, describer) == QualityReport(1, 0, 1, 1, 1.0, 1)


def test_the_same_photo_many_times_is_a_tie_and_no_loss(tmp_path: Path, describer: Describer) -> None:
    places = make_places(tmp_path, 6)
    for row in places.rows[1:]:
        shutil.copy(places.rows[0].path, row.path)
    folder = build_index(places, describer, tmp_path / "indexes", "town").folder
    report = check(folder, describer)
    assert (report.self_matches, report.recall) == (6, 1.0)


def test_photos_that_are_gone_are_counted_and_no_failure(tmp_path: Path, describer: Describer) -> None:
    places, folder = build(tmp_path, describer, 4)
    places.rows[0].path.unlink()
    places.rows[1].path.write_bytes(b"damaged")
    report = check(folder, describer)
    assert (report.canaries, report.unreadable_canaries, report.self_matches) == (2, 2, 2)


def test_without_any_photo_the_recall_is_still_measured(tmp_path: Path, describer: Describer) -> None:
    places, folder = build(tmp_path, describer, 4)
    shutil.rmtree(places.root / "photos")
    report = check(folder, describer)
    assert (report.canaries, report.unreadable_canaries, report.held_out_queries, report.recall) == (0, 4, 4, 1.0)


def test_vectors_of_other_photos_do_not_pass(tmp_path: Path, describer: Describer) -> None:
    """As if rows and vectors were out of step: the photos trade places after they were described."""
    places, folder = build(tmp_path, describer, 6)
    paths = [row.path for row in places.rows]
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, contents[1:] + contents[:1], strict=True):
        path.write_bytes(content)
    with pytest.raises(PlaceIndexError, match="6 of 6 references do not find themselves first, 'photos/") as info:
        check(folder, describer)
    assert info.value.code == "gate_failed"


def test_a_few_photos_edited_in_place_may_pass(tmp_path: Path, describer: Describer) -> None:
    places, folder = build(tmp_path, describer, 10)
    shutil.copy(places.rows[3].path, places.rows[4].path)
    with pytest.raises(PlaceIndexError, match=r"1 of 10 references do not find themselves first, 'photos/0004.jpg'"):
        check(folder, describer)
    assert check(folder, describer, QualitySettings(min_self_match=0.9)).self_matches == 9


def test_another_bundle_is_refused(tmp_path: Path, describer: Describer, bundle: Bundle) -> None:
    _, folder = build(tmp_path, describer, 2)
    other = Describer(write_other_bundle(bundle, tmp_path / "bundle"), threads=1)
    with pytest.raises(ModelIndexMismatchError):
        check(folder, other)


def test_recall_counts_what_the_index_does_not_return(tmp_path: Path, describer: Describer) -> None:
    _, folder = build(tmp_path, describer, 8)
    index = PlaceIndex.open(folder)
    descriptors = index.descriptors(np.arange(8))

    def search(some: Descriptors, k: int) -> np.ndarray:
        return index.search_whitened(some, k).rows

    def loses_the_best(some: Descriptors, k: int) -> np.ndarray:
        return search(some, k + 1)[:, 1:]

    four, one = (Queries.of(index, descriptors, k) for k in (4, 1))
    assert recall_of(search, index, four) == (1.0, 1.0)
    assert recall_of(loses_the_best, index, four) == (0.0, 0.75)
    assert recall_of(loses_the_best, index, one) == (0.0, 0.0)


def test_too_low_a_recall_does_not_pass(tmp_path: Path, describer: Describer, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = build(tmp_path, describer, 8)
    search = PlaceIndex.search_whitened

    def nearly(index: PlaceIndex, descriptors: Descriptors, k: int) -> SearchResult:
        if k == 1:
            return search(index, descriptors, 1)
        found = search(index, descriptors, k)
        return SearchResult(np.where(np.arange(k) == k - 1, -1, found.rows), found.scores)

    monkeypatch.setattr(PlaceIndex, "search_whitened", nearly)
    with pytest.raises(PlaceIndexError, match=r"the index returns 75.0% of what exact search finds, 98.0%") as info:
        check(folder, describer, QualitySettings(recall_at=4))
    assert info.value.code == "gate_failed"
