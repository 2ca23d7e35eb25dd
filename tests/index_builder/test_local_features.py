"""Local features lie beside the vectors, follow their rows from version to version, and are nobody's business else."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import index_builder.version_writer
from index_builder.index_design import IndexDesign
from index_builder.update import UpdateSettings, append_references, build_index, remove_references
from index_builder.update_observer import Update, UpdateObserver, UpdateStep
from retrieval.describer import Describer
from retrieval.errors import MissingExtraError, PlaceIndexError
from retrieval.images import LeftOut
from retrieval.index.place_index import LOCAL_FEATURES_NAME, PlaceIndex
from retrieval.verification.local_features import FeatureSettings, LocalFeatures, extract_features
from tests.index_builder.recording_observer import RecordingObserver, StoppedError
from tests.manifest_hash import write_manifest_hash
from tests.places import Places
from tests.textured import make_textured_places, textured


class FeaturesObserver(RecordingObserver):
    """Remembers what is reported of local features."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[int, int]] = []

    def local_features(self, done: int, total: int, without: Sequence[LeftOut]) -> None:
        self.told.append((done, total))


def build(
    tmp_path: Path,
    places: Places,
    describer: Describer,
    *,
    observer: UpdateObserver | None = None,
    wanted: bool | None = True,
    again: bool = False,
) -> Update:
    settings = UpdateSettings(design=IndexDesign(local_features=wanted), describe_again=again)
    return build_index(places, describer, tmp_path / "indexes", "town", settings, observer=observer)


def number(reference_id: str) -> int:
    return int(Path(reference_id).stem)


def same(one: LocalFeatures, other: LocalFeatures) -> bool:
    return np.array_equal(one.points, other.points) and np.array_equal(one.descriptors, other.descriptors)


def check_features(folder: Path) -> PlaceIndex:
    """Every row has the features of its own photo."""
    index = PlaceIndex.open(folder)
    stored = index.local_features
    assert stored is not None
    for row, reference in enumerate(index.references(range(index.count))):
        assert same(stored.features(row), extract_features(textured(number(reference.id)), FeatureSettings()))
    return index


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The photos that features are computed of from here on."""
    names: list[str] = []
    decode = index_builder.version_writer.decode_features

    def counted(*args, where: str, **kwargs) -> LocalFeatures:
        names.append(Path(where).name)
        return decode(*args, where=where, **kwargs)

    monkeypatch.setattr(index_builder.version_writer, "decode_features", counted)
    return names


def test_every_row_has_the_features_of_its_photo(tmp_path: Path, describer: Describer) -> None:
    observer = FeaturesObserver()
    built = build(tmp_path, make_textured_places(tmp_path, 5), describer, observer=observer)
    check_features(built.folder)
    assert LOCAL_FEATURES_NAME in built.manifest.files
    assert built.manifest.local_features is not None
    assert built.manifest.local_features.without == 0
    assert built.without_features == []
    assert observer.told == [(done, 5) for done in range(1, 6)]
    mapped = PlaceIndex.open(built.folder, memory_map=True).local_features
    assert mapped is not None
    assert len(mapped.features(0)) > 100


def test_without_being_asked_for_there_are_none(tmp_path: Path, describer: Describer, decoded: list[str]) -> None:
    built = build(tmp_path, make_textured_places(tmp_path, 3), describer, wanted=None)
    assert built.manifest.local_features is None
    assert not (built.folder / LOCAL_FEATURES_NAME).exists()
    assert PlaceIndex.open(built.folder).local_features is None
    assert decoded == []


def test_an_index_from_before_there_were_any_is_read(tmp_path: Path, describer: Describer) -> None:
    built = build(tmp_path, make_textured_places(tmp_path, 3), describer, wanted=None)
    manifest = built.folder / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["local_features"]
    manifest.write_text(json.dumps(content))
    write_manifest_hash(manifest)
    assert PlaceIndex.open(built.folder).local_features is None


def test_a_photo_that_vanished_or_changed_is_named_and_has_none(tmp_path: Path, describer: Describer) -> None:
    places = make_textured_places(tmp_path, 4)

    class Meddler(UpdateObserver):
        def reached(self, step: UpdateStep) -> None:
            if step == "vectors written":
                places.rows[1].path.rename(tmp_path / "elsewhere.png")
                Image.fromarray(textured(99)).save(places.rows[2].path)
            if step == "manifest written":  # the quality check would miss them, too: it gets them back in time
                (tmp_path / "elsewhere.png").rename(places.rows[1].path)
                Image.fromarray(textured(2)).save(places.rows[2].path)

    built = build(tmp_path, places, describer, observer=Meddler())
    assert sorted((photo.path, photo.code) for photo in built.without_features) == [
        ("photos/0001.png", "image_unreadable"),
        ("photos/0002.png", "photo_changed"),
    ]
    assert built.manifest.local_features is not None
    assert built.manifest.local_features.without == 2
    index = PlaceIndex.open(built.folder)
    assert index.local_features is not None
    sizes = [len(index.local_features.features(index.row_of(f"photos/000{place}.png"))) for place in range(4)]
    assert [size > 0 for size in sizes] == [True, False, False, True]
    build(tmp_path, places, describer)
    check_features(tmp_path / "indexes" / "town")  # what was missing is tried again


def test_an_update_computes_those_of_new_photos_only(tmp_path: Path, describer: Describer, decoded: list[str]) -> None:
    places = make_textured_places(tmp_path, 4)
    build(tmp_path, places, describer)
    assert sorted(decoded) == [f"000{place}.png" for place in range(4)]
    decoded.clear()
    more = make_textured_places(tmp_path, 6)
    append_references(more, describer, tmp_path / "indexes", "town")
    assert sorted(decoded) == ["0004.png", "0005.png"]
    assert check_features(tmp_path / "indexes" / "town").count == 6
    decoded.clear()
    remove_references(["photos/0001.png", "photos/0003.png"], describer, tmp_path / "indexes", "town")
    assert decoded == []
    assert check_features(tmp_path / "indexes" / "town").count == 4


def test_an_index_made_anew_keeps_them_unless_the_design_says_no(
    tmp_path: Path, describer: Describer, decoded: list[str]
) -> None:
    places = make_textured_places(tmp_path, 3)
    build(tmp_path, places, describer)
    decoded.clear()
    build(tmp_path, places, describer, wanted=None)
    check_features(tmp_path / "indexes" / "town")
    assert decoded == []
    build(tmp_path, places, describer, wanted=None, again=True)
    check_features(tmp_path / "indexes" / "town")
    assert len(decoded) == 3
    build(tmp_path, places, describer, wanted=False)
    assert PlaceIndex.open(tmp_path / "indexes" / "town").local_features is None


def test_what_is_added_later_needs_no_describing(tmp_path: Path, describer: Describer) -> None:
    places = make_textured_places(tmp_path, 3)
    build(tmp_path, places, describer, wanted=None)
    assert build(tmp_path, places, describer).taken_over == 3
    check_features(tmp_path / "indexes" / "town")


def test_a_damaged_file_is_refused(tmp_path: Path, describer: Describer) -> None:
    built = build(tmp_path, make_textured_places(tmp_path, 3), describer)
    path = built.folder / LOCAL_FEATURES_NAME
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(PlaceIndexError, match=r"local_features\.arrow: the file is damaged"):
        PlaceIndex.open(built.folder)
    path.unlink()
    with pytest.raises(PlaceIndexError, match=r"local_features\.arrow: the file cannot be read"):
        PlaceIndex.open(built.folder, memory_map=True)


def test_what_another_index_holds_is_refused(tmp_path: Path, describer: Describer) -> None:
    built = build(tmp_path, make_textured_places(tmp_path, 3), describer)
    manifest = built.folder / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["files"][LOCAL_FEATURES_NAME]
    manifest.write_text(json.dumps(content))
    write_manifest_hash(manifest)
    with pytest.raises(PlaceIndexError, match=r"the manifest names no local_features\.arrow"):
        PlaceIndex.open(built.folder)


def test_the_work_can_be_stopped_and_nothing_is_published(tmp_path: Path, describer: Describer) -> None:
    class Stopper(UpdateObserver):
        def local_features(self, done: int, total: int, without: Sequence[LeftOut]) -> None:
            if done == 2:
                raise StoppedError

    with pytest.raises(StoppedError):
        build(tmp_path, make_textured_places(tmp_path, 6), describer, observer=Stopper())
    assert list((tmp_path / "indexes" / "town" / "versions").iterdir()) == []
    build(tmp_path, make_textured_places(tmp_path, 6), describer)
    check_features(tmp_path / "indexes" / "town")


def test_without_opencv_nothing_is_described_first(
    tmp_path: Path, describer: Describer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    places = make_textured_places(tmp_path, 3)
    observer = RecordingObserver()
    with pytest.raises(MissingExtraError, match=r"pip install 'sightfix\[rerank\]'"):
        build(tmp_path, places, describer, observer=observer)
    assert "planned" not in observer.steps
    shutil.rmtree(tmp_path / "indexes", ignore_errors=True)
    build(tmp_path, places, describer, wanted=None)  # needs none
