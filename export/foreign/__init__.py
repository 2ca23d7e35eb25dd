"""Foreign models: an ONNX file and a TOML that describes it become an `ExportableModel`."""

from export.foreign.importing import read_foreign_model

__all__ = ["read_foreign_model"]
