"""Adapting a bundle to a place: a vocabulary of its local descriptors and a projection, both inside the graph.

The local descriptors of each dense output are aggregated by VLAD (Jégou et al., "Aggregating local descriptors into a
compact image representation", CVPR 2010) with a vocabulary from the place's own photos (Keetha et al., "AnyLoc: Towards
Universal Visual Place Recognition", RA-L 2024): soft assignment to centroids (Arandjelović et al., "NetVLAD", CVPR
2016), residuals summed for each centroid, each sum made unit length (Arandjelović & Zisserman, "All about VLAD", CVPR
2013). Principal component analysis of the same photos projects them to fewer numbers, whitened in part.

Residuals tell places apart, and say little of whether a photo shows anything like the place at all. The mean local
descriptor does; it is a part of the descriptor, too, and is not centred.

What comes out is an ordinary bundle, which can be adapted again: its dense outputs are kept.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Final, Self

import faiss
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from retrieval.bundle.bundle import (
    INPUT_NAME,
    OUTPUT_NAME,
    AdaptationReport,
    Bundle,
    DenseOutput,
    ProjectionReport,
    VocabularyReport,
)
from retrieval.bundle.exportable import (
    MIN_COSINE_OF_ROUNDED_WEIGHTS,
    Describe,
    ExportableModel,
    compare_with_original,
    open_on_cpu,
)
from retrieval.bundle.onnx_graph import (
    ADAPTATION_PREFIX,
    constants,
    producers,
    replace_nodes,
    restore_fp32_weights,
    store_weights_as_fp16,
)
from retrieval.bundle.writer import BundleContent, check_free, write_bundle
from retrieval.errors import BundleError, ParameterError

# Batches of decoded photos, (n, H, W, 3) uint8 RGB each.
Photos = Iterable[NDArray[np.uint8]]
Float32Array = NDArray[np.float32]

# Of the operators that are appended.
MIN_OPSET_TO_ADAPT: Final = 18

_SEED: Final = 14
_KMEANS_STEPS: Final = 30
_KMEANS_TRIES: Final = 4
# A centroid of fewer local descriptors than this says nothing of the place.
_LEAST_PER_CENTROID: Final = 16
_SMALLEST_LENGTH: Final = 1e-12
# Residuals of a centroid shorter than this, of cells that hardly belong to it, are not stretched to unit length.
_SMALLEST_RESIDUAL: Final = 0.1
# Directions below this share of the largest singular value are rounding errors.
_SMALLEST_SHARE: Final = 1e-5
# Of random directions beside the last principal one.
_RANDOM_GAIN: Final = 0.4
_COLUMNS_AT_ONCE: Final = 2048
_SMALLEST_DIM: Final = 16


@dataclass(frozen=True)
class AdaptationSettings:
    """How a bundle is adapted. The values were chosen on photos of two places; see docs/explanation/adaptation.md.

    Attributes:
        centroids: of each vocabulary; fewer where there are few photos.
        sharpness: of soft assignment: a centroid whose squared distance is larger by 2 / sharpness gets 1/e as much.
        residual_dim: numbers that the residuals are projected to, at most.
        mean_dim: numbers that the mean local descriptors are projected to, at most.
        mean_weight: of these beside the residuals.
        power: of the singular values by which the residuals' principal directions are divided.
        vocabulary_photos: the first photos, whose local descriptors the vocabulary comes from.
        local_descriptors: at most so many of each dense output.
        most_channels: local descriptors of more numbers are projected to `reduced_channels` first.
        reduced_channels: see there.
    """

    centroids: int = 32
    sharpness: float = 70.0
    residual_dim: int = 448
    mean_dim: int = 64
    mean_weight: float = 1.0
    power: float = 0.5
    vocabulary_photos: int = 1024
    local_descriptors: int = 60_000
    most_channels: int = 512
    reduced_channels: int = 256

    @classmethod
    def of_dim(cls, dim: int) -> Self:
        """Settings for descriptors of D numbers.

        Raises:
            ParameterError: D is below 16.
        """
        if dim < _SMALLEST_DIM:
            raise ParameterError(f"{dim} numbers are too few for an adapted descriptor", remedy="Give 16 or more")
        means = min(cls.mean_dim, dim // 8)
        return cls(residual_dim=dim - means, mean_dim=means)


@dataclass(frozen=True)
class Vocabulary:
    """The centroids of one dense output.

    Attributes:
        dense: the output.
        centroids: (K, c) float32.
        mean, deviation: (C,) float32, of the values of each channel; they are standardised first.
        mean_length: of the mean of all local descriptors of a photo, not standardised, typically.
        reduction: (C, c) float32, what local descriptors are projected by next; None leaves them as they are.
        fitted_on: how many local descriptors.
        quantisation_error: mean squared distance of these to their nearest centroid.
    """

    dense: DenseOutput
    centroids: Float32Array
    mean: Float32Array
    deviation: Float32Array
    mean_length: float
    reduction: Float32Array | None
    fitted_on: int
    quantisation_error: float

    def local(self, dense: Float32Array) -> Float32Array:
        """(N, C, h, w) float32 → (N, h·w, c) float32 local descriptors of unit length."""
        return self.standardised(dense.reshape(len(dense), dense.shape[1], -1).transpose(0, 2, 1))

    def standardised(self, values: Float32Array) -> Float32Array:
        """(..., C) float32 values of cells → (..., c) float32 local descriptors of unit length."""
        standard = (values - self.mean) / self.deviation
        return _unit(standard if self.reduction is None else standard @ self.reduction)

    def nearness(self, local: Float32Array) -> Float32Array:
        """(..., c) unit rows → (..., K): half of 1 less the squared distance to each centroid."""
        return np.asarray(local @ self.centroids.T - (self.centroids**2).sum(axis=1) / 2, np.float32)

    def residuals(self, local: Float32Array, sharpness: float) -> Float32Array:
        """(N, P, c) → (N, K·c) float32: the residuals, summed for each centroid and made unit length.

        Divided by the root of K besides, so that rows have unit length where every centroid has local descriptors.
        """
        exponents = sharpness * self.nearness(local)
        shares = np.exp(exponents - exponents.max(axis=2, keepdims=True))
        shares /= shares.sum(axis=2, keepdims=True)
        sums = shares.transpose(0, 2, 1) @ local - shares.sum(axis=1)[:, :, None] * self.centroids
        return _unit(sums, _SMALLEST_RESIDUAL).reshape(len(local), -1) * self.residual_scale

    @property
    def residual_scale(self) -> np.float32:
        """One by the root of K."""
        return np.float32(len(self.centroids) ** -0.5)

    def error_of(self, local: Float32Array) -> float:
        """Mean squared distance of local descriptors (n, c), unit rows, to their nearest centroid."""
        return float((1.0 - 2.0 * self.nearness(local).max(axis=-1)).mean())

    def report(self) -> VocabularyReport:
        """What the manifest says."""
        return VocabularyReport(
            layer=self.dense.layer,
            centroids=len(self.centroids),
            fitted_on=self.fitted_on,
            quantisation_error=self.quantisation_error,
        )


@dataclass(frozen=True)
class Adaptation:
    """What a bundle is adapted with.

    Attributes:
        vocabularies: one for each dense output.
        centre: (V,) float32, mean of the joined residuals of the photos.
        residual_projection: (V, r) float32, principal directions divided by their singular values to the power.
        mean_projection: (M, m) float32, directions of the joined mean local descriptors, not centred: what all photos
            of the place share stays in the descriptor, and a photo of something else lacks it.
        settings: how it was fitted.
        photos: on how many.
        principal: how many of the residuals' directions are principal ones; the others are random.
        explained: share of the residuals' variance in the principal directions.
    """

    vocabularies: Sequence[Vocabulary]
    centre: Float32Array
    residual_projection: Float32Array
    mean_projection: Float32Array
    settings: AdaptationSettings
    photos: int
    principal: int
    explained: float

    @property
    def dim(self) -> int:
        """D, numbers in a descriptor."""
        return int(self.residual_projection.shape[1] + self.mean_projection.shape[1])

    def describe(self, dense: Sequence[Float32Array]) -> Float32Array:
        """The descriptors that the graph computes, in numpy: (N, C, h, w) float32 each → (N, D) float32, unit rows."""
        return self.projected(*_aggregated(self.vocabularies, dense, self.settings.sharpness))

    def projected(self, residuals: Float32Array, means: Float32Array) -> Float32Array:
        """Joined residuals (N, V) and joined mean local descriptors (N, M) → descriptors (N, D) float32, unit rows."""
        projected = _unit((residuals - self.centre) @ self.residual_projection)
        return _unit(np.concatenate([projected, self.settings.mean_weight * (means @ self.mean_projection)], axis=1))

    def report(self, base: Bundle, fitted_on: str) -> AdaptationReport:
        """What the manifest says.

        Args:
            base: the bundle that was adapted.
            fitted_on: the photos, for people.
        """
        return AdaptationReport(
            base_name=base.name,
            base_fingerprint=base.fingerprint,
            fitted_on=fitted_on,
            photos=self.photos,
            vocabularies=tuple(vocabulary.report() for vocabulary in self.vocabularies),
            projection=ProjectionReport(
                from_dim=len(self.centre) + len(self.mean_projection),
                dim=self.dim,
                principal=self.principal,
                power=self.settings.power,
                explained=self.explained,
            ),
        )


@dataclass(frozen=True)
class FittedAdaptation:
    """An adaptation, and what it makes of the photos it was fitted on: they need not be described again.

    Attributes:
        adaptation: what was fitted.
        descriptors: (n, D) float32, unit rows, of the photos in their order.
    """

    adaptation: Adaptation
    descriptors: Float32Array


def is_adaptable(bundle: Bundle) -> bool:
    """Whether a bundle can be adapted to a place: its graph has dense outputs."""
    return bool(bundle.manifest.dense_outputs)


def fit_adaptation(
    bundle: Bundle,
    photos: Photos,
    settings: AdaptationSettings | None = None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> FittedAdaptation:
    """Fit a vocabulary and a projection to photos of a place.

    Args:
        bundle: an adaptable one.
        photos: batches of decoded photos, in an order whose beginning is spread over the place, too.
        settings: how.
        on_progress: called with how many photos were described since the last call.

    Raises:
        ParameterError: the bundle is not adaptable, or there are fewer than two photos.
        BundleError: the graph fails to run, or gives something that is not a number.
    """
    settings = settings or AdaptationSettings()
    dense_outputs = bundle.manifest.dense_outputs
    if not dense_outputs:
        raise ParameterError(
            f"the bundle {bundle.name} is not adaptable: its graph has no dense outputs",
            where=str(bundle.folder),
            remedy="Export it again from its checkpoint or with sightfix export timm:NAME, or leave adapting out",
        )
    describe = dense_describer(_graph_of(bundle), dense_outputs)
    batches = _described(photos, describe, on_progress)
    first = list(_until(batches, settings.vocabulary_photos))
    if sum(len(batch[0]) for batch in first) < 2:
        raise ParameterError("a bundle cannot be adapted to fewer than two photos", where=str(bundle.folder))
    vocabularies = [
        _fit_vocabulary(output, [batch[place] for batch in first], settings)
        for place, output in enumerate(dense_outputs)
    ]
    parts = [_aggregated(vocabularies, batch, settings.sharpness) for batch in chain(first, batches)]
    residuals, means = (np.concatenate(part) for part in zip(*parts, strict=True))
    centre, projection, principal, explained = _principal_directions(residuals, settings)
    adaptation = Adaptation(
        vocabularies=vocabularies,
        centre=centre,
        residual_projection=projection,
        mean_projection=_leading_directions(means, settings.mean_dim),
        settings=settings,
        photos=len(means),
        principal=principal,
        explained=explained,
    )
    return FittedAdaptation(adaptation, adaptation.projected(residuals, means))


def adapt_bundle(
    bundle: Bundle,
    photos: Photos,
    folder: Path,
    fitted_on: str,
    *,
    settings: AdaptationSettings | None = None,
    replace_folder: bool = False,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Bundle:
    """Fit a bundle to photos of a place and write the result, an ordinary bundle that can be adapted again.

    The graph is compared with the same computed in numpy before anything is written. It has the fp32 precision only;
    lower ones are made of it as of any bundle.

    Args:
        bundle: an adaptable one.
        photos: batches of decoded photos, in an order whose beginning is spread over the place, too.
        folder: where the adapted bundle shall be.
        fitted_on: the photos, for people.
        settings: how.
        replace_folder: whether a bundle that is already there may be replaced.
        on_progress: called with how many photos were described since the last call.

    Raises:
        ParameterError: the folder is taken, the bundle is not adaptable, or there are fewer than two photos.
        BundleError: the graph fails to run, or differs from numpy (``parity_failed``); nothing is written.
        StorageError: the disk refuses.
    """
    check_free(folder, replace=replace_folder)
    adaptation = fit_adaptation(bundle, photos, settings, on_progress).adaptation
    return write_adapted(bundle, adaptation, folder, fitted_on, replace_folder=replace_folder)


def write_adapted(
    bundle: Bundle, adaptation: Adaptation, folder: Path, fitted_on: str, *, replace_folder: bool = False
) -> Bundle:
    """Write the bundle that an adaptation makes; see `adapt_bundle`.

    Raises:
        ParameterError: the folder is taken.
        BundleError: the graph fails to run, or differs from numpy (``parity_failed``); nothing is written.
        StorageError: the disk refuses.
    """
    manifest = bundle.manifest
    layers = [vocabulary.dense.layer for vocabulary in adaptation.vocabularies]
    aggregation = f"VLAD of {', '.join(layers)} with a vocabulary of the place, projected"
    model = ExportableModel(
        name=f"{_plain_name(bundle)}-adapted-{_digest(adaptation)}",
        graph=adapted_graph(_graph_of(bundle), adaptation),
        preprocessing=bundle.preprocessing,
        descriptor_dim=adaptation.dim,
        provenance=manifest.provenance.model_copy(update={"aggregation": aggregation, "recalls": {}}),
        licence=manifest.licence,
        original=in_numpy(bundle, adaptation),
        original_name="the same in numpy",
    )
    store_weights_as_fp16(model.graph)
    content = BundleContent(
        name=model.name,
        graphs={"fp32": model.graph},
        preprocessing=model.preprocessing,
        descriptor_dim=model.descriptor_dim,
        provenance=model.provenance,
        parity=compare_with_original(model, MIN_COSINE_OF_ROUNDED_WEIGHTS),
        licence=model.licence,
        weight_storage="fp16",
        dense_outputs=manifest.dense_outputs,
        adaptation=adaptation.report(bundle, fitted_on),
    )
    return write_bundle(folder, content, replace=replace_folder)


def in_numpy(bundle: Bundle, adaptation: Adaptation) -> Describe:
    """What an adapted graph computes, its dense outputs by ONNX Runtime on the CPU and the rest in numpy."""
    describe = dense_describer(_graph_of(bundle), bundle.manifest.dense_outputs)
    return lambda images: adaptation.describe(describe(images))


def quantisation_errors(bundle: Bundle, photos: Photos) -> list[float]:
    """How badly photos fit the vocabularies of an adapted bundle: as `VocabularyReport.quantisation_error`, of each.

    Args:
        bundle: an adapted one.
        photos: batches of decoded photos, at least one.

    Raises:
        ParameterError: the bundle was not adapted.
        BundleError: its graph is not as `adapt_bundle` writes it.
    """
    graph = _graph_of(bundle)
    vocabularies = _vocabularies_in(bundle, graph)
    describe = dense_describer(graph, bundle.manifest.dense_outputs)
    total, count = np.zeros(len(vocabularies)), 0
    for images in photos:
        errors = [v.error_of(v.local(dense)) for v, dense in zip(vocabularies, describe(images), strict=True)]
        total += np.array(errors) * len(images)
        count += len(images)
    return [float(error) for error in total / count]


DescribeDensely = Callable[[NDArray[np.uint8]], list[Float32Array]]


def dense_describer(graph: onnx.ModelProto, dense_outputs: Sequence[DenseOutput]) -> DescribeDensely:
    """Open a graph in ONNX Runtime on the CPU for its dense outputs alone: what lies behind them is not computed.

    Args:
        graph: with the bundle's contract.
        dense_outputs: tensors of it.

    Returns:
        (N, H, W, 3) uint8 → (N, C, h, w) float32 of each output.

    Raises:
        BundleError: the graph has no such tensors.
    """
    names = [output.tensor for output in dense_outputs]
    session = open_on_cpu(_cut(graph, names).SerializeToString())

    def describe(images: NDArray[np.uint8]) -> list[Float32Array]:
        described: list[Float32Array] = session.run(names, {INPUT_NAME: images})
        return described

    return describe


def adapted_graph(graph: onnx.ModelProto, adaptation: Adaptation) -> onnx.ModelProto:
    """A graph cut at its dense outputs, with vocabularies and projection behind them.

    Args:
        graph: with the bundle's contract, fp32 weights, opset 18 or later.
        adaptation: fitted to its dense outputs.
    """
    adapted = _cut(graph, [vocabulary.dense.tensor for vocabulary in adaptation.vocabularies])
    tail = _Tail(adapted)
    residuals, means, scales = [], [], []
    for place, vocabulary in enumerate(adaptation.vocabularies):
        share = _layer_share(adaptation.vocabularies, place)
        flat = tail.add("Reshape", vocabulary.dense.tensor, tail.constant("flat", np.array([0, 0, -1], np.int64)))
        local = _local_nodes(tail, vocabulary, flat, place)
        residuals.append(_residual_nodes(tail, vocabulary, local, adaptation.settings.sharpness, place))
        scales.append(np.full((vocabulary.centroids.size, 1), share * vocabulary.residual_scale, np.float32))
        mean = tail.add("ReduceMean", flat, tail.constant("axis.2", np.array([2], np.int64)), keepdims=0)
        means.append(tail.scaled(mean, share / vocabulary.mean_length, f"share.{place}"))
    projection = adaptation.residual_projection
    bias = -(adaptation.centre.astype(np.float64) @ projection.astype(np.float64))
    projected = tail.add(
        "Gemm",
        tail.joined(residuals),
        tail.constant("projection.residuals", np.concatenate(scales) * projection),
        tail.constant("projection.bias", bias.astype(np.float32)),
    )
    weighted = (adaptation.settings.mean_weight * adaptation.mean_projection).astype(np.float32)
    mean = tail.add("MatMul", tail.unit(tail.joined(means), 1), tail.constant("projection.means", weighted))
    tail.unit(tail.joined([tail.unit(projected, 1), mean]), 1, OUTPUT_NAME)
    output = helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, [_batch_name(graph), adaptation.dim])
    del adapted.graph.output[:]
    adapted.graph.output.append(output)
    onnx.checker.check_model(adapted, full_check=True)
    return adapted


class _Tail:
    """Nodes that are appended to a graph; their names begin with ``adaptation/``."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._count = 0
        self._constants: set[str] = set()

    def constant(self, name: str, values: NDArray[Any]) -> str:
        """The name of an initializer."""
        name = f"{ADAPTATION_PREFIX}{name}"
        if name not in self._constants:
            self._constants.add(name)
            self._graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """The name of a new node's output."""
        name = f"{ADAPTATION_PREFIX}{self._count}.{kind}"
        self._count += 1
        output = output or f"{name}.output"
        self._graph.node.append(helper.make_node(kind, inputs, [output], name=name, **attributes))
        return output

    def unit(self, values: str, axis: int, output: str | None = None, smallest: float = _SMALLEST_LENGTH) -> str:
        """Vectors along an axis divided by their length, or by the smallest one."""
        axes = self.constant(f"axis.{axis}", np.array([axis], np.int64))
        length = self.add("ReduceL2", values, axes, keepdims=1)
        divisor = self.add("Max", length, self.constant(f"smallest.{smallest:g}", np.array(smallest, np.float32)))
        return self.add("Div", values, divisor, output=output)

    def scaled(self, values: str, by: float, name: str) -> str:
        """Values times a number."""
        return self.add("Mul", values, self.constant(name, np.array(by, np.float32)))

    def joined(self, parts: Sequence[str]) -> str:
        """Vectors [N, a], [N, b], ... as one [N, a + b + ...]."""
        return parts[0] if len(parts) == 1 else self.add("Concat", *parts, axis=1)


def _local_nodes(tail: _Tail, vocabulary: Vocabulary, flat: str, place: int) -> str:
    """[N, C, P] → [N, c, P]: as `Vocabulary.local`."""
    name = f"vocabulary.{place}"
    centred = tail.add("Sub", flat, tail.constant(f"{name}.mean", vocabulary.mean[:, None]))
    local = tail.add("Div", centred, tail.constant(f"{name}.deviation", vocabulary.deviation[:, None]))
    if vocabulary.reduction is not None:
        local = tail.add("MatMul", tail.constant(f"{name}.reduction", vocabulary.reduction.T), local)
    return tail.unit(local, 1)


def _residual_nodes(tail: _Tail, vocabulary: Vocabulary, local: str, sharpness: float, place: int) -> str:
    """[N, c, P] → [N, K·c]: as `Vocabulary.residuals`, not yet scaled."""
    centroids, name = vocabulary.centroids, f"vocabulary.{place}"
    offset = -sharpness * (centroids**2).sum(axis=1, keepdims=True) / 2
    nearness = tail.add("MatMul", tail.constant(f"{name}.sharpened", sharpness * centroids), local)
    exponents = tail.add("Add", nearness, tail.constant(f"{name}.offset", offset.astype(np.float32)))
    shares = tail.add("Softmax", exponents, axis=1)
    sums = tail.add("MatMul", shares, tail.add("Transpose", local, perm=[0, 2, 1]))
    mass = tail.add("ReduceSum", shares, tail.constant("axis.2", np.array([2], np.int64)), keepdims=1)
    expected = tail.add("Mul", mass, tail.constant(f"{name}.centroids", centroids))
    cells = tail.unit(tail.add("Sub", sums, expected), 2, smallest=_SMALLEST_RESIDUAL)
    return tail.add("Reshape", cells, tail.constant("joined", np.array([0, -1], np.int64)))


def _graph_of(bundle: Bundle) -> onnx.ModelProto:
    return restore_fp32_weights(onnx.load(bundle.graph_path("fp32")))


def _batch_name(graph: onnx.ModelProto) -> str:
    return graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param or "N"


def _cut(graph: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """A copy with these tensors as outputs, and only the nodes and weights that lead to them."""
    makers = producers(graph.graph.node)
    missing = [name for name in tensors if name not in makers]
    if missing:
        raise BundleError(
            f"the graph has no tensor {', '.join(missing)}, which its manifest names as dense outputs",
            remedy="Make the bundle again",
        )
    needed: set[str] = set()
    open_names = list(tensors)
    while open_names:
        name = open_names.pop()
        if name and name not in needed:
            needed.add(name)
            open_names.extend(makers[name].input if name in makers else ())
    cut = onnx.ModelProto()
    cut.CopyFrom(graph)
    replace_nodes(cut, [node for node in graph.graph.node if needed & set(node.output)])
    kept = [tensor for tensor in graph.graph.initializer if tensor.name in needed]
    copies = [TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
    del cut.graph.initializer[:]
    cut.graph.initializer.extend(copies)
    del cut.graph.value_info[:]
    del cut.graph.output[:]
    cut.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors)
    return cut


def _vocabularies_in(bundle: Bundle, graph: onnx.ModelProto) -> list[Vocabulary]:
    """The vocabularies of an adapted bundle, read from its graph."""
    report = bundle.manifest.adaptation
    if report is None:
        raise ParameterError(f"the bundle {bundle.name} was not adapted", where=str(bundle.folder))
    values = constants(graph)
    found = []
    for place, (dense, known) in enumerate(zip(bundle.manifest.dense_outputs, report.vocabularies, strict=True)):
        name = f"{ADAPTATION_PREFIX}vocabulary.{place}"
        if f"{name}.centroids" not in values:
            raise BundleError(f"the graph has no {name}.centroids", where=str(bundle.folder), remedy="Adapt it again")
        reduction = values.get(f"{name}.reduction")
        found.append(
            Vocabulary(
                dense,
                values[f"{name}.centroids"],
                values[f"{name}.mean"][:, 0],
                values[f"{name}.deviation"][:, 0],
                1.0,  # of no weight for what is asked here
                None if reduction is None else reduction.T,
                known.fitted_on,
                known.quantisation_error,
            )
        )
    return found


def _plain_name(bundle: Bundle) -> str:
    """The name of a bundle without what an earlier adaptation added to it."""
    return bundle.name.partition("-adapted-")[0] if bundle.manifest.adaptation else bundle.name


def _digest(adaptation: Adaptation) -> str:
    """Eight hexadecimal digits of what was fitted: bundles that differ have names that differ."""
    digest = hashlib.sha256()
    for values in (
        *(vocabulary.centroids for vocabulary in adaptation.vocabularies),
        adaptation.residual_projection,
        adaptation.mean_projection,
    ):
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:8]


def _layer_share(vocabularies: Sequence[Vocabulary], place: int) -> float:
    """The length of a layer's part, such that all parts together have unit length."""
    weights = np.array([vocabulary.dense.weight for vocabulary in vocabularies])
    return float(weights[place] / np.linalg.norm(weights))


def _aggregated(
    vocabularies: Sequence[Vocabulary], dense: Sequence[Float32Array], sharpness: float
) -> tuple[Float32Array, Float32Array]:
    """Joined residuals (N, V) and joined mean local descriptors (N, M), float32; the latter unit rows."""
    residuals, means = [], []
    for place, (vocabulary, values) in enumerate(zip(vocabularies, dense, strict=True)):
        share = _layer_share(vocabularies, place)
        residuals.append(share * vocabulary.residuals(vocabulary.local(values), sharpness))
        means.append(share / vocabulary.mean_length * values.mean(axis=(2, 3)))
    return np.concatenate(residuals, axis=1), _unit(np.concatenate(means, axis=1))


def _described(
    photos: Photos, describe: DescribeDensely, on_progress: Callable[[int], None]
) -> Iterator[list[Float32Array]]:
    """The dense outputs of each batch."""
    for images in photos:
        dense = describe(images)
        if not all(np.isfinite(values).all() for values in dense):
            raise BundleError("the graph gave a local descriptor that is not finite")
        yield dense
        on_progress(len(images))


def _until(batches: Iterator[list[Float32Array]], photos: int) -> Iterator[list[Float32Array]]:
    """The first batches, until there are so many photos."""
    count = 0
    for batch in batches:
        yield batch
        count += len(batch[0])
        if count >= photos:
            return


def _fit_vocabulary(output: DenseOutput, batches: Sequence[Float32Array], settings: AdaptationSettings) -> Vocabulary:
    """Centroids of local descriptors, as many of each photo, drawn at random."""
    rng = np.random.default_rng(_SEED)
    photos = sum(len(batch) for batch in batches)
    cells = batches[0].shape[2] * batches[0].shape[3]
    each = max(1, min(cells, settings.local_descriptors // photos))
    drawn = [
        photo.reshape(photo.shape[0], -1)[:, rng.choice(cells, each, replace=False)].T
        for batch in batches
        for photo in batch
    ]
    values = np.concatenate(drawn)[: settings.local_descriptors]
    deviation = values.std(axis=0, dtype=np.float64)
    vocabulary = Vocabulary(
        output,
        centroids=np.empty((0, values.shape[1]), np.float32),
        mean=values.mean(axis=0, dtype=np.float64).astype(np.float32),
        deviation=np.maximum(deviation, max(_SMALLEST_SHARE * deviation.max(), 1e-30)).astype(np.float32),
        mean_length=max(float(np.mean([np.linalg.norm(b.mean(axis=(2, 3)), axis=1).mean() for b in batches])), 1e-30),
        reduction=None,
        fitted_on=len(values),
        quantisation_error=0.0,
    )
    if values.shape[1] > settings.most_channels:
        reduction = _leading_directions(vocabulary.standardised(values), settings.reduced_channels)
        vocabulary = replace(vocabulary, reduction=reduction)
    local = vocabulary.standardised(values)
    kmeans = faiss.Kmeans(
        local.shape[1],
        min(settings.centroids, max(1, len(local) // _LEAST_PER_CENTROID)),
        niter=_KMEANS_STEPS,
        nredo=_KMEANS_TRIES,
        seed=_SEED,
        min_points_per_centroid=1,
        max_points_per_centroid=len(local),
    )
    kmeans.train(local)
    vocabulary = replace(vocabulary, centroids=_rounded(np.asarray(kmeans.centroids)))
    return replace(vocabulary, quantisation_error=max(0.0, vocabulary.error_of(local)))


def _principal_directions(
    residuals: Float32Array, settings: AdaptationSettings
) -> tuple[Float32Array, Float32Array, int, float]:
    """What is fitted to the joined residuals (n, V) of n photos.

    Few photos span few directions. Others, random ones at right angles to them, fill the descriptor up: photos that are
    appended later, and queries, differ from each other there.

    Returns:
        centre (V,), projection (V, r), how many directions are principal ones, and their share of the variance.
    """
    count, length = residuals.shape
    dim = min(settings.residual_dim, length)
    centre = residuals.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = residuals - centre
    squares, rows = np.linalg.eigh(_gram(centred))
    singular = np.sqrt(np.maximum(squares[::-1], 0.0))
    spanned = int((singular > _SMALLEST_SHARE * singular[0]).sum()) if singular[0] > 0.0 else 0
    kept = min(dim, count - 1, spanned)
    directions = centred.T @ (rows[:, ::-1][:, :kept] / singular[:kept]).astype(np.float32)
    directions = _signed(directions)
    parts = [directions / ((singular[:kept] / singular[0]) ** settings.power)] if kept else []
    if kept < dim:
        random = np.random.default_rng(_SEED).standard_normal((length, dim - kept), np.float32)
        random -= directions @ (directions.T @ random)
        random = np.linalg.qr(random)[0]
        # So many directions stand for all that are left.
        gain = _RANDOM_GAIN * np.sqrt((length - kept) / (dim - kept))
        divisor = (singular[kept - 1] / singular[0]) ** settings.power if kept else 1.0
        parts.append(random * gain / divisor)
    total = float((singular**2).sum())
    explained = float((singular[:kept] ** 2).sum()) / total if total else 0.0
    return centre, np.ascontiguousarray(np.concatenate(parts, axis=1), np.float32), kept, explained


def _leading_directions(values: Float32Array, dim: int) -> Float32Array:
    """(C, d) float32: the d directions with the most of values (n, C), d at most `dim` and C."""
    _, directions = np.linalg.eigh(_gram(values.T))
    kept = min(dim, values.shape[1])
    return _rounded(_signed(np.ascontiguousarray(directions[:, ::-1][:, :kept], np.float32)))


def _rounded(values: NDArray[np.floating[Any]]) -> Float32Array:
    """The values as the graph stores them, in fp16, so that numpy and graph compute with the same."""
    return np.asarray(values, np.float16).astype(np.float32)


def _gram(rows: Float32Array) -> NDArray[np.float64]:
    """(n, n) float64 inner products of rows (n, V), a block of columns at a time."""
    total = np.zeros((len(rows), len(rows)))
    for begin in range(0, rows.shape[1], _COLUMNS_AT_ONCE):
        block = rows[:, begin : begin + _COLUMNS_AT_ONCE].astype(np.float64)
        total += block @ block.T
    return total


def _signed(directions: Float32Array) -> Float32Array:
    """The same directions, each with its largest number positive: both signs are right, and one shall come out."""
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=0)[None], axis=0)
    return directions * np.where(largest < 0, -1.0, 1.0).astype(np.float32)


def _unit(values: NDArray[np.floating[Any]], smallest: float = _SMALLEST_LENGTH) -> Float32Array:
    """Rows divided by their length, or by the smallest one."""
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    return np.asarray(values / np.maximum(length, smallest), np.float32)
