"""Let the registry's torchvision wheel import beside a CPU build of torch.

torchvision 0.28's wheel carries CUDA-linked native operators. With CPU torch its extension does not load, and the
import then fails with "operator torchvision::nms does not exist", because Python code registers fake kernels for two
operators whose schemas the extension would have defined. We use none of them (they are for detection), so defining the
two schemas beforehand is enough. Call this before timm, lightly or torchvision are imported.
"""

from typing import Any

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

# The library object must outlive this module's import: torch forgets the schemas with it.
_library: Any = None  # torch.library.Library, which has no types


def define_missing_operators() -> None:
    """Define the schemas of `torchvision::nms` and `torchvision::qnms` unless torch knows them; safe to call again."""
    global _library
    if _library is not None or torch.version.cuda is not None:
        return
    new_library: Any = torch.library.Library
    _library = new_library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            _library.define(schema)
