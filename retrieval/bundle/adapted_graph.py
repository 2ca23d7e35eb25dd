"""The graph of an adapted bundle: cut at its dense outputs, with VLAD and projection behind them."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from retrieval.bundle.bundle import INPUT_NAME, OUTPUT_NAME, Bundle, DenseOutput
from retrieval.bundle.exportable import open_on_cpu
from retrieval.bundle.onnx_graph import (
    ADAPTATION_PREFIX,
    VOCABULARY_PREFIX,
    constants,
    inputs_of,
    producers,
    replace_nodes,
)
from retrieval.bundle.vlad import (
    SMALLEST_LENGTH,
    SMALLEST_RESIDUAL,
    Adaptation,
    Float32Array,
    Vocabulary,
    layer_share,
    residual_scales,
)
from retrieval.errors import BundleError, ParameterError

# Of the operators that are appended.
MIN_OPSET_TO_ADAPT: Final = 18

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
    residuals, means = [], []
    for place, vocabulary in enumerate(adaptation.vocabularies):
        share = layer_share(adaptation.vocabularies, place)
        flat = tail.add("Reshape", vocabulary.dense.tensor, tail.constant("flat", np.array([0, 0, -1], np.int64)))
        local = _local_nodes(tail, vocabulary, flat, place)
        residuals.append(_residual_nodes(tail, vocabulary, local, adaptation.settings.sharpness, place))
        mean = tail.add("ReduceMean", flat, tail.constant("axis.2", np.array([2], np.int64)), keepdims=0)
        means.append(tail.scaled(mean, share / vocabulary.mean_length, f"share.{place}"))
    projection = adaptation.residual_projection
    bias = -(adaptation.centre.astype(np.float64) @ projection.astype(np.float64))
    scales = residual_scales(adaptation.vocabularies)
    projected = tail.add(
        "Gemm",
        tail.joined(residuals),
        tail.constant("projection.residuals", scales * projection),
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


def vocabularies_in(bundle: Bundle, graph: onnx.ModelProto) -> list[Vocabulary]:
    """The vocabularies of an adapted bundle, read from its graph."""
    report = bundle.manifest.adaptation
    if report is None:
        raise ParameterError(f"the bundle {bundle.name} was not adapted", where=str(bundle.folder))
    values = constants(graph)
    found = []
    for place, (dense, known) in enumerate(zip(bundle.manifest.dense_outputs, report.vocabularies, strict=True)):
        name = f"{ADAPTATION_PREFIX}{VOCABULARY_PREFIX}{place}"
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

    def unit(self, values: str, axis: int, output: str | None = None, smallest: float = SMALLEST_LENGTH) -> str:
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
    name = f"{VOCABULARY_PREFIX}{place}"
    centred = tail.add("Sub", flat, tail.constant(f"{name}.mean", vocabulary.mean[:, None]))
    local = tail.add("Div", centred, tail.constant(f"{name}.deviation", vocabulary.deviation[:, None]))
    if vocabulary.reduction is not None:
        local = tail.add("MatMul", tail.constant(f"{name}.reduction", vocabulary.reduction.T), local)
    return tail.unit(local, 1)


def _residual_nodes(tail: _Tail, vocabulary: Vocabulary, local: str, sharpness: float, place: int) -> str:
    """[N, c, P] → [N, K·c]: as `Vocabulary.residuals`, not yet scaled."""
    centroids, name = vocabulary.centroids, f"{VOCABULARY_PREFIX}{place}"
    offset = -sharpness * (centroids**2).sum(axis=1, keepdims=True) / 2
    nearness = tail.add("MatMul", tail.constant(f"{name}.sharpened", sharpness * centroids), local)
    exponents = tail.add("Add", nearness, tail.constant(f"{name}.offset", offset.astype(np.float32)))
    shares = tail.add("Softmax", exponents, axis=1)
    sums = tail.add("MatMul", shares, tail.add("Transpose", local, perm=[0, 2, 1]))
    mass = tail.add("ReduceSum", shares, tail.constant("axis.2", np.array([2], np.int64)), keepdims=1)
    expected = tail.add("Mul", mass, tail.constant(f"{name}.centroids", centroids))
    cells = tail.unit(tail.add("Sub", sums, expected), 2, smallest=SMALLEST_RESIDUAL)
    return tail.add("Reshape", cells, tail.constant("joined", np.array([0, -1], np.int64)))


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
            open_names.extend(inputs_of(makers[name]) if name in makers else ())
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


def _batch_name(graph: onnx.ModelProto) -> str:
    return graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param or "N"
