"""Layers of a backbone as local descriptors: one for each cell of a grid over the image.

A layer is a module that gives one map, such as `layer3` of a ResNet or `blocks.9` of a vision transformer, whose class
and register tokens are left out. `blocks.9:value` is what attention of that block sums up: the values, before any
mixing of cells (AnyLoc, Keetha et al., "AnyLoc: Towards Universal Visual Place Recognition", RA-L 2023).
"""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from retrieval.bundle import layer_and_weight
from retrieval.errors import ParameterError
from training.backbones import Layout

_VALUE: Final = "value"
_FACETS: Final = ("token", _VALUE)
# The part of a transformer's depth that AnyLoc found best: block 31 of 40.
_DEPTH: Final = (31, 40)
# What EfficientNet-Lite adapts to places with, layers and weights as chosen for the shipped bundle on parts of two sets
# of photos; see docs/explanation/adaptation.md. Larger ones than Lite2 have longer blocks.
_LITE: Final = re.compile(r"(tf_)?efficientnet_lite[0-2]")
_LAYERS_OF_LITE: Final = ("blocks.3:0.5", "blocks.4", "blocks.5.2")
_NUMBERED: Final = re.compile(r"(.*?)\d+")


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """A layer, and how its output becomes local descriptors.

    Attributes:
        name: `layer3`, `blocks.9` or `blocks.9:value`.
        module: path in the backbone of the module whose output is read.
        channels: C, numbers in a local descriptor.
        grid: (h, w), cells down and across.
        layout: of the module's output.
        weight: of the layer's part in a descriptor.
    """

    name: str
    module: str
    channels: int
    grid: tuple[int, int]
    layout: Layout
    weight: float = 1.0

    def local_descriptors(self, output: Tensor) -> Tensor:
        """The module's output as (N, C, h, w), not normalised."""
        if self.layout == "channels_first":
            return output
        if self.layout == "channels_last":
            return output.permute(0, 3, 1, 2)
        # Class and register tokens stand before the patches, queries and keys before the values.
        tokens = output[:, -self.grid[0] * self.grid[1] :, -self.channels :]
        return torch.unflatten(tokens.transpose(1, 2), 2, self.grid)


def dense_layers(backbone: nn.Module, height: int, width: int, names: Sequence[str] | None = None) -> list[DenseLayer]:
    """Find layers by name.

    Args:
        backbone: from `training.backbones.timm_backbone`, set to this size of images.
        height, width: of the images, pixels.
        names: modules (`layer3`, `blocks.4`) or numbers of stages or blocks (`3`, `4`), of a transformer with a facet
            if need be (`9:value`; `9:token` is `9`), and with a weight where it is not 1 (`blocks.3:0.5`). None takes
            the family's: the last two stages (ResNet's `layer3` and `layer4`); of EfficientNet-Lite0 to Lite2
            `blocks.3:0.5`, `blocks.4` and `blocks.5.2`, of other EfficientNets `blocks.4` and `blocks.5`; one block of
            a transformer at about three quarters of its depth, its values where it has them.

    Returns:
        in the order of the names; empty where none are given and the family has no such layers.

    Raises:
        ParameterError: no such layer; the error lists those there are (``unknown_layer``). Or a weight is not a
            number above 0 (``bad_weight``).
    """
    outputs = _outputs(backbone, height, width)
    stages = _stages(backbone, outputs)
    grid = getattr(getattr(backbone, "patch_embed", None), "grid_size", None)

    def find(text: str) -> DenseLayer | None:
        name, weight = layer_and_weight(text)
        layer = find_named(name)
        return None if layer is None else replace(layer, weight=weight)

    def find_named(name: str) -> DenseLayer | None:
        place, _, facet = name.partition(":")
        if place.isdecimal() and stages:
            numbered = _NUMBERED.fullmatch(stages[-1])
            place = f"{numbered[1] if numbered else ''}{place}"
        if facet not in ("", *_FACETS):
            return None
        if facet == _VALUE:
            return _layer(f"{place}:{_VALUE}", f"{place}.attn.qkv", outputs, backbone, grid, parts=3)
        return _layer(place, place, outputs, backbone, grid)

    if names is None:
        found = (find(name) or find(name.removesuffix(f":{_VALUE}")) for name in _default_names(backbone, stages))
        return [layer for layer in found if layer is not None]
    layers = []
    for name in names:
        layer = find(name)
        if layer is None:
            choices = [stage for stage in stages if find(stage)] or ["those that give one map of the image"]
            values = any(find(f"{stage}:{_VALUE}") for stage in choices)
            raise ParameterError(
                f"the backbone has no layer {layer_and_weight(name)[0]!r} that gives one map",
                remedy=f"Choose among {', '.join(choices)}"
                + (f"; with :{_VALUE} after it for the values of its attention" if values else ""),
                code="unknown_layer",
            )
        layers.append(layer)
    return layers


def last_layer(backbone: nn.Module, height: int, width: int) -> DenseLayer:
    """The last stage or block that gives one map.

    Args:
        backbone, height, width: as `dense_layers`.

    Raises:
        ParameterError: there is none (``unknown_layer``).
    """
    stages = _stages(backbone, _outputs(backbone, height, width))
    kept = [path for path in stages if not isinstance(backbone.get_submodule(path), nn.Identity)]
    # Without any, the error is that of a name that is not there.
    (layer,) = dense_layers(backbone, height, width, kept[-1:] or ["last"])
    return layer


def cut_after(backbone: nn.Module, layers: Sequence[DenseLayer], height: int, width: int) -> None:
    """Leave out of a backbone everything behind the last of some layers; works in place.

    What runs later becomes the identity, so that `forward_features` ends with the layer, or as a facet of a block is
    read there, with something that nobody reads.

    Args:
        backbone: from `training.backbones.timm_backbone`, with its weights, set to this size of images.
        layers: of this backbone.
        height, width: of the images, pixels.

    Raises:
        ParameterError: something else than modules follows the layer (``not_truncatable``).
    """
    sketch: Any = copy.deepcopy(backbone).to("meta").eval()
    events: list[tuple[str, bool]] = []
    for path, module in sketch.named_modules():
        module.register_forward_pre_hook(lambda _module, _inputs, path=path: events.append((path, False)))
        module.register_forward_hook(lambda _module, _inputs, _output, path=path: events.append((path, True)))
    with torch.inference_mode():
        sketch.forward_features(torch.zeros((2, 3, height, width), device="meta"))
    last = max(layers, key=lambda layer: events.index((layer.module, True)))
    end = events.index((last.module, True))
    before = {path for path, _ in events[:end]}
    behind = dict.fromkeys(path for path, _ in events[end:] if path not in before)
    for path in behind:
        if path.rpartition(".")[0] not in behind:
            backbone.set_submodule(path, nn.Identity())
    if last.name == last.module and not _ends_with(backbone, last, height, width):
        raise ParameterError(
            f"the backbone cannot end after {last.name}: its features are not what this layer gives",
            remedy="Choose another layer, or leave network.truncate_after out",
            code="not_truncatable",
        )


def _ends_with(backbone: Any, layer: DenseLayer, height: int, width: int) -> bool:
    """Whether a backbone, in training mode as built, gives as its features what a layer of it gives."""
    given: list[Tensor] = []
    hook = backbone.get_submodule(layer.module).register_forward_hook(lambda *call: given.append(call[2]))
    backbone.eval()
    try:
        with torch.no_grad():
            image = torch.linspace(-1, 1, 3 * height * width).reshape(1, 3, height, width)
            features = backbone.forward_features(image)
    finally:
        backbone.train()
        hook.remove()
    return isinstance(features, Tensor) and torch.equal(features, given[0])


@contextmanager
def reading(backbone: nn.Module, layers: Sequence[DenseLayer]) -> Iterator[Mapping[str, Tensor]]:
    """While it is open, each run of the backbone leaves (N, C, h, w) local descriptors under the layers' names."""
    found: dict[str, Tensor] = {}

    def read(layer: DenseLayer) -> Any:
        def remember(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            found[layer.name] = layer.local_descriptors(output)

        return backbone.get_submodule(layer.module).register_forward_hook(remember)

    hooks = [read(layer) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _outputs(backbone: nn.Module, height: int, width: int) -> dict[str, torch.Size]:
    """Shape of the output of each module that runs exactly once and gives a tensor; found without arithmetic."""
    sketch: Any = copy.deepcopy(backbone).to("meta").eval()
    shapes: dict[str, list[torch.Size | None]] = {}

    def note(path: str, module: nn.Module) -> None:
        module.register_forward_hook(
            lambda _module, _inputs, output: shapes.setdefault(path, []).append(
                output.shape if isinstance(output, Tensor) else None
            )
        )

    for path, module in sketch.named_modules():
        note(path, module)
    with torch.inference_mode():
        sketch.forward_features(torch.zeros((2, 3, height, width), device="meta"))
    once = {path: runs[0] for path, runs in shapes.items() if len(runs) == 1}
    return {path: shape for path, shape in once.items() if path and shape is not None and shape[0] == 2}


def _stages(backbone: Any, outputs: Mapping[str, torch.Size]) -> list[str]:
    """The stages or blocks of a backbone: modules numbered like the last one that timm takes features from."""
    features = [str(info["module"]) for info in _feature_info(backbone) if info["module"] in outputs]
    if not features:
        return [path for path in outputs if re.fullmatch(r"blocks\.\d+", path)]
    numbered = _NUMBERED.fullmatch(features[-1])
    if numbered is None:
        return features
    return [path for path in outputs if re.fullmatch(re.escape(numbered[1]) + r"\d+", path)]


def _default_names(backbone: Any, stages: Sequence[str]) -> list[str]:
    infos = _feature_info(backbone)
    if _LITE.fullmatch(str(getattr(backbone, "pretrained_cfg", {}).get("architecture", ""))):
        return list(_LAYERS_OF_LITE)
    if type(backbone).__name__ == "EfficientNet" and len(stages) == 7:
        return [stages[4], stages[5]]
    if len({info["reduction"] for info in infos}) <= 1 and stages:
        return [f"{stages[len(stages) * _DEPTH[0] // _DEPTH[1]]}:{_VALUE}"]
    return [info["module"] for info in infos[-2:]]


def _feature_info(backbone: Any) -> list[dict[str, Any]]:
    info = getattr(backbone, "feature_info", ())
    return list(getattr(info, "info", info))


def _layer(
    name: str,
    module: str,
    outputs: Mapping[str, torch.Size],
    backbone: nn.Module,
    grid: tuple[int, int] | None,
    parts: int = 1,
) -> DenseLayer | None:
    """None where the module does not give one map of the image, or is left out of a backbone that was cut."""
    shape = outputs.get(module, torch.Size())
    if module in outputs and isinstance(backbone.get_submodule(module), nn.Identity):
        return None
    if len(shape) == 4 and parts == 1:
        if getattr(backbone, "output_fmt", "NCHW") == "NHWC":
            return DenseLayer(name, module, shape[3], (shape[1], shape[2]), "channels_last")
        return DenseLayer(name, module, shape[1], (shape[2], shape[3]), "channels_first")
    if len(shape) != 3 or grid is None:
        return None
    others = shape[1] - grid[0] * grid[1]
    if others not in (0, getattr(backbone, "num_prefix_tokens", 0)) or shape[2] % parts:
        return None
    return DenseLayer(name, module, shape[2] // parts, (grid[0], grid[1]), "tokens")
