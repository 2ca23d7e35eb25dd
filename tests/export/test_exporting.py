"""The whole way from a source to a written bundle."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from export.exporting import ExportSettings, WhiteningSettings, write_export
from retrieval.bundle import Provenance, open_bundle
from retrieval.bundle.exportable import ExportableModel, bundle_model, run_on_cpu
from retrieval.bundle.whitening import fit_whitening
from retrieval.describer import Describer
from retrieval.errors import ParameterError, StorageError
from retrieval.evaluation.eval_set import EvalSet
from retrieval.images import Preprocessing, read_image
from retrieval.references.reference import Reference
from tests.places import make_places
from tests.retrieval.mean_colour import mean_colour_graph

SIZE = Preprocessing(height=16, width=32)


@pytest.fixture(scope="module")
def source() -> ExportableModel:
    graph = mean_colour_graph(16, 32)

    def by_hand(images: np.ndarray) -> np.ndarray:
        means = images.astype(np.float64).mean(axis=(1, 2))
        return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), np.float32)

    return ExportableModel(
        name="mean colour",
        graph=graph,
        preprocessing=SIZE,
        descriptor_dim=3,
        provenance=Provenance(
            backbone="none", aggregation="mean", weights="none", weights_licence="none", training_data="none"
        ),
        licence="Apache-2.0",
        original=by_hand,
        original_name="numpy",
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Reference]:
    return make_places(tmp_path_factory.mktemp("photos"), 20).rows


def test_as_it_is(source: ExportableModel, tmp_path: Path) -> None:
    bundle = write_export(source, tmp_path / "bundle", ExportSettings(name="colours"))
    assert bundle.name == "colours"
    assert bundle.manifest.parity is not None
    assert bundle.manifest.parity.reference == "numpy"
    assert bundle.manifest.parity.min_cosine == pytest.approx(1)
    assert bundle.manifest.whitening is None
    stated = {entry.key: entry.value for entry in onnx.load(bundle.graph_path("fp32")).metadata_props}
    assert stated == {"sightfix.name": "colours", "sightfix.objective": "none", "sightfix.descriptor_dim": "3"}


def test_whitened(source: ExportableModel, photos: list[Reference], tmp_path: Path) -> None:
    evaluation = EvalSet("line", tuple(photos), tuple(photos[:5]))
    steps: list[tuple[str, int]] = []

    class Bar:
        def __init__(self, what: str, total: int) -> None:
            self.what, self.total, self.done = what, total, 0

        def __enter__(self):
            return self.advance

        def advance(self, count: int) -> None:
            self.done += count

        def __exit__(self, *_: object) -> None:
            assert self.done == self.total
            steps.append((self.what, self.total))

    settings = ExportSettings(whitening=WhiteningSettings(2, photos, "a line of places", 1.0), eval_sets=[evaluation])
    bundle = write_export(source, tmp_path / "bundle", settings, on_step=Bar)
    assert steps == [("Describing photos to whiten by", 20), ("Measuring recall", 25)]
    report = bundle.manifest.whitening
    assert report is not None
    assert (report.from_dim, report.dim, report.power, report.photos) == (3, 2, 1.0, 20)
    assert report.fitted_on == "a line of places"
    assert [change.evaluation_set for change in report.recall] == ["line"]
    assert report.recall[0].before == 1.0
    assert bundle.descriptor_dim == 2
    images = np.stack([read_image(photo.path, SIZE) for photo in photos])
    raw = source.original(images)
    whitened = fit_whitening(run_on_cpu(source.graph)(images), 2, 1.0).apply(raw)
    np.testing.assert_allclose(Describer(bundle, threads=1).describe(images), whitened, atol=1e-4)
    card = (bundle.folder / "MODEL_CARD.md").read_text()
    assert "From 3 to 2 numbers, with power 1 of the singular values, fitted on 20 photos of a line of places." in card


def test_whitened_bundles_that_differ_have_names_that_differ(
    source: ExportableModel, photos: list[Reference], tmp_path: Path
) -> None:
    wanted = {
        "first": WhiteningSettings(2, photos, "a line"),
        "again": WhiteningSettings(2, photos, "a line"),
        "others": WhiteningSettings(2, photos[:10], "a line"),
        "power": WhiteningSettings(2, photos, "a line", 1.0),
    }
    made = {name: write_export(source, tmp_path / name, ExportSettings(whitening=w)) for name, w in wanted.items()}
    assert (made["again"].name, made["again"].fingerprint) == (made["first"].name, made["first"].fingerprint)
    assert len({bundle.name for bundle in made.values()}) == len({bundle.fingerprint for bundle in made.values()}) == 3
    for bundle in made.values():
        assert re.fullmatch(r"mean colour-whitened-[0-9a-f]{8}", bundle.name)
        stated = {entry.key: entry.value for entry in onnx.load(bundle.graph_path("fp32")).metadata_props}
        assert stated["sightfix.name"] == bundle.name
    camera = ExportSettings(whitening=wanted["first"], camera=(48, 80))
    assert write_export(source, tmp_path / "camera", camera).name == f"{made['first'].name}-camera-80x48"
    named = ExportSettings(name="mine", whitening=wanted["first"], camera=(48, 80))
    assert write_export(source, tmp_path / "named", named).name == "mine"


def test_for_a_camera(source: ExportableModel, tmp_path: Path) -> None:
    bundle = write_export(source, tmp_path / "bundle", ExportSettings(camera=(48, 80)))
    assert (bundle.preprocessing.height, bundle.preprocessing.width) == (48, 80)
    assert bundle.manifest.camera_model_input == SIZE
    assert (
        "48 × 80 RGB: whole camera frames, which the graph resizes to 16 × 32"
        in (bundle.folder / "MODEL_CARD.md").read_text()
    )
    frames = np.random.default_rng(0).integers(0, 256, (3, 48, 80, 3), dtype=np.uint8)
    ours = Describer(bundle, threads=1).describe(frames)
    np.testing.assert_allclose((ours * source.original(frames)).sum(axis=1), 1, atol=1e-4)


@pytest.mark.parametrize("settings", [ExportSettings(camera=(48, 80)), ExportSettings(name="plain")])
def test_a_bundle_can_be_exported_again(source: ExportableModel, tmp_path: Path, settings: ExportSettings) -> None:
    first = write_export(source, tmp_path / "first", settings)
    if settings.camera:
        with pytest.raises(ParameterError, match=r"whitened, or made for a camera, already.*Export from"):
            bundle_model(first.folder)
        return
    again = write_export(bundle_model(first.folder), tmp_path / "second")
    assert again.fingerprint == first.fingerprint
    assert again.manifest.parity is not None
    assert again.manifest.parity.reference == f"bundle plain {first.fingerprint[:12]}"


def test_weights_stored_as_fp16_are_unpacked(tmp_path: Path) -> None:
    shipped = open_bundle()
    source = bundle_model(None)
    assert not [node for node in source.graph.graph.node if node.op_type == "Cast"][1:]
    images = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    np.testing.assert_allclose(
        run_on_cpu(source.graph)(images), run_on_cpu(onnx.load(shipped.graph_path("fp32")))(images), atol=1e-6
    )
    packed = write_export(source, tmp_path / "packed", ExportSettings(weight_storage="fp16"))
    assert packed.manifest.weight_storage == "fp16"
    size = packed.graph_path("fp32").stat().st_size
    assert size == pytest.approx(shipped.graph_path("fp32").stat().st_size, rel=0.01)


def test_a_folder_that_cannot_be_written_is_refused_first(
    source: ExportableModel, tmp_path: Path, photos: list[Reference]
) -> None:
    (tmp_path / "file").write_text("no folder")
    unread = replace(photos[0], path=tmp_path / "missing.jpg")
    settings = ExportSettings(whitening=WhiteningSettings(2, [unread] * 5, "nothing"))
    with pytest.raises(StorageError, match="Choose a folder you may write to"):
        write_export(source, tmp_path / "file" / "bundle", settings)


def test_too_few_photos_are_refused_before_they_are_read(source: ExportableModel, tmp_path: Path) -> None:
    missing = Reference(id="x", path=tmp_path / "missing.jpg", position=None)
    with pytest.raises(ParameterError, match="2 reference photos are too few to find 2 directions"):
        write_export(source, tmp_path / "b", ExportSettings(whitening=WhiteningSettings(2, [missing] * 2, "nothing")))
    with pytest.raises(ParameterError, match=r"10 photos cannot prove an int8 graph, 64 are needed"):
        write_export(source, tmp_path / "b", ExportSettings(precisions=["int8"], photos=[missing] * 10))
    assert list(tmp_path.iterdir()) == []
