"""Small nets as others export them, and the TOML that says how."""

import logging
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

HEIGHT, WIDTH, DIM = 48, 64, 12
IMAGENET = "scale = 255\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]"
PROVENANCE = """[provenance]
backbone = "three convolutions"
aggregation = "mean"
objective = "made up"
weights = "random 1.0"
weights_licence = "MIT"
training_data = "none"
"""


class SmallNet(nn.Module):
    """(N, 3, H, W) → (N, 12), as a net of this kind may be written.

    Args:
        baked: write the batch of the example into the graph.
        unit: end in an L2 norm.
        flat: leave out the sides that pooling leaves, (N, 12) rather than (N, 12, 1, 1).
        both: return the tokens beside the vector.
    """

    def __init__(self, *, baked: bool = False, unit: bool = False, flat: bool = True, both: bool = False) -> None:
        super().__init__()
        self.baked, self.unit, self.flat, self.both = baked, unit, flat, both
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, DIM, 3, 2, 1), nn.ReLU()
        )

    def forward(self, images: Tensor) -> Any:
        tokens = self.body(images)
        vector = tokens.mean((2, 3), keepdim=not self.flat)
        if self.baked:
            vector = vector.reshape(1, -1)
        if self.unit:
            vector = nn.functional.normalize(vector, dim=1)
        return (tokens, vector) if self.both else vector


class Bytes(nn.Module):
    """Takes (N, H, W, 3) uint8 and normalises itself."""

    def __init__(self) -> None:
        super().__init__()
        self.net = SmallNet()

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images.permute(0, 3, 1, 2).float() / 127.5 - 1)


class Last(nn.Module):
    """Takes (N, H, W, 3) float."""

    def __init__(self) -> None:
        super().__init__()
        self.net = SmallNet(unit=True)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images.permute(0, 3, 1, 2))


def export(
    net: nn.Module,
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    last: bool = False,
    batch: int = 1,
    dynamic: bool = True,
    opset: int = 17,
    names: tuple[str, ...] = ("image", "vector"),
) -> Path:
    """Export with PyTorch's older exporter, which most models in the wild come from.

    Args:
        last: channels come last.
        batch: of the example.
        dynamic: whether any batch is declared.
        names: of input and outputs.
    """
    shape = (batch, HEIGHT, WIDTH, 3) if last else (batch, 3, HEIGHT, WIDTH)
    example = torch.zeros(shape, dtype=dtype)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.eval(),
            (example,),
            path,
            dynamo=False,
            opset_version=opset,
            input_names=list(names[:1]),
            output_names=list(names[1:]),
            dynamic_axes={name: {0: "batch"} for name in names} if dynamic else None,
        )
    return path


def write_toml(path: Path, input_: str = IMAGENET, *, output: str = "", more: str = "") -> Path:
    """A TOML beside `net.onnx`.

    Args:
        path: of the folder.
        input_: lines of [input] besides the size.
        output: lines of [output].
        more: further tables.
    """
    toml = path / "net.toml"
    toml.write_text(
        f'name = "small"\nonnx = "net.onnx"\n[input]\nheight = {HEIGHT}\nwidth = {WIDTH}\n{input_}\n'
        f"[output]\n{output}\n{more}\n{PROVENANCE}"
    )
    return toml


def mean_graph(*nodes: onnx.NodeProto, sides: tuple[Any, ...], out: tuple[Any, ...]) -> onnx.ModelProto:
    """A graph of hand-written nodes from `image` to `vector`, both float32."""
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, sides)
    vector = onnx.helper.make_tensor_value_info("vector", onnx.TensorProto.FLOAT, out)
    graph = onnx.helper.make_graph(list(nodes), "hand-written", [image], [vector])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
