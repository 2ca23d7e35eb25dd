"""Foreign models: an ONNX file and a TOML that describes it become an `ExportableModel`."""
