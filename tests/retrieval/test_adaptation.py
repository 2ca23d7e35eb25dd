"""Fitting a vocabulary and a projection: against slow versions, and the graph against numpy."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from retrieval.bundle import Bundle, DenseOutput, open_bundle
from retrieval.bundle.adaptation import (
    adapt_bundle,
    fit_adaptation,
    in_numpy,
    photos_to_fit,
    quantisation_errors,
    write_adapted,
)
from retrieval.bundle.adapted_graph import adapted_graph, dense_describer
from retrieval.bundle.exportable import run_on_cpu
from retrieval.bundle.onnx_graph import restore_fp32_weights
from retrieval.bundle.vlad import AdaptationSettings, Vocabulary, fit_vocabulary
from retrieval.describer import Describer
from retrieval.errors import BundleError, ParameterError
from retrieval.index.vectors.faiss_library import faiss_module, set_up_search
from tests.places import pattern
from tests.retrieval.engines.colour_bundle import write_colour_bundle

DENSE = DenseOutput(tensor="x", layer="x", channels=2)


def photos(seeds: Sequence[int], size: int = 256) -> np.ndarray:
    return np.stack([np.asarray(pattern(seed, (size, size))) for seed in seeds])


def batches(images: np.ndarray) -> Iterator[np.ndarray]:
    return (images[begin : begin + 16] for begin in range(0, len(images), 16))


def vocabulary(centroids: np.ndarray, channels: int, reduction: np.ndarray | None = None) -> Vocabulary:
    return Vocabulary(
        DENSE,
        centroids=np.asarray(centroids, np.float32),
        mean=np.zeros(channels, np.float32),
        deviation=np.ones(channels, np.float32),
        mean_length=1.0,
        reduction=reduction,
        fitted_on=1,
        quantisation_error=0.0,
    )


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return photos(range(24))


@pytest.fixture(scope="module")
def adapted(images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return adapt_bundle(open_bundle(), batches(images), tmp_path_factory.mktemp("adapted") / "bundle", "patterns")


def test_which_photos_are_fitted_to() -> None:
    counts = [
        len(photos_to_fit(np.full(n, 48.0), np.linspace(11.0, 11.1, n))) for n in (3, 1000, 10_000, 40_000, 10**5)
    ]
    assert counts == [3, 1000, 1000, 2000, 4000]
    east = np.linspace(11.0, 11.1, 8000)
    rows = photos_to_fit(np.full(8000, 48.0), east)
    assert len(set(rows.tolist())) == 1000
    np.testing.assert_array_equal(rows, photos_to_fit(np.full(8000, 48.0), east))
    # Its beginning is spread over the place, too.
    assert np.ptp(east[rows]) > 0.09
    assert np.ptp(east[rows[:8]]) > 0.05


def test_residuals_on_paper() -> None:
    """Two cells, each on a centroid of its own but for a tilt: what is left over is the tilt, made unit length."""
    words = vocabulary(np.eye(2), 2)
    tilted = np.array([[[0.8, 0.6], [0.0, 1.0]]], np.float32)
    residuals = words.residuals(tilted, sharpness=1000.0)
    # (0.8, 0.6) - (1, 0) = (-0.2, 0.6), of length sqrt(0.4); (0, 1) - (0, 1) = 0 stays 0. Over the root of 2.
    np.testing.assert_allclose(residuals, [[-0.2 / 0.8**0.5, 0.6 / 0.8**0.5, 0.0, 0.0]], atol=1e-5)
    assert words.error_of(tilted[0]) == pytest.approx((0.04 + 0.36) / 2, abs=1e-6)


@pytest.mark.parametrize("sharpness", [5.0, 70.0])
def test_residuals_as_a_loop_writes_them(sharpness: float) -> None:
    rng = np.random.default_rng(0)
    words = vocabulary(rng.normal(size=(4, 3)) * 0.5, 3)
    local = rng.normal(size=(2, 6, 3)).astype(np.float32)
    local /= np.linalg.norm(local, axis=2, keepdims=True)
    slow = np.zeros((2, 4, 3))
    for photo in range(2):
        for cell in local[photo]:
            weights = np.array(
                [np.exp(-sharpness / 2 * ((cell - centroid) ** 2).sum()) for centroid in words.centroids]
            )
            for number, centroid in enumerate(words.centroids):
                slow[photo, number] += weights[number] / weights.sum() * (cell - centroid)
        for number in range(4):
            slow[photo, number] /= max(np.linalg.norm(slow[photo, number]), 0.1) * 2.0
    np.testing.assert_allclose(words.residuals(local, sharpness), slow.reshape(2, -1), atol=1e-5)


def test_local_descriptors_are_standardised_then_reduced_then_of_unit_length() -> None:
    values = np.arange(24, dtype=np.float32).reshape(1, 3, 2, 4)
    reduction = np.eye(3, 2, dtype=np.float32)
    words = vocabulary(np.zeros((1, 2)), 3, reduction)
    local = words.local(values)
    assert local.shape == (1, 8, 2)
    np.testing.assert_allclose(local[0, 0], np.array([0.0, 8.0]) / 8.0, atol=1e-6)
    np.testing.assert_allclose(local[0, 5], np.array([5.0, 13.0]) / np.hypot(5.0, 13.0), atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_graph_computes_what_numpy_does(images: np.ndarray, count: int) -> None:
    bundle = open_bundle()
    settings = AdaptationSettings(most_channels=100, reduced_channels=16, centroids=8)
    fitted = fit_adaptation(bundle, batches(images), settings)
    assert [one.reduction is None for one in fitted.adaptation.vocabularies] == [True, False, False]
    graph = restore_fp32_weights(onnx.load(bundle.graph_path("fp32")))
    ours = run_on_cpu(adapted_graph(graph, fitted.adaptation))(images[:count])
    assert ours.shape == (count, 512)
    np.testing.assert_allclose(ours, in_numpy(graph, fitted.adaptation)(images[:count]), atol=2e-5)
    np.testing.assert_allclose(ours, fitted.descriptors[:count], atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1.0, atol=1e-5)


def test_the_same_photos_make_the_same_bytes_and_others_another_name(
    images: np.ndarray, adapted: Bundle, tmp_path: Path
) -> None:
    again = adapt_bundle(open_bundle(), batches(images), tmp_path / "again", "patterns")
    assert (again.name, again.fingerprint) == (adapted.name, adapted.fingerprint)
    for name in ("model.onnx", "MODEL_CARD.md"):
        assert (again.folder / name).read_bytes() == (adapted.folder / name).read_bytes()
    other = adapt_bundle(open_bundle(), batches(images[:20]), tmp_path / "other", "patterns")
    assert other.name != adapted.name
    assert other.name.startswith("efficientnet-lite0-gem-1280-adapted-")


def test_a_search_before_changes_no_bit_of_a_vocabulary() -> None:
    rng = np.random.default_rng(0)
    dense = [rng.normal(size=(8, 64, 16, 16)).astype(np.float32) for _ in range(20)]
    first = fit_vocabulary(DENSE, dense, AdaptationSettings())
    set_up_search(faiss_module(), 512)
    np.testing.assert_array_equal(fit_vocabulary(DENSE, dense, AdaptationSettings()).centroids, first.centroids)


def test_photos_weigh_the_same_in_whatever_batches() -> None:
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(17, 8, 4, 4)).astype(np.float32)
    dense[16] *= 10.0
    one, two = (fit_vocabulary(DENSE, parts, AdaptationSettings()) for parts in ([dense], [dense[:16], dense[16:]]))
    assert two.mean_length == pytest.approx(one.mean_length, rel=1e-6)


def test_bundles_that_differ_in_one_number_have_names_that_differ(images: np.ndarray, tmp_path: Path) -> None:
    fitted = fit_adaptation(open_bundle(), batches(images)).adaptation
    sharper = replace(fitted, settings=replace(fitted.settings, sharpness=71.0))
    names = {
        write_adapted(open_bundle(), one, tmp_path / str(number), "patterns").name
        for number, one in enumerate((fitted, sharper))
    }
    assert len(names) == 2


def test_what_the_body_of_a_branch_reads_is_kept() -> None:
    """Graphs of other makers may have branches, which read tensors of the graph around them."""
    floats = onnx.TensorProto.FLOAT
    declared = [onnx.helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, ["N", 2, 2, 3])]
    body = [
        onnx.helper.make_graph(
            [onnx.helper.make_node("Identity", ["scaled"], [f"out{branch}"])],
            f"branch{branch}",
            [],
            [onnx.helper.make_tensor_value_info(f"out{branch}", floats, None)],
        )
        for branch in (0, 1)
    ]
    nodes = [
        onnx.helper.make_node("Cast", ["images"], ["scaled"], to=floats),
        onnx.helper.make_node("If", ["yes"], ["dense"], then_branch=body[0], else_branch=body[1]),
        onnx.helper.make_node("Relu", ["dense"], ["descriptors"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "branches",
        declared,
        [onnx.helper.make_tensor_value_info("descriptors", floats, None)],
        [onnx.numpy_helper.from_array(np.array(True), "yes")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    describe = dense_describer(model, [DenseOutput(tensor="dense", layer="dense", channels=2)])
    pixels = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    np.testing.assert_array_equal(describe(pixels)[0], pixels)


def test_it_says_what_it_was_fitted_to(adapted: Bundle) -> None:
    report, shipped = adapted.manifest.adaptation, open_bundle()
    assert report is not None
    assert (report.base_name, report.base_fingerprint, report.photos) == (shipped.name, shipped.fingerprint, 24)
    assert [one.layer for one in report.vocabularies] == [one.layer for one in shipped.manifest.dense_outputs]
    # Photos span one direction fewer than there are of them; the rest is random.
    assert (report.projection.dim, report.projection.principal) == (512, 23)
    assert adapted.manifest.parity is not None
    assert adapted.manifest.parity.min_cosine >= 0.9999
    assert (adapted.folder / "model.onnx").stat().st_size <= 32_000_000
    card = (adapted.folder / "MODEL_CARD.md").read_text()
    assert "Fitted to 24 photos of patterns" in card
    stated = {entry.key: entry.value for entry in onnx.load(adapted.graph_path("fp32")).metadata_props}
    assert (stated["sightfix.name"], stated["sightfix.descriptor_dim"]) == (adapted.name, "512")


def test_it_can_be_adapted_again(adapted: Bundle, tmp_path: Path) -> None:
    again = adapt_bundle(adapted, batches(photos(range(100, 112))), tmp_path / "again", "others")
    assert again.name.count("adapted") == 1
    assert again.manifest.adaptation is not None
    shipped = open_bundle()
    base = again.manifest.adaptation
    assert (base.base_name, base.base_fingerprint) == (shipped.name, shipped.fingerprint)
    assert again.manifest.dense_outputs == adapted.manifest.dense_outputs


@pytest.mark.parametrize("count", [2, 3, 10])
def test_few_photos_make_whole_descriptors_that_find_themselves(count: int, tmp_path: Path) -> None:
    few = photos(range(count))
    described = Describer(adapt_bundle(open_bundle(), batches(few), tmp_path / "few", "few")).describe(few)
    assert described.shape == (count, 512)
    assert (described @ described.T).argmax(axis=1).tolist() == list(range(count))


def test_photos_that_are_all_alike_or_blank_make_finite_descriptors(tmp_path: Path) -> None:
    for name, alike in (("alike", photos([3] * 12)), ("blank", np.zeros((12, 256, 256, 3), np.uint8))):
        bundle = adapt_bundle(open_bundle(), batches(alike), tmp_path / name, name)
        assert np.isfinite(Describer(bundle).describe(photos([3, 4]))).all()


def test_photos_of_another_kind_fit_the_vocabulary_badly(images: np.ndarray, adapted: Bundle) -> None:
    report = adapted.manifest.adaptation
    assert report is not None
    own = quantisation_errors(adapted, batches(images))
    for error, vocabulary_report in zip(own.mean(axis=0), report.vocabularies, strict=True):
        assert error == pytest.approx(vocabulary_report.quantisation_error, rel=0.05)
    noise = np.random.default_rng(0).integers(0, 256, (8, 256, 256, 3), np.uint8)
    assert (quantisation_errors(adapted, [noise]).mean(axis=0) > own.mean(axis=0)).all()
    assert quantisation_errors(adapted, []).shape == (0, len(own[0]))


def test_runtimes_agree(images: np.ndarray, adapted: Bundle) -> None:
    ours, theirs = (Describer(adapted, provider=provider).describe(images[:4]) for provider in ("cpu", "openvino"))
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_numbers_of_a_descriptor() -> None:
    assert AdaptationSettings.of_dim(512) == replace(AdaptationSettings(), exactly=True)
    small = AdaptationSettings.of_dim(64)
    assert (small.residual_dim, small.mean_dim) == (56, 8)
    with pytest.raises(ParameterError, match="15 numbers are too few"):
        AdaptationSettings.of_dim(15)


def test_what_cannot_be_adapted(bundle: Bundle, tmp_path: Path, images: np.ndarray) -> None:
    with pytest.raises(ParameterError, match="fewer than two photos"):
        adapt_bundle(bundle, batches(images[:1]), tmp_path / "one", "one")
    (tmp_path / "taken").mkdir()
    with pytest.raises(ParameterError, match="exists already"):
        adapt_bundle(bundle, batches(images), tmp_path / "taken", "taken")
    plain = write_colour_bundle(tmp_path / "plain")
    assert bundle.is_adaptable
    assert not plain.is_adaptable
    with pytest.raises(ParameterError, match="not adaptable"):
        adapt_bundle(plain, batches(images), tmp_path / "out", "plain")
    graph = onnx.load(bundle.graph_path("fp32"))
    with pytest.raises(BundleError, match="no tensor nowhere"):
        dense_describer(graph, [DenseOutput(tensor="nowhere", layer="x", channels=1)])
    with pytest.raises(ParameterError, match="was not adapted"):
        quantisation_errors(bundle, batches(images))
