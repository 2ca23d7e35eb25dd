"""A minimal LitServe server with the same ONNX model and FAISS index: `python litserve_peer.py MODEL INDEX PORT`.

Needs litserve, onnxruntime, faiss-cpu and pillow, in an environment of its own; it is no dependency of sightfix.
"""
# ruff: noqa: D102

import io
import os
import sys
from typing import Any

import faiss
import litserve
import numpy as np
import onnxruntime
from fastapi import Request
from PIL import Image


class Localize(litserve.LitAPI):
    """Decode with Pillow (draft and bicubic, as we do), describe a batch, search it."""

    def setup(self, device: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
        self.side = self.session.get_inputs()[0].shape[1:3]
        self.index = faiss.read_index(sys.argv[2])

    def decode_request(self, request: Request) -> np.ndarray:  # type: ignore[override]
        image = Image.open(io.BytesIO(request["image"].file.read()))
        image.draft("RGB", (self.side[1], self.side[0]))
        return np.asarray(image.convert("RGB").resize((self.side[1], self.side[0]), Image.Resampling.BICUBIC))

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        return np.stack(inputs)

    def predict(self, images: np.ndarray) -> Any:
        scores, rows = self.index.search(self.session.run(None, {"images": images})[0], 10)
        return list(zip(scores, rows, strict=True))

    def unbatch(self, output: Any) -> Any:
        return output

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"scores": output[0].tolist(), "rows": output[1].tolist()}


if __name__ == "__main__":
    api = Localize(max_batch_size=32, batch_timeout=0.005)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=60)
    server.run(
        port=int(sys.argv[3]), host="127.0.0.1", num_api_servers=1, generate_client_file=False, log_level="error"
    )
