"""A bundle whose descriptors can be worked out on paper: the mean colour, in fp32 and, as another file, in fp16."""

from pathlib import Path

import onnx

from retrieval.artefact import record_files
from retrieval.bundle import Bundle, BundleManifest, bundle_fingerprint, open_bundle
from retrieval.images import Preprocessing
from tests.retrieval.mean_colour import mean_colour_graph

HEIGHT, WIDTH = 16, 20


def write_colour_bundle(folder: Path, height: int = HEIGHT, width: int = WIDTH, *, offset: float = 0.0) -> Bundle:
    """Write and open one for images of a size."""
    folder.mkdir()
    graphs = {"fp32": "model.onnx", "fp16": "model.fp16.onnx"}
    for precision, name in graphs.items():
        model = mean_colour_graph(height, width, offset=offset)
        model.doc_string = precision
        onnx.save(model, folder / name)
    files = record_files(folder, list(graphs.values()))
    preprocessing = Preprocessing(height=height, width=width, fit="stretch", filter="bicubic")
    BundleManifest.model_validate(
        {
            "name": "mean-colour",
            "descriptor_dim": 3,
            "preprocessing": preprocessing,
            "graphs": graphs,
            "provenance": {
                "backbone": "none",
                "aggregation": "mean",
                "weights": "none",
                "weights_licence": "none",
                "training_data": "none",
            },
            "licence": "Apache-2.0",
            "files": files,
            "fingerprint": bundle_fingerprint(files["model.onnx"], preprocessing),
        }
    ).write(folder)
    return open_bundle(folder)
