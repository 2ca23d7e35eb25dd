"""The bundle: an exported model with its own preprocessing, opened, written, and its graph.

Writing, changing and adapting graphs (`writer`, `onnx_graph`, `exportable`, `adapted_graph`, `adaptation`) need the
package onnx; opening a bundle does not.
"""

from retrieval.bundle.bundle import (
    HELD_NAME,
    INPUT_NAME,
    OUTPUT_NAME,
    AdaptationReport,
    Bundle,
    BundleManifest,
    DenseOutput,
    ParityReport,
    Precision,
    PrecisionReport,
    ProjectionReport,
    Provenance,
    RecallChange,
    VocabularyReport,
    WhiteningReport,
    bundle_fingerprint,
    bundle_folder,
    default_bundle_folder,
    layer_and_weight,
    layer_text,
    open_bundle,
)

__all__ = [
    "HELD_NAME",
    "INPUT_NAME",
    "OUTPUT_NAME",
    "AdaptationReport",
    "Bundle",
    "BundleManifest",
    "DenseOutput",
    "ParityReport",
    "Precision",
    "PrecisionReport",
    "ProjectionReport",
    "Provenance",
    "RecallChange",
    "VocabularyReport",
    "WhiteningReport",
    "bundle_fingerprint",
    "bundle_folder",
    "default_bundle_folder",
    "layer_and_weight",
    "layer_text",
    "open_bundle",
]
