"""Import any ONNX image encoder, by a short TOML that says how it wants its images.

What can be checked of the TOML is checked, and the result is compared with the untouched file: each test image is
prepared by numpy and described alone there, and in batches of 1, 2 and 7 by the new graph.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from export.foreign.file import ForeignFile, first_line, open_file
from export.foreign.graph import (
    MIN_OPSET,
    PREFIX,
    TARGET_OPSET,
    convert_opset,
    free_batch,
    has_halves,
    only_output,
    opset_of,
    widen,
    with_contract,
)
from export.foreign.settings import ForeignModelError, ForeignSettings, read_settings
from retrieval.bundle import DenseOutput, layer_and_weight
from retrieval.bundle.adapted_graph import MIN_OPSET_TO_ADAPT, dense_describer
from retrieval.bundle.exportable import BATCHES, MIN_COSINE, Describe, ExportableModel, noise, run_on_cpu
from retrieval.bundle.onnx_graph import producers

# Test images range from one flat colour to fine chequers; a net that finds them all alike does not see images.
_ALIKE: Final = 0.9999
_UNIT: Final = 1e-3
_MOST_LISTED: Final = 8


@dataclass(frozen=True)
class ForeignModel:
    """A foreign model, ready to become a bundle.

    Attributes:
        model: graph and original.
        notes: what was changed or kept, and what looks doubtful, each a sentence for people.
    """

    model: ExportableModel
    notes: tuple[str, ...]


def read_foreign_model(toml: Path, layers: Sequence[str] = ()) -> ForeignModel:
    """Read a TOML and the ONNX file it names, and put the bundle's contract around the graph.

    The graph computes in fp32 and in operators of opset 20 where that gives the same descriptors; otherwise as the file
    does. A batch size that the exporter fixed is freed where that can be done.

    Args:
        toml: see `ForeignSettings`.
        layers: tensors of the file, [N, C, h, w], that the bundle can be adapted to a place with; with a weight where
            it is not 1: `relu_12:0.5`.

    Raises:
        ForeignModelError: the TOML, the file, or what the file computes is at fault; see its codes.
    """
    settings = read_settings(toml)
    file = open_file(toml, settings)
    original = _original(file, settings)
    images = noise(settings.input.height, settings.input.width)
    expected = original(images)
    _check_descriptors(expected, file, toml, settings)
    graph, notes = _build(file, settings, images, expected)
    if _are_alike(expected):
        notes.append(
            "very different test images get nearly the same descriptor: "
            "are scale, mean, std and channels those it was trained with?"
        )
    sha256 = hashlib.sha256(file.path.read_bytes()).hexdigest()
    helper.set_model_props(graph, {"sightfix.imported_file_sha256": sha256})
    model = ExportableModel(
        name=settings.name,
        graph=graph,
        preprocessing=settings.preprocessing(),
        descriptor_dim=expected.shape[1],
        provenance=settings.bundle_provenance(),
        licence=settings.licence(),
        original=original,
        original_name=f"{file.path.name}, untouched, in ONNX Runtime {onnxruntime.__version__}",
        dense_outputs=_dense_outputs(graph, layers, images, file.path),
    )
    return ForeignModel(model, tuple(notes))


def _original(file: ForeignFile, settings: ForeignSettings) -> Describe:
    """The untouched file, fed by numpy in float64; independent of the preprocessing that `with_contract` adds."""
    wants = settings.input

    def describe(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        pixels = images[..., ::-1] if wants.channels == "bgr" else images
        if wants.scale is not None:
            pixels = (pixels / wants.scale - np.array(wants.mean)) / np.array(wants.std)
        if wants.layout == "nchw":
            pixels = np.moveaxis(pixels, -1, 1)
        returned = file.run(np.ascontiguousarray(pixels, dtype=file.dtype)).astype(np.float64)
        vectors = returned.reshape(len(returned), -1)
        if settings.output.normalise:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors.astype(np.float32)

    return describe


def _check_descriptors(
    descriptors: NDArray[np.float32], file: ForeignFile, toml: Path, settings: ForeignSettings
) -> None:
    if not np.isfinite(descriptors).all():
        raise ForeignModelError(
            f"output {file.output_name!r} has values that are not finite on {_count_bad(descriptors)} of "
            f"{len(descriptors)} test images",
            where=str(file.path),
            remedy="Check scale, mean and std in [input]; an fp16 export that overflows must be exported in fp32",
            code="foreign_values",
        )
    lengths = np.linalg.norm(descriptors, axis=1)
    if np.abs(lengths - 1).max() <= _UNIT:
        return
    if settings.output.normalise:
        raise ForeignModelError(
            f"output {file.output_name!r} is zero for a test image, and so has no direction",
            where=str(file.path),
            remedy="Check scale, mean and std in [input], and that this output is the descriptor",
            code="foreign_values",
        )
    raise ForeignModelError(
        f"[output] normalise is false, and descriptors have lengths from {lengths.min():.3g} to {lengths.max():.3g}",
        where=str(toml),
        remedy="Set normalise = true: descriptors of a bundle have unit length",
        code="foreign_values",
    )


def _count_bad(descriptors: NDArray[np.float32]) -> int:
    return int((~np.isfinite(descriptors).all(axis=1)).sum())


def _are_alike(descriptors: NDArray[np.float32]) -> bool:
    return float((descriptors @ descriptors.T).min()) > _ALIKE


def _dense_outputs(
    graph: onnx.ModelProto, layers: Sequence[str], images: NDArray[np.uint8], file: Path
) -> tuple[DenseOutput, ...]:
    """Named tensors as dense outputs, found good by running the graph."""
    if not layers:
        return ()
    if opset_of(graph) < MIN_OPSET_TO_ADAPT:
        raise ForeignModelError(
            f"its operators stay those of opset {opset_of(graph)}, and adapting needs {MIN_OPSET_TO_ADAPT}",
            where=str(file),
            remedy="Export it anew with a newer opset, or leave out --layers",
            code="foreign_operator",
        )
    made = producers(graph.graph.node)
    outputs = []
    for layer in layers:
        # TensorFlow's names end with a colon and a number, too.
        name, weight = (layer.strip(), 1.0) if f"{PREFIX}{layer.strip()}" in made else layer_and_weight(layer)
        tensor = f"{PREFIX}{name}"
        if tensor not in made:
            raise _not_a_map(graph, name, "there is no such tensor on the way to the descriptor", file)
        output = DenseOutput(tensor=tensor, layer=name, channels=1, weight=weight)
        (values,) = dense_describer(graph, [output])(images[:2])
        if values.ndim != 4 or len(values) != 2 or values.dtype != np.float32:
            found = f"it is {values.dtype} {list(values.shape)} of two images, not float32 [2, C, h, w]"
            raise _not_a_map(graph, name, found, file)
        outputs.append(output.model_copy(update={"channels": values.shape[1]}))
    return tuple(outputs)


def _not_a_map(graph: onnx.ModelProto, name: str, reason: str, file: Path) -> ForeignModelError:
    values = onnx.shape_inference.infer_shapes(graph).graph.value_info
    maps = [
        value.name.removeprefix(PREFIX)
        for value in values
        if value.name.startswith(PREFIX) and len(value.type.tensor_type.shape.dim) == 4
    ]
    return ForeignModelError(
        f"the tensor {name!r} cannot be adapted with: {reason}",
        where=str(file),
        remedy=f"Tensors with four sides are, from the last one: {', '.join(maps[: -_MOST_LISTED - 1 : -1]) or 'none'}",
        code="foreign_contract",
    )


@dataclass(frozen=True)
class _Variant:
    """One way to build the graph."""

    freed: bool
    widened: bool
    converted: bool


@dataclass(frozen=True)
class _Outcome:
    """The batch at which a built graph failed, and why; no batch when it passed."""

    batch: int | None
    reason: str = ""


def _build(
    file: ForeignFile, settings: ForeignSettings, images: NDArray[np.uint8], expected: NDArray[np.float32]
) -> tuple[onnx.ModelProto, list[str]]:
    """The first variant, in order of preference, that describes as the untouched file does."""
    plain = only_output(file.model, file.output_name)
    failures: dict[_Variant, _Outcome] = {}
    for variant in _variants(plain):
        try:
            graph = with_contract(_vary(plain, variant, file.batch or 1), settings, expected.shape[1])
            outcome = _compare(run_on_cpu(graph), images, expected)
        except Exception as error:  # onnx and ONNX Runtime raise many types; only their texts tell what is wrong
            outcome = _Outcome(0, first_line(error))
        if outcome.batch is None:
            return graph, _notes(plain, variant, file, failures)
        failures[variant] = outcome
    raise _no_variant(file, plain, failures)


def _variants(plain: onnx.ModelProto) -> Iterator[_Variant]:
    opset = opset_of(plain)
    converted = [True] * (opset < TARGET_OPSET) + [False] * (opset >= MIN_OPSET)
    widened = [True, False] if has_halves(plain.graph) else [False]
    yield from (_Variant(*choice) for choice in product([False, True], widened, converted))


def _vary(plain: onnx.ModelProto, variant: _Variant, batch: int) -> onnx.ModelProto:
    model = free_batch(plain, batch) if variant.freed else plain
    if variant.widened:
        model = widen(model)
    return convert_opset(model) if variant.converted else model


def _compare(describe: Describe, images: NDArray[np.uint8], expected: NDArray[np.float32]) -> _Outcome:
    for batch in BATCHES:
        try:
            descriptors = describe(images[:batch])
        except Exception as error:  # ONNX Runtime's exceptions share no base class but this
            return _Outcome(batch, first_line(error))
        if descriptors.shape != (batch, expected.shape[1]):
            return _Outcome(batch, f"the output's shape becomes {list(descriptors.shape)}")
        cosine = float((descriptors * expected[:batch]).sum(axis=1).min())
        # Not `<`: a NaN must not pass.
        if not cosine >= MIN_COSINE:
            return _Outcome(batch, f"the worst cosine is {cosine:.6f}, wanted {MIN_COSINE}")
    return _Outcome(None)


def _notes(
    plain: onnx.ModelProto, variant: _Variant, file: ForeignFile, failures: dict[_Variant, _Outcome]
) -> list[str]:
    notes = []
    opset = opset_of(plain)
    if variant.converted:
        notes.append(f"operators were converted from opset {opset} to {TARGET_OPSET}")
    elif opset < TARGET_OPSET:
        reason = failures[_Variant(variant.freed, variant.widened, True)].reason
        notes.append(f"the operators stay those of opset {opset}: converting them to {TARGET_OPSET} fails ({reason})")
    if variant.widened:
        notes.append("its weights are fp16; the bundle's graph computes in fp32 with their values")
    elif has_halves(plain.graph):
        notes.append("it computes in fp16, and stays so: in fp32 it gives other descriptors")
    if variant.freed:
        size = file.batch or 1
        notes.append(
            f"it was exported for {size} {'image' if size == 1 else 'images'} at a time, and was rewritten for any"
        )
    elif file.batch is not None:
        notes.append(f"its batch was stated as {file.batch}, and is free now")
    return notes


def _no_variant(file: ForeignFile, plain: onnx.ModelProto, failures: dict[_Variant, _Outcome]) -> ForeignModelError:
    if opset_of(plain) < MIN_OPSET and all(outcome.batch == 0 for outcome in failures.values()):
        reason = next(iter(failures.values())).reason
        return ForeignModelError(
            f"it has the operators of opset {opset_of(plain)}, which cannot be converted to {TARGET_OPSET} ({reason})",
            where=str(file.path),
            remedy=f"Export it with opset {MIN_OPSET} or above",
            code="foreign_operator",
        )
    # Of the variant that changes least.
    outcome = [failure for variant, failure in failures.items() if not variant.freed][-1]
    if file.batch is not None or (outcome.batch or 0) > 1:
        size = file.batch or 1
        return ForeignModelError(
            f"it describes {size} {'image' if size == 1 else 'images'} at a time only: the batch size is fixed in "
            f"the graph ({outcome.reason})",
            where=str(file.path),
            remedy="Export it with a dynamic batch (dynamic_shapes of torch.onnx.export), from an example of 2 images",
            code="foreign_batch",
        )
    return ForeignModelError(
        f"behind the bundle's contract it describes otherwise than the file itself ({outcome.reason})",
        where=str(file.path),
        remedy="This is a fault of the import; please report it with the exporter's name and version",
        code="parity_failed",
    )
