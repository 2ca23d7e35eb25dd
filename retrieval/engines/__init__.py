"""What runs a bundle's graph: ONNX Runtime, OpenVINO, or a TensorRT plan. `choosing` opens one of them."""
