"""The bundle: an exported model with its own preprocessing, opened, written, and its graph.

Writing and changing graphs (`writer`, `onnx_graph`, `exportable`) need the package onnx; opening a bundle does not.
"""

from retrieval.bundle.bundle import (
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
    default_bundle_folder,
    open_bundle,
)

__all__ = [
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
    "default_bundle_folder",
    "open_bundle",
]
