"""What runs a bundle's graph: ONNX Runtime, OpenVINO, or a TensorRT plan. `retrieval.describer` chooses among them."""
