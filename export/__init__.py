"""From weights to a bundle: tracing, whitening, precisions, comparison with the original, and writing."""

import os

from retrieval.engines.onnx_runtime import NO_TELEMETRY

# Before any module of this package imports ONNX Runtime; see `load_onnxruntime`.
os.environ.setdefault(NO_TELEMETRY, "1")
