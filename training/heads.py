"""Projection heads and predictors: layers between the descriptor and the loss, dropped after training.

Layer counts, widths, biases and batch norms follow VG-SSL (WACV 2025, arXiv 2308.00090); every layer of a projection
head has the same width. A head of zero layers is the identity: the loss then acts on the descriptor itself.
"""

from torch import nn

from retrieval.errors import ParameterError


def contrastive_head(descriptor_dim: int, layers: int, width: int) -> nn.Module:
    """SimCLR's and MoCo's head: Linear, or Linear-ReLU-Linear, with biases and without batch norm.

    Args:
        descriptor_dim: D.
        layers: how many Linear layers, 0, 1 or 2.
        width: every layer's output width P; unused with 0 layers.

    Returns:
        (N, D) → (N, P), or (N, D) → (N, D) with 0 layers.

    Raises:
        ParameterError: layers outside 0 to 2, or a width that is not positive.
    """
    _check(layers, width, most_layers=2)
    if layers == 0:
        return nn.Identity()
    if layers == 1:
        return nn.Linear(descriptor_dim, width)
    return nn.Sequential(nn.Linear(descriptor_dim, width), nn.ReLU(inplace=True), nn.Linear(width, width))


def normalised_head(descriptor_dim: int, layers: int, width: int, *, output_bias: bool) -> nn.Module:
    """Linear-BN-ReLU blocks and a last Linear; a Linear before a batch norm has no bias, since the norm removes it.

    Args:
        descriptor_dim: D.
        layers: how many Linear layers, 0 to 3.
        width: every layer's output width P; unused with 0 layers.
        output_bias: whether the last Linear has a bias: yes for BYOL and SimSiam, no for Barlow Twins and VICReg.

    Returns:
        (N, D) → (N, P), or (N, D) → (N, D) with 0 layers.

    Raises:
        ParameterError: layers outside 0 to 3, or a width that is not positive.
    """
    _check(layers, width, most_layers=3)
    if layers == 0:
        return nn.Identity()
    blocks: list[nn.Module] = []
    input_dim = descriptor_dim
    for _ in range(layers - 1):
        blocks += [nn.Linear(input_dim, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
        input_dim = width
    return nn.Sequential(*blocks, nn.Linear(input_dim, width, bias=output_bias))


def predictor(projection_dim: int, width: int) -> nn.Module:
    """BYOL's and SimSiam's predictor: Linear-BN-ReLU-Linear, (N, P) → (N, P), biases on.

    Args:
        projection_dim: P, of the projections it predicts.
        width: of its hidden layer.
    """
    return nn.Sequential(
        nn.Linear(projection_dim, width),
        nn.BatchNorm1d(width),
        nn.ReLU(inplace=True),
        nn.Linear(width, projection_dim),
    )


def projection_dim(descriptor_dim: int, layers: int, width: int) -> int:
    """How wide a head's output is: P, or D when there is no head."""
    return width if layers else descriptor_dim


def _check(layers: int, width: int, *, most_layers: int) -> None:
    if not 0 <= layers <= most_layers:
        raise ParameterError(
            f"head_layers is {layers}, but this head has 0 to {most_layers}",
            remedy="Set head_layers within that range; 0 puts the loss on the descriptor itself",
        )
    if layers and width < 1:
        raise ParameterError(f"head_width is {width}", remedy="Set head_width to a positive number, for example 1024")
