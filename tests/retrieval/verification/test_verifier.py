import sys

import numpy as np
import pytest

from retrieval.errors import MissingExtraError, ParameterError, PlaceIndexError
from retrieval.verification.local_features import FeatureSettings, LocalFeatures, extract_features
from retrieval.verification.verifier import QueryFeatures, Reranker, RerankSettings, require_features
from tests.retrieval.refusal import refused
from tests.textured import seen_from_elsewhere, textured


class MadeUpSource:
    """Row r holds the features of the picture of seed r."""

    settings = FeatureSettings()

    def features(self, row: int) -> LocalFeatures:
        return extract_features(textured(row), self.settings)


@pytest.fixture
def reranker() -> Reranker:
    return Reranker(MadeUpSource(), RerankSettings(top=4, min_inliers=10))


def view_of(seed: int) -> QueryFeatures:
    return QueryFeatures(FeatureSettings(), extract_features(seen_from_elsewhere(textured(seed)), FeatureSettings()))


def test_the_right_match_comes_first(reranker: Reranker) -> None:
    rows = np.array([8, 5, 3, 7, 1, 2])
    inliers = reranker.inliers(view_of(3), rows)
    assert inliers is not None
    assert len(inliers) == 4  # only the best are compared
    assert inliers[2] > 60
    assert np.delete(inliers, 2).max() < 10
    assert rows[reranker.order(inliers, len(rows))].tolist() == [3, 8, 5, 7, 1, 2]


def test_without_the_right_match_among_them_nothing_moves(reranker: Reranker) -> None:
    inliers = reranker.inliers(view_of(9), np.array([8, 5, 3, 7]))
    assert reranker.order(inliers, 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("inliers", "order"),
    [
        ([0, 0, 0, 0], [0, 1, 2, 3]),
        ([3, 9, 8, 0], [0, 1, 2, 3]),  # too few to convince
        ([3, 10, 9, 0], [1, 0, 2, 3]),
        ([12, 30, 12, 40], [3, 1, 0, 2]),  # a tie keeps its order
        ([20, 0], [0, 1, 2, 3]),  # fewer were compared
    ],
)
def test_the_order(reranker: Reranker, inliers: list[int], order: list[int]) -> None:
    assert reranker.order(np.array(inliers), 4).tolist() == order
    assert reranker.order(None, 4).tolist() == [0, 1, 2, 3]


def test_features_of_other_settings_are_not_compared(reranker: Reranker) -> None:
    query = view_of(3)
    assert reranker.inliers(QueryFeatures(FeatureSettings(max_side=320), query.features), np.array([3])) is None


def test_an_index_without_features_cannot_be_re_ranked() -> None:
    text = (
        "indexes/town: the place index holds no local features, which re-ranking needs. "
        "Index the photos again with --local-features, or leave out --rerank."
    )
    with refused(PlaceIndexError, text, "no_local_features"):
        require_features(None, "indexes/town")


@pytest.mark.parametrize("top", [0, 101, -3])
def test_how_many_are_compared_has_bounds(top: int) -> None:
    with pytest.raises(ParameterError, match=f"{top} matches to re-rank are outside"):
        RerankSettings(top=top)


def test_without_opencv_it_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtraError, match=r"sightfix\[rerank\]"):
        Reranker(MadeUpSource(), RerankSettings())
