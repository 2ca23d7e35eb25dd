"""What every objective has in common: its settings, what it is given, and what it answers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from retrieval.errors import SightfixError
from training.objectives.momentum import MomentumEncoder

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
