"""Does an exported graph describe images as PyTorch does? Measured before anything is written."""

import numpy as np
import onnxruntime
import torch

from export.graph import DescriptionGraph
from retrieval.bundle import INPUT_NAME, ParityReport
from retrieval.images import RgbImage


def compare_with_pytorch(graph: DescriptionGraph, model: bytes, height: int, width: int) -> ParityReport:
    """Cosine between PyTorch's and ONNX Runtime's descriptors over noise of many scales, the hardest inputs we know.

    Args:
        graph: the PyTorch side, in evaluation mode on the CPU.
        model: the ONNX file's bytes.
        height, width: of the graph's input.
    """
    rng = np.random.default_rng(0)
    images = np.stack([_noise(rng, (height, width, 3), cells) for cells in (1, 2, 4, 8, 16, 32, 64, 128)])
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    ours = session.run(None, {INPUT_NAME: images})[0]
    with torch.inference_mode():
        theirs = graph(torch.from_numpy(images)).numpy()
    cosine = float((ours * theirs).sum(axis=1).min())
    return ParityReport(reference=f"PyTorch {torch.__version__.split('+')[0]}", images=len(images), min_cosine=cosine)


def _noise(rng: np.random.Generator, shape: tuple[int, int, int], cells: int) -> RgbImage:
    coarse = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    rows = np.arange(shape[0]) * cells // shape[0]
    columns = np.arange(shape[1]) * cells // shape[1]
    return coarse[rows][:, columns]
