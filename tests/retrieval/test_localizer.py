import copy
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from index_builder.update import build_index
from retrieval.bundle import Bundle
from retrieval.describer import Describer
from retrieval.errors import ImageError, ModelIndexMismatchError, ParameterError
from retrieval.geo import GeoPrior, haversine_m
from retrieval.images import ImageLimits
from retrieval.index.place_index import PlaceIndex
from retrieval.localize.evidence import FixSettings
from retrieval.localize.fix import FixStatus
from retrieval.localize.localizer import LocalizeOptions, Localizer, new_request_id
from service.answer import LocalizeAnswer, answer_of
from tests.conftest import PublishedPlaces
from tests.places import make_places
from tests.retrieval.encoded import encode, smooth
from tests.retrieval.other_bundle import write_other_bundle
from tests.retrieval.refusal import refused
from tests.retrieval.test_calibration import calibration
from tests.whitened_index import whiten


@pytest.fixture(scope="module")
def localizer(published: PublishedPlaces, describer: Describer) -> Localizer:
    return Localizer(describer, PlaceIndex.open(published.indexes / published.name))


@pytest.fixture(scope="module")
def photos(published: PublishedPlaces) -> list[bytes]:
    return [row.path.read_bytes() for row in published.places.rows]


def ask(localizer: Localizer, data: bytes, **options: object) -> LocalizeAnswer:
    return answer_of(localizer.localize([localizer.decode(data, LocalizeOptions(**options))])[0])


def test_a_reference_photo_is_located_at_its_own_position(
    localizer: Localizer, published: PublishedPlaces, photos: list[bytes]
) -> None:
    sure = Localizer(localizer.describer, localizer.place_index, FixSettings(score_scale=0.005))
    for row, data in zip(published.places.rows, photos, strict=True):
        answer = ask(sure, data)
        best = answer.matches[0]
        assert best.reference_id == row.id
        assert best.score == pytest.approx(1.0, abs=2e-3)
        assert best.score <= 1.0
        assert (best.lat, best.lon, best.heading) == (row.position.lat, row.position.lon, 90.0)
        assert answer.status is FixStatus.LOCATED
        assert answer.fix is not None
        assert haversine_m(answer.fix.lat, answer.fix.lon, row.position.lat, row.position.lon) < 1.0


def test_matches_are_ranked_by_score(localizer: Localizer, photos: list[bytes]) -> None:
    answer = ask(localizer, photos[3], top_k=5)
    assert [match.rank for match in answer.matches] == [1, 2, 3, 4, 5]
    scores = [match.score for match in answer.matches]
    assert scores == sorted(scores, reverse=True)
    assert len({match.reference_id for match in answer.matches}) == 5


@pytest.mark.parametrize(("top_k", "returned"), [(1, 1), (12, 12), (13, 12), (100, 12)])
def test_top_k_may_be_more_than_there_are(localizer: Localizer, photos: list[bytes], top_k: int, returned: int) -> None:
    assert len(ask(localizer, photos[0], top_k=top_k).matches) == returned


@pytest.mark.parametrize("method", ["top1", "weighted_cluster"])
def test_the_fix_does_not_depend_on_how_many_matches_are_told(
    describer: Describer, tmp_path: Path, photos: list[bytes], method: str
) -> None:
    """References 5 m apart, so that the fix is made of many of them."""
    places = make_places(tmp_path, 12)
    close = [
        type(row)(id=row.id, path=row.path, position=type(row.position)(48.0, 11.0 + 5e-5 * number))
        for number, row in enumerate(places.rows)
    ]
    places.rows[:] = close
    build_index(places, describer, tmp_path / "indexes", "close")
    settings = FixSettings(method=method, score_scale=1.0)
    localizer = Localizer(describer, PlaceIndex.open(tmp_path / "indexes" / "close"), settings)
    fixes = [ask(localizer, photos[5], top_k=top_k).fix for top_k in (1, 2, 10, 11, 100)]
    assert fixes[0] is not None
    assert fixes[0].support > 3
    assert all(fix == fixes[0] for fix in fixes)


def test_a_batch_equals_its_single_photos(localizer: Localizer, photos: list[bytes]) -> None:
    options = [
        LocalizeOptions(top_k=3),
        LocalizeOptions(top_k=12),
        LocalizeOptions(geo_prior=GeoPrior(48.0, 11.0, 250.0)),
        LocalizeOptions(geo_prior=GeoPrior(-48.0, 11.0, 250.0)),
        LocalizeOptions(min_score=0.99),
    ]
    decoded = [localizer.decode(photos[place], option) for place, option in enumerate(options)]
    for photo, localization in zip(decoded, localizer.localize(decoded), strict=True):
        answer, alone = answer_of(localization), answer_of(localizer.localize([photo])[0])
        assert answer.request_id == photo.query.request_id
        assert [match.reference_id for match in answer.matches] == [match.reference_id for match in alone.matches]
        np.testing.assert_allclose(
            [match.score for match in answer.matches], [match.score for match in alone.matches], atol=1e-4
        )
        assert answer.status == alone.status


def test_nothing_asked_is_nothing_answered(localizer: Localizer) -> None:
    assert localizer.localize([]) == []


def test_a_geo_prior_keeps_matches_and_fix_inside(
    localizer: Localizer, published: PublishedPlaces, photos: list[bytes]
) -> None:
    """The photo's own place lies outside of the prior: it must not be found."""
    prior = GeoPrior(48.0, 11.0, 350.0)
    answer = ask(localizer, photos[11], geo_prior=prior, top_k=12)
    assert {match.reference_id for match in answer.matches} == {row.id for row in published.places.rows[:4]}
    assert answer.fix is not None
    assert haversine_m(prior.lat, prior.lon, answer.fix.lat, answer.fix.lon) <= 350.0


def test_a_geo_prior_without_references_is_no_match(localizer: Localizer, photos: list[bytes]) -> None:
    answer = ask(localizer, photos[0], geo_prior=GeoPrior(-48.0, 11.0, 350.0))
    assert (answer.status, answer.fix, answer.matches) == (FixStatus.NO_MATCH, None, [])


def test_matches_below_min_score_take_no_part(localizer: Localizer, photos: list[bytes]) -> None:
    every = ask(localizer, photos[0], top_k=12)
    between = (every.matches[2].score + every.matches[3].score) / 2
    answer = ask(localizer, photos[0], top_k=12, min_score=between)
    assert [match.reference_id for match in answer.matches] == [match.reference_id for match in every.matches[:3]]
    assert len(ask(localizer, photos[0], top_k=12, min_score=-1.0).matches) == 12


def test_no_match_above_min_score_is_no_match(localizer: Localizer) -> None:
    answer = ask(localizer, encode(smooth(64, 48), "PNG"), min_score=0.9999)
    assert (answer.status, answer.fix, answer.matches) == (FixStatus.NO_MATCH, None, [])


def test_the_answer_names_model_index_and_thumbnails(localizer: Localizer, bundle: Bundle, photos: list[bytes]) -> None:
    answer = ask(localizer, photos[0])
    assert answer.model.model_dump() == {
        "name": bundle.name,
        "fingerprint": bundle.fingerprint,
        "precision": "fp32",
        "provider": "cpu",
        "runtime": localizer.describer.description.runtime,
        "device": localizer.describer.description.device,
    }
    manifest = localizer.place_index.manifest
    assert answer.index.model_dump() == {"name": "places", "version": manifest.version, "size": 12, "type": "exact"}
    assert answer.matches[0].thumbnail == "/references/photos/0000.jpg/image"


def test_timings_are_there_and_add_up(localizer: Localizer, photos: list[bytes]) -> None:
    timings = ask(localizer, photos[0]).timings_ms
    assert timings.decode > 0
    assert timings.describe > 0
    assert timings.search > 0
    assert timings.fix > 0
    assert timings.total == pytest.approx(timings.decode + timings.describe + timings.search + timings.fix)


def test_the_request_id_is_the_callers_or_a_new_one(localizer: Localizer, photos: list[bytes]) -> None:
    assert localizer.localize([localizer.decode(photos[0], request_id="mine")])[0].request_id == "mine"
    ids = {new_request_id() for _ in range(100)} | {ask(localizer, photos[0]).request_id}
    assert len(ids) == 101
    assert all(len(one) == 32 for one in ids)


def test_a_file_is_localized_as_its_bytes_are(
    localizer: Localizer, published: PublishedPlaces, photos: list[bytes], tmp_path: Path
) -> None:
    from_file = localizer.localize_file(published.places.rows[2].path, LocalizeOptions(top_k=4))
    assert answer_of(from_file).matches == ask(localizer, photos[2], top_k=4).matches
    damaged = tmp_path / "half.jpg"
    damaged.write_bytes(photos[2][: len(photos[2]) // 2])
    text = (
        f"{damaged}: the image cannot be decoded (it ends too early). "
        "Check that the file is complete; it may have been cut off while copying or sending."
    )
    with refused(ImageError, text, "image_undecodable"):
        localizer.localize_file(damaged)


def test_limits_of_the_localizer_hold(localizer: Localizer, photos: list[bytes]) -> None:
    strict = Localizer(localizer.describer, localizer.place_index, limits=ImageLimits(max_bytes=100))
    text = "the image has more than 100 bytes. Send a smaller photo: the model looks at a small version of it anyway."
    with refused(ImageError, text, "body_too_large"):
        strict.decode(photos[0])


def test_an_index_of_another_bundle_is_refused(published: PublishedPlaces, bundle: Bundle, tmp_path: Path) -> None:
    other = write_other_bundle(bundle, tmp_path / "other")
    index = PlaceIndex.open(published.indexes / published.name)
    text = (
        f"{index.folder}: the index was described with bundle {bundle.name} ({bundle.fingerprint[:12]}), "
        f"not with other ({other.fingerprint[:12]}). "
        "Leave out --bundle, for the index holds its own; or index the photos again with this one."
    )
    with refused(ModelIndexMismatchError, text, "model_index_mismatch"):
        Localizer(Describer(other), index)


@pytest.mark.parametrize("top_k", [0, -1, 101])
def test_top_k_outside_its_range_is_refused(top_k: int) -> None:
    text = f"top_k {top_k} is outside [1, 100]. Ask for 1 to 100 matches."
    with refused(ParameterError, text, "validation_error"):
        LocalizeOptions(top_k=top_k)


@pytest.mark.parametrize("min_score", [-1.01, 1.01, math.nan])
def test_min_score_outside_its_range_is_refused(min_score: float) -> None:
    text = f"min_score {min_score} is outside [-1, 1]. Give a cosine, or none."
    with refused(ParameterError, text, "validation_error"):
        LocalizeOptions(min_score=min_score)


def test_reference_ids_are_quoted_in_thumbnail_paths(describer: Describer, tmp_path: Path) -> None:
    places = make_places(tmp_path, 1)
    row = places.rows[0]
    odd = tmp_path / "photos" / "größe 100%?#.jpg"
    shutil.copy(row.path, odd)
    places.rows[:] = [type(row)(id="photos/größe 100%?#.jpg", path=odd, position=row.position)]
    build_index(places, describer, tmp_path / "indexes", "odd")
    localizer = Localizer(describer, PlaceIndex.open(tmp_path / "indexes" / "odd"))
    match = answer_of(localizer.localize_file(odd)).matches[0]
    assert match.reference_id == "photos/größe 100%?#.jpg"
    assert match.thumbnail == "/references/photos/gr%C3%B6%C3%9Fe%20100%25%3F%23.jpg/image"


def test_a_calibration_makes_confidence_radius_and_no_match(localizer: Localizer, photos: list[bytes]) -> None:
    """By its threshold of familiarity alone: a photo of the index is very familiar, noise is not."""
    known = calibration(min_familiarity=0.9)
    sure = Localizer(localizer.describer, localizer.place_index, calibration=known)
    answer = ask(sure, photos[4])
    assert answer.fix is not None
    assert answer.fix.calibrated
    assert answer.fix.radius_m == pytest.approx(known.methods["weighted_cluster"].radius_m(answer.fix.confidence))
    assert answer.status is (FixStatus.LOCATED if answer.fix.confidence >= 0.5 else FixStatus.AMBIGUOUS)
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    strange = ask(sure, encode(Image.fromarray(noise), "PNG"), top_k=4)
    assert (strange.status, strange.fix) == (FixStatus.NO_MATCH, None)
    assert len(strange.matches) == 4


def test_calibrated_confidence_does_not_depend_on_what_the_client_wants_to_be_told(
    localizer: Localizer, photos: list[bytes]
) -> None:
    sure = Localizer(localizer.describer, localizer.place_index, calibration=calibration(min_familiarity=-1.0))
    fixes = [ask(sure, photos[5], top_k=top_k).fix for top_k in (1, 5, 12, 100)]
    fixes.append(ask(sure, photos[5], min_score=0.99).fix)
    assert fixes[0] is not None
    assert fixes[0].calibrated
    assert all(fix == fixes[0] for fix in fixes)


def test_a_calibration_of_other_settings_is_not_used(localizer: Localizer, photos: list[bytes]) -> None:
    other = FixSettings(score_scale=0.005)
    unsure = Localizer(localizer.describer, localizer.place_index, other, calibration=calibration(min_familiarity=1.0))
    fix = ask(unsure, photos[4]).fix
    assert fix is not None
    assert not fix.calibrated


def test_the_calibration_of_the_index_is_used_and_another_may_be_given(
    localizer: Localizer, photos: list[bytes]
) -> None:
    index = copy.copy(localizer.place_index)
    index.manifest = index.manifest.model_copy(update={"calibration": calibration(min_familiarity=-1.0)})
    own = ask(Localizer(localizer.describer, index), photos[3])
    assert own.fix is not None
    assert own.fix.calibrated
    strict = calibration(min_familiarity=1.0, right_share=0.1)
    assert Localizer(localizer.describer, index, calibration=strict).fix_maker.calibration == strict
    assert Localizer(localizer.describer, index, calibration=None).fix_maker.calibration is None
    assert localizer.fix_maker.calibration is None


def test_a_whitened_index_is_centred_in_its_own_space(
    describer: Describer, published: PublishedPlaces, photos: list[bytes], tmp_path: Path
) -> None:
    """A photo of the index is as familiar there as can be, though stored descriptors are shorter than the bundle's."""
    index = whiten(build_index(published.places, describer, tmp_path / "indexes", "white").folder, 6)
    assert index.manifest.descriptor_dim == 6
    sure = Localizer(describer, index, calibration=calibration(min_familiarity=0.99))
    for data in photos[:3]:
        answer = ask(sure, data)
        assert answer.fix is not None
        assert answer.fix.calibrated
