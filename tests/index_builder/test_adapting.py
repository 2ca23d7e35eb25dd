"""An index adapts the bundle to its photos; what it is adapted to stays until it is adapted anew."""

import signal
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from export.exporting import ExportSettings, write_export
from index_builder.adapting import (
    AdaptMode,
    adaptation_text,
    without_adaptation,
)
from index_builder.describing import DescribeSettings
from index_builder.maintenance.doctor import diagnose
from index_builder.update import (
    ENGINES,
    EngineName,
    UpdateSettings,
    append_references,
    build_index,
    bundle_for_build,
    remove_references,
)
from index_builder.update_observer import Update, UpdateObserver
from retrieval.bundle import Bundle, open_bundle
from retrieval.bundle.exportable import bundle_model
from retrieval.bundle.vlad import LEAST_PHOTOS
from retrieval.describer import Describer
from retrieval.errors import ParameterError
from retrieval.images import read_image
from retrieval.index.folder import published_versions
from retrieval.index.place_index import PlaceIndex
from sightfix.figures.doctor_page import doctor_page
from tests.forked import run_forked
from tests.index_builder import ray_in_one_process
from tests.index_builder.killed_build import die
from tests.places import Places, make_places
from tests.retrieval.engines.colour_bundle import write_colour_bundle


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return make_places(tmp_path, 14)


def build(places: Places, indexes: Path, adapt: AdaptMode = "auto", bundle: Bundle | None = None) -> Update:
    chosen = bundle or bundle_for_build(indexes, "town")
    return build_index(places, Describer(chosen, threads=1), indexes, "town", UpdateSettings(adapt=adapt))


def opened(indexes: Path) -> tuple[PlaceIndex, Bundle]:
    index = PlaceIndex.open(indexes / "town")
    held = index.held_bundle()
    assert held is not None
    return index, held


def test_an_index_is_adapted_and_keeps_that(places: Places, tmp_path: Path) -> None:
    indexes = tmp_path / "indexes"
    built = build(places, indexes)
    index, held = opened(indexes)
    assert held.manifest.adaptation is not None
    assert (held.manifest.adaptation.photos, index.manifest.descriptor_dim, built.taken_over) == (14, 512, 0)
    assert adaptation_text(held).startswith("adapted to 14 photos: ")
    # What was described while fitting is what the graph describes.
    rows = np.array([index.row_of(row.id) for row in places.rows])
    images = np.stack([read_image(row.path, held.preprocessing) for row in places.rows])
    cosines = (index.descriptors(rows) * Describer(held).describe(images)).sum(axis=1)
    assert cosines.min() >= 0.999  # stored as fp16
    fingerprint = held.fingerprint
    more = make_places(tmp_path, 17)
    assert build(more, indexes).taken_over == 14
    assert opened(indexes)[1].fingerprint == fingerprint
    again = append_references(make_places(tmp_path, 18), Describer(opened(indexes)[1]), indexes, "town")
    assert (again.kept, again.added) == (17, 1)
    remove_references(["photos/0000.jpg"], Describer(opened(indexes)[1]), indexes, "town")
    assert opened(indexes)[1].fingerprint == fingerprint


def test_the_shipped_bundle_named_again_keeps_what_was_made_of_it(places: Places, tmp_path: Path) -> None:
    indexes = tmp_path / "indexes"
    build(places, indexes)
    fingerprint = opened(indexes)[1].fingerprint
    build(make_places(tmp_path, 15), indexes, bundle=open_bundle())
    assert opened(indexes)[1].fingerprint == fingerprint
    build(make_places(tmp_path, 15), indexes, "again")
    refitted = opened(indexes)[1]
    assert refitted.fingerprint != fingerprint
    assert refitted.manifest.adaptation is not None
    assert refitted.manifest.adaptation.photos == 15


def test_an_index_that_was_not_adapted_is_so_when_it_is_made_again(places: Places, tmp_path: Path) -> None:
    indexes = tmp_path / "indexes"
    build(places, indexes, "never")
    assert opened(indexes)[1].fingerprint == open_bundle().fingerprint
    build(places, indexes)
    adapted = opened(indexes)[1]
    assert adapted.manifest.adaptation is not None
    assert without_adaptation(adapted, open_bundle()).fingerprint == open_bundle().fingerprint


def test_what_is_not_adapted_is_left_as_it_is(tmp_path: Path) -> None:
    """A bundle of somebody else's is not replaced by the shipped one."""
    colours = write_colour_bundle(tmp_path / "colours")
    assert without_adaptation(colours, open_bundle()) is colours


def test_what_an_adapted_bundle_was_made_from_must_be_here(places: Places, tmp_path: Path) -> None:
    build(places, tmp_path / "indexes")
    with pytest.raises(ParameterError, match="the index is adapted, from bundle efficientnet-lite0-gem-1280"):
        without_adaptation(opened(tmp_path / "indexes")[1], write_colour_bundle(tmp_path / "colours"))


def test_no_photo_is_described_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fitting describes those that it is fitted to; four are looked for afterwards, to check the index."""
    places, runs = make_places(tmp_path, 60), Counter[bytes]()
    run = onnxruntime.InferenceSession.run

    def counted(session: onnxruntime.InferenceSession, names: object, feeds: dict[str, np.ndarray], *more: object):
        runs.update(image.tobytes() for image in feeds.get("images", ()))
        return run(session, names, feeds, *more)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", counted)
    build(places, tmp_path / "indexes")
    photos = [read_image(row.path, open_bundle().preprocessing).tobytes() for row in places.rows]
    assert Counter(runs[photo] for photo in photos) == {1: 56, 2: 4}


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_describes_with_the_adapted_bundle(
    engine: EngineName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Photos that the bundle was not fitted to, too."""
    for name, module in ray_in_one_process.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("retrieval.bundle.adaptation.photos_to_fit", lambda lat, lon: np.arange(LEAST_PHOTOS))
    places = make_places(tmp_path, 17)
    settings = UpdateSettings(adapt="auto", engine=engine, part_photos=4)
    build_index(places, Describer(open_bundle(), threads=1), tmp_path / "indexes", "town", settings)
    index, held = opened(tmp_path / "indexes")
    assert held.manifest.adaptation is not None
    assert held.manifest.adaptation.photos == LEAST_PHOTOS
    images = np.stack([read_image(row.path, held.preprocessing) for row in places.rows])
    stored = index.descriptors(np.array([index.row_of(row.id) for row in places.rows]))
    assert (stored * Describer(held).describe(images)).sum(axis=1).min() >= 0.999
    # The next version goes on with it, whoever describes.
    more = make_places(tmp_path, 19)
    build_index(more, Describer(open_bundle(), threads=1), tmp_path / "indexes", "town", settings)
    assert opened(tmp_path / "indexes")[1].fingerprint == held.fingerprint


def test_a_few_photos_are_described_as_they_are(tmp_path: Path) -> None:
    build(make_places(tmp_path, LEAST_PHOTOS - 1), tmp_path / "indexes")
    assert opened(tmp_path / "indexes")[1].manifest.adaptation is None


def test_photos_that_cannot_be_read_take_no_part(places: Places, tmp_path: Path) -> None:
    places.rows[5].path.write_bytes(b"no photo")
    describer = Describer(open_bundle(), threads=1)
    settings = UpdateSettings(adapt="auto", describe=DescribeSettings(max_unreadable=1))
    built = build_index(places, describer, tmp_path / "indexes", "town", settings)
    adaptation = opened(tmp_path / "indexes")[1].manifest.adaptation
    assert adaptation is not None
    assert (adaptation.photos, built.count) == (13, 13)
    assert [one.path for one in built.unreadable] == ["photos/0005.jpg"]


def test_a_bundle_without_dense_outputs_is_used_as_it_is(places: Places, tmp_path: Path) -> None:
    colours = write_colour_bundle(tmp_path / "colours")
    build(places, tmp_path / "indexes", bundle=colours)
    assert opened(tmp_path / "indexes")[1].fingerprint == colours.fingerprint
    with pytest.raises(ParameterError, match="cannot be adapted: its graph has no dense outputs"):
        build(places, tmp_path / "indexes", "again", colours)


def fit_and_die(folder: Path, indexes: Path, at: str) -> None:
    class Killer(UpdateObserver):
        def adapting(self, done: int, total: int) -> None:
            if at == "fitting" and done:
                die()

        def reached(self, step: str) -> None:  # type: ignore[override]
            if at == step:
                die()

    settings = UpdateSettings(adapt="auto")
    build_index(
        make_places(folder, 14), Describer(open_bundle(), threads=1), indexes, "town", settings, observer=Killer()
    )


@pytest.mark.parametrize("at", ["fitting", "adapted", "described"])
def test_killed_while_adapting_nothing_is_published_and_the_next_run_goes_on(
    places: Places, tmp_path: Path, at: str
) -> None:
    indexes = tmp_path / "indexes"
    assert run_forked(fit_and_die, tmp_path, indexes, at, log=tmp_path / "log") == -signal.SIGKILL
    assert published_versions(indexes / "town") == []
    fitted: list[int] = []

    class Seen(UpdateObserver):
        def adapting(self, done: int, total: int) -> None:
            fitted.append(done)

    settings = UpdateSettings(adapt="auto")
    build_index(places, Describer(open_bundle(), threads=1), indexes, "town", settings, observer=Seen())
    assert bool(fitted) == (at == "fitting")
    assert opened(indexes)[1].manifest.adaptation is not None


def test_too_few_photos_are_an_error_where_adapting_was_asked_for(tmp_path: Path) -> None:
    few, describer = make_places(tmp_path, LEAST_PHOTOS - 1), Describer(open_bundle(), threads=1)
    for settings in (UpdateSettings(adapt="again"), UpdateSettings(adapt="auto", dim=64)):
        with pytest.raises(ParameterError, match="10 photos or more; 9 photos can be read"):
            build_index(few, describer, tmp_path / "indexes", "town", settings)
    assert published_versions(tmp_path / "indexes" / "town") == []


def test_numbers_that_the_layers_cannot_give(places: Places, tmp_path: Path) -> None:
    describer = Describer(open_bundle(), threads=1)
    with pytest.raises(ParameterError, match="numbers at most, not 100000"):
        build_index(places, describer, tmp_path / "indexes", "town", UpdateSettings(adapt="auto", dim=100_000))


def test_the_numbers_asked_for_stay_until_others_are(places: Places, tmp_path: Path) -> None:
    indexes, settings = tmp_path / "indexes", UpdateSettings(adapt="auto", dim=64)
    build_index(places, Describer(open_bundle(), threads=1), indexes, "town", settings)
    small = opened(indexes)[1]
    assert small.descriptor_dim == 64
    assert build(places, indexes).taken_over == 14
    assert opened(indexes)[1].fingerprint == small.fingerprint


def test_a_lower_precision_is_refused_only_where_there_is_something_to_adapt(places: Places, tmp_path: Path) -> None:
    fp16 = write_export(
        bundle_model(None), tmp_path / "fp16", ExportSettings(precisions=("fp16",), photos=[*places] * 5)
    )
    describer = Describer(fp16, precision="fp16", threads=1)
    settings = UpdateSettings(adapt="auto")
    with pytest.raises(ParameterError, match="adapted in fp32, not in fp16"):
        build_index(places, describer, tmp_path / "indexes", "town", settings)
    built = build_index(make_places(tmp_path / "few", 5), describer, tmp_path / "indexes", "few", settings)
    assert built.count == 5


@pytest.mark.parametrize("at", ["described", "vectors written"])
def test_stopped_by_hand_the_next_run_does_not_adapt_again(places: Places, tmp_path: Path, at: str) -> None:
    class Stopped(UpdateObserver):
        def reached(self, step: str) -> None:  # type: ignore[override]
            if step == at:
                raise KeyboardInterrupt

    describer, settings = Describer(open_bundle(), threads=1), UpdateSettings(adapt="auto")
    with pytest.raises(KeyboardInterrupt):
        build_index(places, describer, tmp_path / "indexes", "town", settings, observer=Stopped())

    class Fails(UpdateObserver):
        def adapting(self, done: int, total: int) -> None:
            raise AssertionError("adapts again")

    build_index(places, describer, tmp_path / "indexes", "town", settings, observer=Fails())
    assert opened(tmp_path / "indexes")[1].manifest.adaptation is not None


def test_a_damaged_sample_is_fitted_again(places: Places, tmp_path: Path) -> None:
    indexes, settings = tmp_path / "indexes", UpdateSettings(adapt="auto")
    assert run_forked(fit_and_die, tmp_path, indexes, "adapted", log=tmp_path / "log") == -signal.SIGKILL
    (sample,) = indexes.rglob("sample.npz")
    sample.write_bytes(sample.read_bytes()[: sample.stat().st_size // 2])
    build_index(places, Describer(open_bundle(), threads=1), indexes, "town", settings)
    assert opened(indexes)[1].manifest.adaptation is not None


def test_the_doctor_says_when_photos_do_not_fit_the_vocabulary(places: Places, tmp_path: Path) -> None:
    indexes = tmp_path / "indexes"
    build(places, indexes)
    index, held = opened(indexes)
    fit = diagnose(index).vocabulary
    assert fit is not None
    assert (fit.fitted_on, fit.photos, fit.misfits, fit.refit) == (14, 14, 0, False)
    assert 0.9 < fit.error < 1.1
    # Photos of another kind are appended.
    more = make_places(tmp_path, 17)
    chequers = (np.indices((256, 256)).sum(axis=0) // 8 % 2 * 255).astype(np.uint8)
    for row in more.rows[14:]:
        Image.fromarray(chequers).save(row.path)
    append_references(more, Describer(held, threads=1), indexes, "town")
    grown = opened(indexes)[0]
    fit = diagnose(grown).vocabulary
    assert fit is not None
    assert (fit.photos, fit.misfits, fit.refit) == (17, 3, True)
    assert fit.error > 1.1
    assert "adapted to 14 photos" in str(fit)
    assert "Adapting anew would help" in doctor_page(grown, diagnose(grown))
    for row in more.rows:
        row.path.unlink()
    assert diagnose(grown).vocabulary is None


def test_the_doctor_advises_to_refit_what_was_fitted_to_few_of_many(places: Places, tmp_path: Path) -> None:
    indexes = tmp_path / "indexes"
    build(places, indexes)
    append_references(make_places(tmp_path, 3 * 14), Describer(opened(indexes)[1], threads=1), indexes, "town")
    fit = diagnose(opened(indexes)[0]).vocabulary
    assert fit is not None
    assert fit.refit


def test_an_index_that_is_not_adapted_has_no_vocabulary_to_fit(places: Places, tmp_path: Path) -> None:
    build(places, tmp_path / "indexes", "never")
    assert diagnose(opened(tmp_path / "indexes")[0]).vocabulary is None
