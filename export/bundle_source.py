"""A bundle as something to export again: whitened, in further precisions, or for a camera."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from export.source import ExportSource, run_on_cpu
from retrieval.bundle import open_bundle
from retrieval.errors import ParameterError


def bundle_source(folder: Path | None) -> ExportSource:
    """Open a bundle to make another of it.

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
    truth = run_on_cpu(graph)
    unpacked = onnx.ModelProto()
    unpacked.CopyFrom(graph)
    unpack_weights(unpacked)
    return ExportSource(
        name=manifest.name,
        graph=unpacked,
        preprocessing=manifest.preprocessing,
        descriptor_dim=manifest.descriptor_dim,
        provenance=manifest.provenance,
        licence=manifest.licence,
        truth=truth,
        truth_name=f"bundle {manifest.name} {bundle.fingerprint[:12]}",
    )


def unpack_weights(model: onnx.ModelProto) -> None:
    """Turn weights that are stored as fp16 and cast by the graph into fp32 ones. Works in place."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        tensor = stored.get(node.input[0]) if node.op_type == "Cast" else None
        if tensor is None or tensor.data_type != TensorProto.FLOAT16:
            nodes.append(node)
            continue
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), node.output[0]))
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    onnx.checker.check_model(model, full_check=True)
