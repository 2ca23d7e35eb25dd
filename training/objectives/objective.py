"""What every objective has in common: its settings, its input, its heads, and rows gathered from all processes.

Projection heads and predictors are layers between the descriptor and the loss, dropped after training. Layer counts,
widths, biases and batch norms follow VG-SSL (WACV 2025, arXiv 2308.00090); every layer of a projection head has the
same width. A head of zero layers is the identity: the loss then acts on the descriptor itself.

How gradients add up over processes: an objective that averages over its own rows, or computes one global loss from
gathered rows, gives each process the gradient of (number of processes × the loss of the whole batch) with respect to
its own descriptors. DistributedDataParallel averages over processes, so parameters get exactly the whole batch's
gradient.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

import torch
import torch.distributed
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from retrieval.errors import ParameterError, SightfixError
from training.descriptor_net import in_full_precision
from training.torchvision_ops import define_missing_operators

View = Literal["x", "y"]
Scalars = dict[str, Tensor]


class ObjectiveError(SightfixError):
    """An objective that cannot be built, or cannot work on the batch it is given."""

    default_code = "objective"


class ObjectiveSettings(BaseModel):
    """Base of the objectives' settings: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class DescribedPairs:
    """A batch of N pairs, described. What an objective does not ask for may be None.

    Attributes:
        x: (N, D) float, unit rows: the online encoder's descriptors of the first photos.
        y: (N, D) float, unit rows: of the second photos.
        target_x: (N, P) float without gradient: the momentum encoder's projections of the first photos.
        target_y: (N, P) float without gradient: of the second photos.
        negatives: (N, K, D) float, unit rows: mined photos of other places than the pair's.
        x_positions: (N, 3) float64, where the first photos were taken, as `retrieval.geo.unit_vectors` gives it.
            Without positions, nothing but a photo's own other view is known to show the same place.
        y_positions: (N, 3) float64, where the second photos were taken.
    """

    x: Tensor
    y: Tensor | None = None
    target_x: Tensor | None = None
    target_y: Tensor | None = None
    negatives: Tensor | None = None
    x_positions: Tensor | None = None
    y_positions: Tensor | None = None

    def in_full_precision(self) -> "DescribedPairs":
        """The same with half-precision tensors as float32: losses take exponentials and sums over the batch."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: in_full_precision(value) for name, value in tensors.items() if value is not None})


class Objective(nn.Module, ABC):
    """A training loss with the heads it needs.

    A subclass states what it must be given by `online_views`, `target_views` and `needs_negatives`.

    Args:
        projection: descriptors (N, D) → projections (N, P).
        target_decay: of the momentum encoder whose projections are the target views; None without target views.
    """

    settings_class: ClassVar[type[ObjectiveSettings]]
    online_views: ClassVar[tuple[View, ...]] = ("x", "y")
    target_views: ClassVar[tuple[View, ...]] = ()
    needs_negatives: ClassVar[bool] = False
    min_pairs: ClassVar[int] = 2

    def __init__(self, projection: nn.Module, target_decay: float | None = None) -> None:
        super().__init__()
        self.projection = projection
        self.target_decay = target_decay

    def check_batch_size(self, pairs: int) -> None:
        """Raise ObjectiveError where batches of so many pairs, of all processes, can never work."""
        if pairs < self.min_pairs:
            raise ObjectiveError(
                f"{type(self).__name__} needs at least {self.min_pairs} pairs in a batch and was given {pairs}",
                remedy="Raise the batch size, or give more photos",
            )

    @abstractmethod
    def forward(self, pairs: DescribedPairs) -> tuple[Tensor, Scalars]:
        """The loss of a batch.

        Args:
            pairs: in full precision; every process has the same N.

        Returns:
            The loss, a scalar with gradient, and named scalars to log.
        """


def required(tensor: Tensor | None) -> Tensor:
    """A tensor that the objective asks for, which is therefore there."""
    assert tensor is not None, "the objective was given less than it asks for"
    return tensor


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
    _check_head(layers, width, most_layers=2)
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
    _check_head(layers, width, most_layers=3)
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


def _check_head(layers: int, width: int, *, most_layers: int) -> None:
    if not 0 <= layers <= most_layers:
        raise ParameterError(
            f"head_layers is {layers}, but this head has 0 to {most_layers}",
            remedy="Set head_layers within that range; 0 puts the loss on the descriptor itself",
        )
    if layers and width < 1:
        raise ParameterError(f"head_width is {width}", remedy="Set head_width to a positive number, for example 1024")


def process_count() -> int:
    """How many processes train together; 1 without torch.distributed."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1


def process_rank() -> int:
    """This process's number, from 0."""
    return torch.distributed.get_rank() if process_count() > 1 else 0


def gather_rows(rows: Tensor) -> Tensor:
    """All processes' rows in order of rank; gradients flow back to the process that made them.

    Args:
        rows: (N, …), the same shape in every process.

    Returns:
        (processes · N, …); `rows` itself where there is one process.
    """
    if process_count() == 1:
        return rows
    define_missing_operators()
    from lightly.utils.dist import gather

    return torch.cat(list(gather(rows.contiguous())), dim=0)
