"""Triplet loss: nearer to the pair than to mined photos of other places, by a margin (Schroff et al., CVPR 2015)."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from training.objectives.objective import DescribedPairs, Objective, ObjectiveSettings, Scalars, given


class TripletSettings(ObjectiveSettings):
    """The triplet loss's settings.

    Attributes:
        margin: how much nearer the positive must be, in L2 distance of unit descriptors.
    """

    margin: float = Field(default=0.1, ge=0)


class Triplet(Objective):
    """The supervised baseline: torch's triplet loss on descriptors, without a head, over mined negatives.

    The mean over all N · K triplets, zero ones included: VG-SSL's "sum divided by (batch · negatives)".

    Args:
        descriptor_dim: D; unused, there is no head.
        settings: see `TripletSettings`.
    """

    settings_class: ClassVar[type[ObjectiveSettings]] = TripletSettings
    needs_negatives: ClassVar[bool] = True
    min_pairs: ClassVar[int] = 1

    def __init__(self, descriptor_dim: int, settings: TripletSettings) -> None:
        del descriptor_dim
        super().__init__(nn.Identity())
        self.settings = settings

    def loss(self, pairs: DescribedPairs) -> tuple[Tensor, Scalars]:
        """The mean hinge, the share of `active` triplets, and the mean distances."""
        negatives = given(pairs.negatives)
        anchor = pairs.x.unsqueeze(1).expand_as(negatives)
        positive = given(pairs.y).unsqueeze(1).expand_as(negatives)
        hinges = functional.triplet_margin_loss(
            anchor, positive, negatives, margin=self.settings.margin, p=2.0, reduction="none"
        )
        return hinges.mean(), {
            "active": (hinges > 0).float().mean(),
            "positive_distance": (anchor - positive).norm(dim=-1).mean(),
            "negative_distance": (anchor - negatives).norm(dim=-1).mean(),
        }
