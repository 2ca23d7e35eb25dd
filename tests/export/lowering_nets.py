"""Small nets and deliberate damage, for the tests of lower precisions."""

from collections.abc import Callable
from functools import cache

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from export.from_pytorch import DescriptionGraph, export_graph
from tests.places import pattern
from training.descriptor_net import DescriptorNet, GeM

SIZE = (32, 48)


class SmallBackbone(nn.Module):
    """Convolutions, one of them depthwise, and a residual, as in the nets we ship."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.pointwise = nn.Conv2d(16, 16, 1, bias=False)
        self.last = nn.Conv2d(16, 64, 3, stride=2)

    def forward_features(self, images: Tensor) -> Tensor:
        stem = nn.functional.relu6(self.stem(images))
        wide = nn.functional.relu6(self.depthwise(stem))
        return self.last(self.pointwise(wide) + stem)


@cache
def small_graph() -> onnx.ModelProto:
    """fp32, (N, 32, 48, 3) uint8 → (N, 12), random weights."""
    torch.manual_seed(0)
    net = DescriptorNet(SmallBackbone(), GeM(p=3.0, learnable=False), nn.Linear(64, 12))
    graph = DescriptionGraph(net, (120.0, 115.0, 100.0), (58.0, 57.0, 56.0)).eval()
    return export_graph(graph, *SIZE, {"sightfix.name": "small"})


def pictures(count: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(count, *size, 3) uint8: coarse coloured blocks with some noise."""
    rng = np.random.default_rng(count)
    flat = np.stack([np.asarray(pattern(seed, size[::-1])) for seed in range(count)]).astype(np.int16)
    return (flat + rng.integers(-20, 21, flat.shape)).clip(0, 255).astype(np.uint8)


def with_weight(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> onnx.ModelProto:
    """A copy whose initializer of that name is changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    (tensor,) = [tensor for tensor in copy.graph.initializer if tensor.name == name]
    before = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(change(before.copy()).astype(before.dtype), name))
    return copy


def initializer(model: onnx.ModelProto, part: str) -> str:
    """The name of the only initializer that contains a text."""
    (name,) = [tensor.name for tensor in model.graph.initializer if part in tensor.name]
    return name
