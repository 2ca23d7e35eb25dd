"""Answers of a localizer that re-ranks, beside those of one that does not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from index_builder.index_design import IndexDesign
from index_builder.update import UpdateSettings, build_index
from retrieval.describer import Describer
from retrieval.errors import PlaceIndexError
from retrieval.index.place_index import PlaceIndex
from retrieval.localize.evidence import FixSettings
from retrieval.localize.localizer import LocalizeOptions, Localizer, Query
from retrieval.verification.local_features import FeatureSettings
from retrieval.verification.verifier import RerankSettings
from service.answer import LocalizeAnswer, answer_of
from tests.conftest import PublishedPlaces
from tests.retrieval.encoded import encode
from tests.retrieval.test_calibration import calibration
from tests.textured import make_textured_places, seen_from_elsewhere, textured

TOP = 6
MIXTURES = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (1, 2))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, describer: Describer) -> PlaceIndex:
    folder = tmp_path_factory.mktemp("textured")
    settings = UpdateSettings(design=IndexDesign(local_features=True))
    return PlaceIndex.open(
        build_index(make_textured_places(folder, 10), describer, folder / "indexes", "textured", settings).folder
    )


@pytest.fixture(scope="module")
def plain(index: PlaceIndex, describer: Describer) -> Localizer:
    return Localizer(describer, index)


@pytest.fixture(scope="module")
def reranking(index: PlaceIndex, describer: Describer) -> Localizer:
    return Localizer(describer, index, rerank=RerankSettings(top=TOP))


def mixture(near: int, under: int) -> bytes:
    """A photo that has the colours of one place, and in a corner of it something of another that is found again."""
    picture = textured(near).copy()
    picture[20:220, 20:200] = seen_from_elsewhere(textured(under), np.eye(3))[20:220, 20:200]
    return encode(Image.fromarray(picture), "PNG")


def ask(localizer: Localizer, data: bytes, **options: object) -> LocalizeAnswer:
    return answer_of(localizer.localize([localizer.decode(data, LocalizeOptions(**options))])[0])


def told(answer: LocalizeAnswer) -> list[tuple[str, float]]:
    return [(match.reference_id, round(match.score, 6)) for match in answer.matches]


@pytest.mark.parametrize("place", range(10))
def test_a_place_seen_from_elsewhere_is_found(reranking: Localizer, plain: Localizer, place: int) -> None:
    data = encode(Image.fromarray(seen_from_elsewhere(textured(place))), "PNG")
    before, after = ask(plain, data), ask(reranking, data)
    assert sorted(told(before)) == sorted(told(after))  # the same matches with the same cosines
    compared = {match.reference_id for match in before.matches[:TOP]}
    name = f"photos/{place:04d}.png"
    if name in compared:
        assert after.matches[0].reference_id == name
        assert (after.matches[0].inliers or 0) > 60
    assert {match.reference_id for match in after.matches if match.inliers is not None} == compared
    assert [match.rank for match in after.matches] == list(range(1, 11))


def test_matches_that_fit_come_first_the_others_by_score(reranking: Localizer, plain: Localizer) -> None:
    moved = 0
    for near, under in MIXTURES:
        data = mixture(near, under)
        before, after = ask(plain, data, top_k=5), ask(reranking, data, top_k=5)
        moved += told(before) != told(after)
        verified = [match.inliers or 0 for match in after.matches if (match.inliers or 0) >= 10]
        assert verified == sorted(verified, reverse=True)
        assert all((match.inliers or 0) < 10 for match in after.matches[len(verified) :])
        rest = [match.score for match in after.matches[len(verified) :]]
        assert rest == sorted(rest, reverse=True)
    assert moved


def test_a_calibrated_fix_stays_as_it_was_measured(describer: Describer, index: PlaceIndex) -> None:
    """The calibration knows nothing of re-ranking, so re-ranking keeps its hands off the fix."""
    plain = Localizer(describer, index, calibration=calibration())
    reranking = Localizer(describer, index, calibration=calibration(), rerank=RerankSettings(top=TOP))
    for near, under in MIXTURES:
        data = mixture(near, under)
        before, after = ask(plain, data), ask(reranking, data)
        assert (after.status, after.fix) == (before.status, before.fix)
        assert after.fix is None or after.fix.calibrated


def test_without_a_calibration_the_fix_follows_the_new_order(describer: Describer, index: PlaceIndex) -> None:
    top1 = FixSettings(method="top1")
    localizer = Localizer(describer, index, top1, rerank=RerankSettings(top=TOP))
    moved = 0
    for near, under in MIXTURES:
        data = mixture(near, under)
        before, after = ask(Localizer(describer, index, top1), data), ask(localizer, data)
        assert after.fix is not None
        assert before.fix is not None
        best = after.matches[0]
        assert (after.fix.lat, after.fix.lon) == (best.lat, best.lon)
        assert after.fix.calibrated is False
        moved += after.fix != before.fix
    assert moved


def test_without_re_ranking_an_answer_says_nothing_of_it(plain: Localizer, reranking: Localizer) -> None:
    data = mixture(0, 1)
    text = ask(plain, data).model_dump_json()
    assert "inliers" not in text
    assert "rerank" not in text
    answer = ask(reranking, data)
    text = answer.model_dump_json()
    assert '"inliers":' in text
    timings = answer.timings_ms
    assert timings.rerank is not None
    assert timings.rerank > 0
    parts = timings.decode + timings.describe + timings.search + timings.rerank + timings.fix
    assert timings.total == pytest.approx(parts)
    assert LocalizeAnswer.model_validate_json(text) == answer


def test_few_matches_asked_for_are_the_best_of_those_compared(reranking: Localizer, plain: Localizer) -> None:
    for near, under in ((0, 1), (2, 3), (4, 5)):
        data = mixture(near, under)
        many, one = ask(reranking, data, top_k=10), ask(reranking, data, top_k=1)
        assert told(one) == told(many)[:1]


def test_min_score_and_geo_prior_hold_as_before(reranking: Localizer, plain: Localizer) -> None:
    data = mixture(0, 1)
    scores = [match.score for match in ask(plain, data).matches]
    least = (scores[2] + scores[3]) / 2
    assert sorted(told(ask(reranking, data, min_score=least))) == sorted(told(ask(plain, data, min_score=least)))
    assert ask(reranking, data, min_score=1.0).matches == []


def test_a_track_sees_the_matches_by_score(reranking: Localizer) -> None:
    [found] = reranking.localize([reranking.decode(mixture(0, 1))])
    assert found.ranking.scores.tolist() == sorted(found.ranking.scores.tolist(), reverse=True)


def test_a_descriptor_alone_is_not_re_ranked(reranking: Localizer, index: PlaceIndex) -> None:
    [found] = reranking.locate(index.descriptors(np.array([0])), [Query()])
    assert all(match.inliers is None for match in found.matches)
    assert found.timings.rerank_ms is None


def test_features_of_an_index_that_was_swapped_out_are_left_alone(reranking: Localizer) -> None:
    photo = reranking.decode(mixture(0, 1))
    assert photo.query.features is not None
    other = replace(photo.query.features, settings=FeatureSettings(max_side=320))
    [found] = reranking.localize([replace(photo, query=replace(photo.query, features=other))])
    assert all(match.inliers is None for match in found.matches)
    assert [match.score for match in found.matches] == sorted((m.score for m in found.matches), reverse=True)


def test_an_index_without_features_is_refused_at_the_start(published: PublishedPlaces, describer: Describer) -> None:
    index = PlaceIndex.open(published.indexes / published.name)
    with pytest.raises(PlaceIndexError, match="holds no local features") as caught:
        Localizer(describer, index, rerank=RerankSettings())
    assert caught.value.code == "no_local_features"


def test_a_file_on_the_disk(reranking: Localizer, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(encode(Image.fromarray(seen_from_elsewhere(textured(4))), "PNG"))
    answer = reranking.localize_file(tmp_path / "photo.png")
    assert any(match.inliers is not None for match in answer.matches)
