import pytest
import torch
from torch import nn

from retrieval.errors import ParameterError
from training.objectives.objective import contrastive_head, normalised_head, predictor, projection_dim
from training.objectives.registry import build_objective
from training.torchvision_ops import define_missing_operators


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def layers(module: nn.Module) -> str:
    """The layers in order: L with bias, l without, B batch norm, R ReLU."""
    kinds = {nn.BatchNorm1d: "B", nn.ReLU: "R"}
    return "".join(
        kinds.get(type(layer)) or ("L" if layer.bias is not None else "l")
        for layer in module.modules()
        if isinstance(layer, nn.Linear | nn.BatchNorm1d | nn.ReLU)
    )


def test_layers_follow_the_specification() -> None:
    assert [layers(contrastive_head(8, count, 16)) for count in range(3)] == ["", "L", "LRL"]
    assert [layers(normalised_head(8, count, 16, output_bias=True)) for count in range(4)] == [
        "",
        "L",
        "lBRL",
        "lBRlBRL",
    ]
    assert [layers(normalised_head(8, count, 16, output_bias=False)) for count in range(4)] == [
        "",
        "l",
        "lBRl",
        "lBRlBRl",
    ]
    assert layers(predictor(8, 16)) == "LBRL"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_shapes(count: int) -> None:
    descriptors = torch.randn(5, 8)
    width = projection_dim(8, count, 16)
    assert width == (16 if count else 8)
    assert contrastive_head(8, count, 16)(descriptors).shape == (5, width)
    assert normalised_head(8, count, 16, output_bias=True)(descriptors).shape == (5, width)


@pytest.mark.parametrize(
    ("objective", "millions", "digits"),
    [("simclr", 1.05, 2), ("barlow_twins", 6.3, 1), ("vicreg", 21.0, 1), ("byol", 21.0, 1), ("simsiam", 21.0, 1)],
)
def test_default_heads_have_the_specified_number_of_parameters(objective: str, millions: float, digits: int) -> None:
    built = build_objective(objective, 1024, {})
    assert round(parameters(built.projection) / 1e6, digits) == millions


def test_the_predictor_has_the_specified_number_of_parameters() -> None:
    assert round(parameters(predictor(4096, 4096)) / 1e6, 1) == 33.6
    assert round(parameters(build_objective("byol", 1024, {})) / 1e6, 0) == 55


def test_moco_and_triplet_have_no_head() -> None:
    assert parameters(build_objective("mocov2", 8, {"queue_size": 4})) == 0
    assert parameters(build_objective("triplet", 8, {})) == 0


def test_byols_heads_are_lightlys_but_for_a_redundant_bias() -> None:
    define_missing_operators()
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead

    ours, theirs = normalised_head(8, 2, 16, output_bias=True), BYOLProjectionHead(8, 16, 16)
    theirs.layers.load_state_dict(ours.state_dict())
    descriptors = torch.randn(5, 8)
    assert torch.equal(ours(descriptors), theirs(descriptors))
    assert parameters(predictor(16, 16)) == parameters(BYOLPredictionHead(16, 16, 16)) + 16


@pytest.mark.parametrize("count", [-1, 3])
def test_a_contrastive_head_has_at_most_two_layers(count: int) -> None:
    with pytest.raises(ParameterError, match=rf"head_layers is {count}, but this head has 0 to 2"):
        contrastive_head(8, count, 16)


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ParameterError, match="0 to 3"):
        normalised_head(8, 4, 16, output_bias=True)
    with pytest.raises(ParameterError, match="head_width is -1"):
        normalised_head(8, 1, -1, output_bias=True)
