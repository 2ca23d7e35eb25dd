"""Rows of all processes in one tensor, through which gradients flow back to the process that made them.

How gradients add up: an objective that averages over its own rows, or computes one global loss from gathered rows,
gives each process the gradient of (number of processes × the loss of the whole batch) with respect to its own
descriptors. DistributedDataParallel averages over processes, so parameters get exactly the whole batch's gradient.
"""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

import torch
import torch.distributed
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from retrieval.errors import ParameterError, SightfixError
from training.torchvision_ops import define_missing_operators


def process_count() -> int:
    """How many processes train together; 1 without torch.distributed."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1


def process_rank() -> int:
    """This process's number, from 0."""
    return torch.distributed.get_rank() if process_count() > 1 else 0


def gathered(rows: Tensor) -> Tensor:
    """All processes' rows in order of rank, with gradient.

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


# The target of BYOL and MoCo: a copy of encoder and projection head that follows them slowly.


class MomentumEncoder(nn.Module):
    """An exponential moving average of the online encoder and projection head (He et al., MoCo, CVPR 2020).

    Only parameters are averaged. Buffers are the copy's own: in train mode its batch norms see the batch as the online
    ones do, and keep their own running statistics. Everything is in the state_dict, so resuming is exact.

    Args:
        encoder: images (N, 3, H, W) → descriptors (N, D); copied.
        projection: (N, D) → (N, P); copied.
        decay: how much of the old value stays at each update, 0 to 1.
    """

    def __init__(self, encoder: nn.Module, projection: nn.Module, decay: float) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.projection = copy.deepcopy(projection).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Project normalised images: (N, 3, H, W) float → (N, P) float without gradient."""
        descriptors: Tensor = self.encoder(images)
        if descriptors.dtype in (torch.float16, torch.bfloat16):
            descriptors = descriptors.float()
        with torch.autocast(images.device.type, enabled=False):
            projections: Tensor = self.projection(descriptors)
        return projections

    @torch.no_grad()
    def update(self, encoder: nn.Module, projection: nn.Module) -> None:
        """Move towards the online parameters: target = decay · target + (1 − decay) · online.

        Call it after every optimizer step, not after every micro-batch.

        Args:
            encoder: the online encoder, of the same build as the copied one.
            projection: the online projection head.
        """
        online: list[Tensor] = [*encoder.parameters(), *projection.parameters()]
        target: list[Tensor] = [*self.encoder.parameters(), *self.projection.parameters()]
        assert len(online) == len(target), "the target was made of another network"
        torch._foreach_mul_(target, self.decay)
        torch._foreach_add_(target, online, alpha=1.0 - self.decay)


# Projection heads and predictors: layers between the descriptor and the loss, dropped after training.
#
# Layer counts, widths, biases and batch norms follow VG-SSL (WACV 2025, arXiv 2308.00090); every layer of a projection
# head has the same width. A head of zero layers is the identity: the loss then acts on the descriptor itself.


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


# What every objective has in common: its settings, what it is given, and what it answers.

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
        target_x: (N, P) float without gradient: the target's projections of the first photos.
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
        widened = {
            field.name: value.float()
            for field in fields(self)
            if (value := getattr(self, field.name)) is not None and value.dtype in (torch.float16, torch.bfloat16)
        }
        return replace(self, **widened)


class Objective(nn.Module, ABC):
    """A training loss with the heads it needs.

    A subclass states what it must be given by `online_views`, `target_views` and `needs_negatives`.

    Args:
        projection: descriptors (N, D) → projections (N, P).
    """

    settings_class: ClassVar[type[ObjectiveSettings]]
    online_views: ClassVar[tuple[View, ...]] = ("x", "y")
    target_views: ClassVar[tuple[View, ...]] = ()
    needs_negatives: ClassVar[bool] = False
    min_pairs: ClassVar[int] = 2

    def __init__(self, projection: nn.Module) -> None:
        super().__init__()
        self.projection = projection

    @property
    def needs_target(self) -> bool:
        """Whether the loop must keep a momentum encoder for this objective."""
        return bool(self.target_views)

    def make_target(self, encoder: nn.Module) -> MomentumEncoder | None:
        """The momentum encoder this objective compares with, or None; make it before the encoder is wrapped for DDP."""
        del encoder
        return None

    def check_batch_size(self, pairs: int) -> None:
        """Raise ObjectiveError where batches of so many pairs, of all processes, can never work."""
        if pairs < self.min_pairs:
            raise ObjectiveError(
                f"{type(self).__name__} needs at least {self.min_pairs} pairs in a batch and was given {pairs}",
                remedy="Raise the batch size, or give more photos",
            )

    def forward(self, pairs: DescribedPairs) -> tuple[Tensor, Scalars]:
        """The loss of a batch, always in full precision, and numbers to log.

        Args:
            pairs: the batch; every process has the same N.

        Returns:
            The loss, a scalar with gradient; and named scalars without gradient, among them `loss`.

        Raises:
            ObjectiveError: too few pairs, or (MoCo) more than the queue holds.
        """
        self._check(pairs)
        with torch.autocast(pairs.x.device.type, enabled=False):
            loss, scalars = self.loss(pairs.in_full_precision())
        return loss, {name: value.detach() for name, value in {"loss": loss, **scalars}.items()}

    @abstractmethod
    def loss(self, pairs: DescribedPairs) -> tuple[Tensor, Scalars]:
        """The loss of a batch in full precision, and its parts."""

    def _check(self, pairs: DescribedPairs) -> None:
        needed = (*self.online_views, *(f"target_{view}" for view in self.target_views))
        missing = [name for name in needed if getattr(pairs, name) is None]
        if self.needs_negatives and pairs.negatives is None:
            missing.append("negatives")
        assert not missing, f"{type(self).__name__} was given no {', '.join(missing)}"
        Objective.check_batch_size(self, len(pairs.x))


def given(tensor: Tensor | None) -> Tensor:
    """The tensor, which the objective's own check has made sure of."""
    assert tensor is not None
    return tensor


# From two batches of images to what an objective is given: which encoder sees which view.


def describe_pairs(
    objective: Objective,
    encoder: nn.Module,
    target: MomentumEncoder | None,
    x_images: Tensor,
    y_images: Tensor,
    *,
    negative_images: Tensor | None = None,
    x_positions: Tensor | None = None,
    y_positions: Tensor | None = None,
) -> DescribedPairs:
    """Describe what the objective asks for and nothing else.

    The views go through the encoder one after the other, so that batch statistics are those of one view.

    Args:
        objective: says which views it needs from which encoder.
        encoder: the online encoder, images → descriptors.
        target: the objective's momentum encoder, where it needs one.
        x_images: (N, 3, H, W) float, normalised: the first photo of each pair.
        y_images: (N, 3, H, W) float: the second photo.
        negative_images: (N, K, 3, H, W) float: mined photos of other places, where the objective needs them.
        x_positions: (N, 3) float64, see `DescribedPairs`.
        y_positions: (N, 3) float64.
    """
    assert (target is not None) == objective.needs_target, "a target is needed exactly where the objective says so"
    images = {"x": x_images, "y": y_images}
    online = {view: encoder(images[view]) for view in objective.online_views}
    followed = {view: target(images[view]) for view in objective.target_views} if target is not None else {}
    negatives = None
    if objective.needs_negatives:
        assert negative_images is not None, "the objective needs negatives"
        negatives = encoder(negative_images.flatten(0, 1)).unflatten(0, negative_images.shape[:2])
    return DescribedPairs(
        x=online["x"],
        y=online.get("y"),
        target_x=followed.get("x"),
        target_y=followed.get("y"),
        negatives=negatives,
        x_positions=x_positions,
        y_positions=y_positions,
    )
