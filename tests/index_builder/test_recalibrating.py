"""Calibrating on photos of known position: right where references mislead, kept by updates, and never silent."""

import errno
import logging
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from index_builder.calibration import recalibrating
from index_builder.calibration.calibrating import (
    WITHIN_M,
    CalibrationSettings,
    Trials,
    fit_calibration,
    fit_method,
    fit_on_photos,
    make_trials,
    match_photos,
)
from index_builder.calibration.queries import DescribedIndex, OutsidePhotos, OutsideSearch, calibration_photos_of
from index_builder.calibration.recalibrating import balanced, recalibrate
from index_builder.index_design import IndexDesign
from index_builder.maintenance.versions import verify_version
from index_builder.publish import draft_version
from index_builder.update import append_references, build_index
from index_builder.version_writer import VersionContent, write_version
from retrieval.bundle import Bundle
from retrieval.describer import Describer
from retrieval.errors import IndexNotFoundError, ModelIndexMismatchError, ParameterError
from retrieval.evaluation import Positions, place_groups
from retrieval.geo import Position
from retrieval.index.folder import published_versions
from retrieval.index.manifest import Source
from retrieval.index.place_index import CALIBRATION_PHOTOS_NAME, PlaceIndex
from retrieval.index.reference_table import reference_rows
from retrieval.index.stores import FolderStore
from retrieval.localize.calibration import MethodCalibration
from retrieval.localize.evidence import FixSettings
from retrieval.references.reference import Reference
from tests.index_builder.made_up_street import DIM, MADE_UP_BUNDLE, made_up_street
from tests.places import make_places
from tests.retrieval.other_bundle import flip_byte, write_other_bundle

SETTINGS = CalibrationSettings(away_m=200.0)


def outside(index: DescribedIndex, *, prefix: str = "robot", dim: int = DIM) -> OutsidePhotos:
    """Photos of another camera, in sessions of their own."""
    every = np.arange(index.count)
    photos = OutsidePhotos.from_references(index.references(every), widened(index.descriptors(every), dim))
    sessions = [f"{prefix} {session}" for session in photos.sessions]
    return replace(photos, sessions=sessions, seconds=photos.seconds + 100 * 86_400.0)


def photographed(index: DescribedIndex, *, off_m: float) -> OutsidePhotos:
    """By a phone whose positions are off to the north."""
    photos = outside(index)
    return replace(photos, lat=photos.lat + off_m / 111_195.0)


def from_degrees(reference: Reference, lat: float, lon: float) -> Reference:
    return replace(reference, position=Position(float(lat), float(lon)))


def widened(descriptors: np.ndarray, dim: int) -> np.ndarray:
    return np.pad(descriptors, ((0, 0), (0, dim - descriptors.shape[1])))


@pytest.fixture(scope="module")
def known() -> DescribedIndex:
    return made_up_street(6, 80, noise=1.0, seed=1)


def test_where_another_camera_is_worse_photos_tell_and_references_do_not(known: DescribedIndex) -> None:
    given, later = (
        photographed(made_up_street(sessions, 70, noise=2.6, seed=seed), off_m=15.0)
        for sessions, seed in ((6, 2), (8, 3))
    )
    matches = OutsideSearch.of(known, later).search(FixSettings().matches_needed)
    trials = make_trials(known, later.lat, later.lon, matches, FixSettings())
    right = (trials.error_m <= WITHIN_M).mean()
    assert 0.15 < right < 0.8, "else the test says nothing"
    own = fit_calibration(known, SETTINGS)
    assert own is not None
    gaps, held = [], []
    for calibration in (own, fit_on_photos(known, given, SETTINGS)):
        method = calibration.of_method(FixSettings())
        confidence = method.confidences(trials.evidence)
        gaps.append(confidence.mean() - right)
        held.append((trials.error_m <= method.radii_m(confidence)).mean())
    assert gaps[0] > 0.1, "what references say is too sure"
    assert abs(gaps[1]) < 0.07
    assert abs(held[1] - 0.68) < 0.08 < abs(held[0] - 0.68)


def test_what_it_says_of_itself(known: DescribedIndex) -> None:
    calibration = fit_on_photos(known, outside(made_up_street(3, 70, noise=2.6, seed=2)), SETTINGS)
    assert (calibration.held_out, calibration.queries, calibration.groups) == ("photos", 210, 3)
    assert calibration.rejected_share == pytest.approx(0.07, abs=0.01)
    few = fit_on_photos(known, outside(made_up_street(3, 70, noise=2.6, seed=2)), replace(SETTINGS, max_queries=170))
    assert few.queries == 170


def test_enough_photos_of_places_in_the_index_are_drawn(known: DescribedIndex) -> None:
    """Three in four lie far off: of 150 drawn, 38 would be left, and more photos of the kind would not help."""
    given = outside(made_up_street(3, 200, noise=2.6, seed=2))
    off = replace(given, lat=given.lat + np.where(np.arange(given.count) % 4, 1.0, 0.0))
    for few in (replace(SETTINGS, max_queries=150), replace(SETTINGS, max_pairs=known.count)):
        matched = match_photos(known, off, few)
        assert matched.count == 600
        assert matched.known.sum() == 150
    assert match_photos(known, given, replace(SETTINGS, max_pairs=known.count)).count == 150


@pytest.mark.parametrize("session", ["robot drive-0", "elsewhere/drive-0", None])
def test_photos_that_were_indexed_meanwhile_teach_the_same(known: DescribedIndex, session: str | None) -> None:
    """A robot's photos are often appended to the index: they must find neither themselves nor their neighbours."""
    given = outside(made_up_street(1, 210, noise=2.6, seed=2))
    rows = known.references(np.arange(known.count))
    taken = [datetime.fromtimestamp(at, UTC) for at in given.seconds]
    new = [
        replace(one, session=session, captured_at=at)
        for one, at in zip(made_up_street(1, 210, seed=2).references(np.arange(210)), taken, strict=True)
    ]
    stored = np.concatenate([known.descriptors(np.arange(known.count)), given.descriptors])
    grown = DescribedIndex([*rows, *new], stored, MADE_UP_BUNDLE)
    # They change how far scores lie apart, by which matches weigh; here it is about which matches there are.
    assert grown.manifest.score_spread == pytest.approx(known.manifest.score_spread, rel=0.15)
    grown.manifest = grown.manifest.model_copy(update={"score_spread": known.manifest.score_spread})
    alone, together = (fit_on_photos(index, given, SETTINGS) for index in (known, grown))
    assert together.right_share == alone.right_share
    assert together.min_familiarity == pytest.approx(alone.min_familiarity, abs=1e-5)
    for name, method in alone.methods.items():
        np.testing.assert_allclose(together.methods[name].weights, method.weights, rtol=1e-3)


def test_photos_that_cannot_tell_are_refused(known: DescribedIndex) -> None:
    given = outside(made_up_street(2, 49, noise=2.6, seed=2))
    with pytest.raises(ParameterError, match="98 of 98 photos lie within 25 m") as caught:
        fit_on_photos(known, given, SETTINGS)
    assert caught.value.code == "not_calibrated"
    far = outside(made_up_street(3, 70, noise=2.6, seed=2))
    with pytest.raises(ParameterError, match="0 of 210 photos lie within 25 m"):
        fit_on_photos(known, replace(far, lat=far.lat + 1.0), SETTINGS)
    unknown = replace(far, sessions=[None] * 210, seconds=np.full(210, np.nan))
    rows = known.references(np.arange(known.count))
    copied = [replace(one, session=None, captured_at=None) for one in made_up_street(3, 70).references(np.arange(210))]
    places = [from_degrees(one, lat, lon) for one, lat, lon in zip(copied, far.lat, far.lon, strict=True)]
    stored = np.concatenate([known.descriptors(np.arange(known.count)), far.descriptors])
    with pytest.raises(ParameterError, match="210 of 210 photos are in the index, and neither session nor time"):
        fit_on_photos(DescribedIndex([*rows, *places], stored, MADE_UP_BUNDLE), unknown, SETTINGS)
    with pytest.raises(ParameterError, match=r"of 210 fixes are right; 150 right and as many wrong ones are needed"):
        fit_on_photos(known, far, replace(SETTINGS, min_of_a_kind=150))


def publish(indexes: Path, bundle: Bundle, known: DescribedIndex, photos: OutsidePhotos | None = None) -> PlaceIndex:
    """The same references as an index in a folder."""
    rows = reference_rows(known.references(np.arange(known.count)))
    descriptors = widened(known.descriptors(np.arange(known.count)), bundle.descriptor_dim)
    with draft_version(indexes, "street") as draft:
        content = VersionContent(
            name="street",
            version=draft.version,
            bundle=bundle,
            source=Source(spec="test:street", root=str(indexes)),
            table=rows,
            described=lambda some: descriptors[some],
            calibration_photos=photos,
        )
        write_version(draft.folder, content, IndexDesign(storage="fp32"))
        draft.name_version()
        draft.make_current()
    return PlaceIndex.open(indexes / "street")


def test_a_version_that_differs_in_its_calibration_alone(tmp_path: Path, bundle: Bundle, known: DescribedIndex) -> None:
    before = publish(tmp_path, bundle, known)
    assert before.manifest.calibration is not None
    given = outside(made_up_street(3, 70, noise=2.6, seed=2), dim=bundle.descriptor_dim)
    done = recalibrate(tmp_path, "street", given, bundle)
    after = PlaceIndex.open(tmp_path / "street")
    assert after.version == done.version != before.version
    assert after.manifest.calibration == done.calibration
    assert after.manifest.calibration is not None
    assert after.manifest.calibration.held_out == "photos"
    changed = {"version", "calibration", "calibration_photos", "files"}
    assert after.manifest.model_dump(exclude=changed) == before.manifest.model_dump(exclude=changed)
    for name in before.manifest.files:
        assert (after.folder / name).samefile(before.folder / name)
    store = FolderStore(tmp_path)
    assert verify_version(store, "street", done.version).whole
    # Pruned of all but the new one, it is still whole.
    assert store.prune("street", 1) == [before.version]
    assert verify_version(store, "street", done.version).whole

    forgotten = recalibrate(tmp_path, "street", None)
    again = PlaceIndex.open(tmp_path / "street")
    assert forgotten.check is None
    assert again.manifest.calibration == before.manifest.calibration
    assert again.manifest.calibration_photos == 0
    assert not (again.folder / CALIBRATION_PHOTOS_NAME).exists()


def test_the_check_judges_by_what_was_left_out(tmp_path: Path, bundle: Bundle, known: DescribedIndex) -> None:
    publish(tmp_path, bundle, known)
    given = outside(made_up_street(4, 70, noise=2.6, seed=2), dim=bundle.descriptor_dim)
    check = recalibrate(tmp_path, "street", given, bundle).check
    assert check is not None
    assert (check.photos, check.occasions) == (280, 4)
    assert check.before is not None
    assert check.before.stated_share > check.right_share + 0.04
    assert abs(check.now.stated_share - check.right_share) < 0.04
    assert abs(check.now.radius_share - 0.68) < 0.08
    one = outside(made_up_street(1, 280, noise=2.6, seed=2), dim=bundle.descriptor_dim)
    squares = recalibrate(tmp_path, "street", one).check
    assert squares is not None
    assert squares.occasions == 1
    assert squares.before_held_out == "photos"
    assert abs(squares.now.stated_share - squares.right_share) < 0.08


def test_photos_of_one_street_corner_are_judged_in_stretches(
    tmp_path: Path, bundle: Bundle, known: DescribedIndex
) -> None:
    publish(tmp_path, bundle, known)
    corner = outside(made_up_street(1, 280, noise=2.6, seed=2, street_m=10.0), dim=bundle.descriptor_dim)
    assert place_groups(Positions.from_degrees(corner.lat, corner.lon), 100.0).max() == 0
    check = recalibrate(tmp_path, "street", corner).check
    assert check is not None
    assert abs(check.now.stated_share - check.right_share) < 0.08


@pytest.mark.parametrize("sessions", [1, 4])
def test_nobody_is_judged_by_what_was_fitted_to_him(
    tmp_path: Path, bundle: Bundle, known: DescribedIndex, sessions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[set[bytes]] = []

    def watched(seen: Trials, unseen: Trials, settings: CalibrationSettings) -> MethodCalibration:
        fits.append({row.tobytes() for row in seen.evidence})
        assert len(unseen.evidence) <= len(seen.evidence)
        return fit_method(seen, unseen, settings)

    monkeypatch.setattr(recalibrating, "fit_method", watched)
    publish(tmp_path, bundle, known)
    given = outside(made_up_street(sessions, 280 // sessions, noise=2.6, seed=2), dim=bundle.descriptor_dim)
    check = recalibrate(tmp_path, "street", given, bundle).check
    assert check is not None
    assert check.split == ("squares" if sessions == 1 else "occasions")
    every = set.union(*fits)
    assert len(fits) >= 4
    assert len(every) == 280
    assert all(sum(row in fit for fit in fits) == len(fits) - 1 for row in every)


def test_a_few_photos_of_another_session_judge_nobody(tmp_path: Path, bundle: Bundle, known: DescribedIndex) -> None:
    publish(tmp_path, bundle, known)
    given = outside(made_up_street(1, 280, noise=2.6, seed=2), dim=bundle.descriptor_dim)
    strays = replace(given, sessions=["stray"] * 6 + given.sessions[6:])
    check = recalibrate(tmp_path, "street", strays, bundle).check
    assert check is not None
    assert (check.occasions, check.split) == (2, "squares")


def test_folds_hold_whole_labels_and_about_as_many_photos() -> None:
    labels = np.repeat([3, 0, 1, 2, 4], [50, 20, 10, 20, 1])
    parts = balanced(labels, 2)
    assert sorted(np.bincount(parts)) == [50, 51]
    for label in range(5):
        assert len(set(parts[labels == label])) == 1
    assert set(balanced(np.zeros(4, np.int64), 5)) == {0}


def test_photos_of_another_bundle_are_refused(tmp_path: Path, bundle: Bundle, known: DescribedIndex) -> None:
    """Somebody published a version of another bundle while the photos were being described."""
    before = publish(tmp_path, bundle, known)
    given = outside(made_up_street(3, 70, noise=2.6, seed=2), dim=bundle.descriptor_dim)
    with pytest.raises(ModelIndexMismatchError):
        recalibrate(tmp_path, "street", given, write_other_bundle(bundle, tmp_path / "other"))
    assert published_versions(tmp_path / "street") == [before.version]


def test_nothing_is_published_of_photos_that_cannot_tell(tmp_path: Path, bundle: Bundle, known: DescribedIndex) -> None:
    before = publish(tmp_path, bundle, known)
    few = outside(made_up_street(1, 20, noise=2.6, seed=2), dim=bundle.descriptor_dim)
    with pytest.raises(ParameterError, match="100 are needed"):
        recalibrate(tmp_path, "street", few)
    assert published_versions(tmp_path / "street") == [before.version]
    with pytest.raises(IndexNotFoundError):
        recalibrate(tmp_path / "none", "street", few)


def test_a_disk_without_links_gets_copies(
    tmp_path: Path, bundle: Bundle, known: DescribedIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = publish(tmp_path, bundle, known)

    def refused(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refused)
    version = recalibrate(tmp_path, "street", None).version
    after = PlaceIndex.open(tmp_path / "street")
    assert after.version == version
    for name in before.manifest.files:
        assert not (after.folder / name).samefile(before.folder / name)
        assert (after.folder / name).read_bytes() == (before.folder / name).read_bytes()
    assert held_graph(after).read_bytes() == held_graph(before).read_bytes()
    assert not held_graph(after).samefile(held_graph(before))


def held_graph(index: PlaceIndex) -> Path:
    held = index.held_bundle()
    assert held is not None
    return held.graph_path("fp32")


def test_a_recalibrated_version_holds_the_bundle_too(tmp_path: Path, bundle: Bundle, known: DescribedIndex) -> None:
    before = publish(tmp_path, bundle, known)
    recalibrate(tmp_path, "street", None)
    after = PlaceIndex.open(tmp_path / "street")
    assert after.version != before.version
    assert held_graph(after).samefile(held_graph(before))


def test_a_version_that_is_written_anew_is_calibrated_on_its_photos(
    tmp_path: Path, bundle: Bundle, known: DescribedIndex
) -> None:
    publish(tmp_path, bundle, known)
    given = outside(made_up_street(3, 70, noise=2.6, seed=2), dim=bundle.descriptor_dim)
    done = recalibrate(tmp_path, "street", given, bundle)
    kept = calibration_photos_of(PlaceIndex.open(tmp_path / "street").folder, bundle.fingerprint)
    again = publish(tmp_path, bundle, known, kept)
    assert again.manifest.calibration == done.calibration
    assert again.manifest.calibration_photos == given.count


def test_updates_keep_the_photos_and_say_when_they_cannot(
    tmp_path: Path, describer: Describer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Twelve references are too few to be calibrated by: the photos stay for the day there are more."""
    places = make_places(tmp_path / "photos", 12)
    build_index(replace(places, rows=places.rows[:10]), describer, tmp_path / "indexes", "town")
    given = outside(made_up_street(1, 120, noise=2.6), dim=describer.bundle.descriptor_dim)
    for name in ("match_photos", "calibration_of", "check_on_matches"):
        monkeypatch.setattr(recalibrating, name, lambda *_: None)
    recalibrate(tmp_path / "indexes", "town", given)

    with caplog.at_level(logging.WARNING, "sightfix.index"):
        append_references(places, describer, tmp_path / "indexes", "town")
    appended = PlaceIndex.open(tmp_path / "indexes" / "town")
    assert (appended.count, appended.manifest.calibration_photos) == (12, 120)
    assert "100 are needed to calibrate" in caplog.text
    assert "calibrated on its own references instead" in caplog.text
    flip_byte(appended.folder / "vectors.faiss")
    build_index(places, describer, tmp_path / "indexes", "town")
    assert PlaceIndex.open(tmp_path / "indexes" / "town").manifest.calibration_photos == 120

    caplog.clear()
    flip_byte(PlaceIndex.open(tmp_path / "indexes" / "town").folder / CALIBRATION_PHOTOS_NAME)
    with caplog.at_level(logging.WARNING, "sightfix.index"):
        build_index(places, describer, tmp_path / "indexes", "town")
    assert PlaceIndex.open(tmp_path / "indexes" / "town").manifest.calibration_photos == 0
    assert "was calibrated on photos is unknown" in caplog.text
    recalibrate(tmp_path / "indexes", "town", given)

    caplog.clear()
    other = Describer(write_other_bundle(describer.bundle, tmp_path / "other"))
    with caplog.at_level(logging.WARNING, "sightfix.index"):
        build_index(places, other, tmp_path / "indexes", "town")
    assert PlaceIndex.open(tmp_path / "indexes" / "town").manifest.calibration_photos == 0
    assert "120 photos that another bundle described" in caplog.text
