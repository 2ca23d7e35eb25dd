"""What is exported: an fp32 graph with the bundle's contract, and the original model to compare it with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from retrieval.bundle import (
    INPUT_NAME,
    OUTPUT_NAME,
    AdaptationReport,
    DenseOutput,
    ParityReport,
    Provenance,
    open_bundle,
)
from retrieval.bundle.onnx_graph import restore_fp32_weights
from retrieval.engines.onnx_runtime import keep_int8_exact, load_onnxruntime
from retrieval.errors import BundleError, ParameterError
from retrieval.images import Preprocessing, RgbImage
from retrieval.machine import available_cores

# (N, H, W, 3) uint8 RGB → (N, D) float32 unit rows.
Describe = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
MIN_COSINE: Final = 0.99999
# Weights stored as fp16 are rounded ones.
MIN_COSINE_OF_ROUNDED_WEIGHTS: Final = 0.9999

# A batch of one, an even and an odd one: graphs with a fixed batch fail one of them.
BATCHES: Final = (1, 2, 7)


@dataclass(frozen=True)
class ExportableModel:
    """A model that can become a bundle.

    Attributes:
        name: for people; becomes the bundle's.
        graph: fp32, with the bundle's contract: ``images`` uint8 [N, H, W, 3] → ``descriptors`` float32 [N, D].
        preprocessing: from a photo to the graph's input.
        descriptor_dim: D.
        provenance: where the weights come from.
        licence: of the weights.
        original: the same model computed without the graph: in PyTorch, or by the file it was imported from.
        original_name: what computes it, for people, such as `PyTorch 2.13.0`.
        dense_outputs: tensors of the graph that hold local descriptors; none where it cannot be adapted.
        adaptation: how it was adapted to a place, if it was.
    """

    name: str
    graph: onnx.ModelProto
    preprocessing: Preprocessing
    descriptor_dim: int
    provenance: Provenance
    licence: str
    original: Describe
    original_name: str
    dense_outputs: tuple[DenseOutput, ...] = ()
    adaptation: AdaptationReport | None = None


def bundle_model(folder: Path | None) -> ExportableModel:
    """Open a bundle to export it again: whitened, in further precisions, or for a camera.

    Args:
        folder: of the bundle; None is the one shipped with sightfix.

    Raises:
        BundleError: it cannot be opened.
        ParameterError: it was whitened before; a second whitening would hide the first.
    """
    bundle = open_bundle(folder)
    manifest = bundle.manifest
    if manifest.whitening is not None or manifest.camera_model_input is not None:
        raise ParameterError(
            "the bundle is whitened, or made for a camera, already",
            where=str(bundle.folder),
            remedy="Export from the checkpoint or bundle it was made from",
        )
    graph = onnx.load(bundle.graph_path("fp32"))
    return ExportableModel(
        name=manifest.name,
        graph=restore_fp32_weights(graph),
        preprocessing=manifest.preprocessing,
        descriptor_dim=manifest.descriptor_dim,
        provenance=manifest.provenance,
        licence=manifest.licence,
        original=run_on_cpu(graph),
        original_name=f"bundle {manifest.name} {bundle.fingerprint[:12]}",
        dense_outputs=manifest.dense_outputs,
        adaptation=manifest.adaptation,
    )


def labelled(graph: onnx.ModelProto, model: ExportableModel, more: Mapping[str, str]) -> onnx.ModelProto:
    """A copy of a graph whose metadata says what it is.

    Args:
        graph: of the model, in any precision.
        model: whose name, objective and descriptor size it shall state.
        more: further entries.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    helper.set_model_props(
        copy,
        {
            **{entry.key: entry.value for entry in graph.metadata_props},
            "sightfix.name": model.name,
            "sightfix.objective": model.provenance.objective or "none",
            "sightfix.descriptor_dim": str(model.descriptor_dim),
            **more,
        },
    )
    return copy


def run_on_cpu(model: onnx.ModelProto) -> Describe:
    """Open a graph with the bundle's contract in ONNX Runtime on the CPU, with a thread for each core."""
    session = open_on_cpu(model.SerializeToString())

    def describe(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        descriptors: NDArray[np.float32] = session.run([OUTPUT_NAME], {INPUT_NAME: images})[0]
        return descriptors

    return describe


def open_on_cpu(model: str | bytes) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU, of a file or its bytes; errors are raised, not printed."""
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cores()
    options.log_severity_level = 4
    keep_int8_exact(options)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def describe_in_batches(describe: Describe, images: NDArray[np.uint8], batch: int) -> NDArray[np.float32]:
    """Describe many images without the memory that all of them at once would take.

    Args:
        describe: the model.
        images: (N, H, W, 3) uint8, N ≥ 1.
        batch: images at once.

    Returns:
        (N, D) float32.
    """
    return np.concatenate([describe(images[begin : begin + batch]) for begin in range(0, len(images), batch)])


def cosines(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine of each photo's two descriptors.

    Args:
        first, second: (N, D) float32 of the same photos.

    Returns:
        (N,) float64; NaN where a descriptor is not finite or has no length.
    """
    one, other = first.astype(np.float64), second.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        return np.asarray((one * other).sum(axis=1) / lengths, np.float64)


def compare_with_original(model: ExportableModel, min_cosine: float = MIN_COSINE) -> ParityReport:
    """Compare a graph with the original over noise of many scales, the hardest images we know.

    Args:
        model: graph and original.
        min_cosine: below it the graph is refused.

    Raises:
        BundleError: the graph fails to run, or differs (``parity_failed``).
    """
    images = noise(model.preprocessing.height, model.preprocessing.width)
    expected = model.original(images)
    try:
        describe = run_on_cpu(model.graph)
        pairs = [(describe(images[:count]), expected[:count]) for count in (*BATCHES, len(images))]
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this
        raise BundleError(
            f"the graph of {model.name} does not run ({error})",
            remedy="This is a fault of the export; please report it with the recipe",
            code="parity_failed",
        ) from error
    cosine = min(float((one * other).sum(axis=1).min()) for one, other in pairs)
    # Not `<`: a NaN must not pass.
    if not cosine >= min_cosine:
        raise BundleError(
            f"the graph of {model.name} differs from {model.original_name}: worst cosine {cosine:.6f}, "
            f"wanted {min_cosine}",
            remedy="Nothing was written. This is a fault of the export; please report it with the recipe",
            code="parity_failed",
        )
    return ParityReport(reference=model.original_name, images=len(images), min_cosine=cosine)


def noise(height: int, width: int) -> NDArray[np.uint8]:
    """(8, height, width, 3) uint8: chequers of random colours, from one cell to 128 cells a side."""
    rng = np.random.default_rng(0)
    return np.stack([_chequers(rng, (height, width, 3), cells) for cells in (1, 2, 4, 8, 16, 32, 64, 128)])


def _chequers(rng: np.random.Generator, shape: tuple[int, int, int], cells: int) -> RgbImage:
    coarse = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    rows = np.arange(shape[0]) * cells // shape[0]
    columns = np.arange(shape[1]) * cells // shape[1]
    return coarse[rows][:, columns]
