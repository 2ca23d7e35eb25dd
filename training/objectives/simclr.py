"""SimCLR: among all photos of the batch, find your pair (Chen et al., ICML 2020)."""

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from training.heads import contrastive_head
from training.objectives.gathering import gathered, process_count, process_rank
from training.objectives.objective import DescribedPairs, Objective, ObjectiveSettings, Scalars, given
from training.objectives.same_place import same_place


class SimclrSettings(ObjectiveSettings):
    """SimCLR's settings.

    Attributes:
        temperature: of the logits; smaller attends more to the hardest negatives.
        head_layers: Linear layers of the projection head, 0 to 2.
        head_width: width of each.
        same_place_m: photos within this many metres are never negatives of each other.
    """

    temperature: float = Field(default=0.07, gt=0)
    head_layers: int = Field(default=1, ge=0)
    head_width: int = Field(default=1024, ge=1)
    same_place_m: float = Field(default=25.0, ge=0)


class Simclr(Objective):
    """NT-Xent over both views, with same-place photos taken out of the negatives; gathered over processes.

    Args:
        descriptor_dim: D.
        settings: see `SimclrSettings`.
    """

    settings_class: ClassVar[type[ObjectiveSettings]] = SimclrSettings

    def __init__(self, descriptor_dim: int, settings: SimclrSettings) -> None:
        super().__init__(contrastive_head(descriptor_dim, settings.head_layers, settings.head_width))
        self.settings = settings

    def loss(self, pairs: DescribedPairs) -> tuple[Tensor, Scalars]:
        """NT-Xent of the projections; `positive_cosine` and how many terms were `masked` per row."""
        x, y = self.projection(pairs.x), self.projection(given(pairs.y))
        excluded = None
        if pairs.x_positions is not None and pairs.y_positions is not None:
            own = torch.cat([pairs.x_positions, pairs.y_positions])
            everyone = torch.cat([gathered(pairs.x_positions), gathered(pairs.y_positions)])
            excluded = same_place(own, everyone, self.settings.same_place_m)
        loss, masked = nt_xent(x, y, self.settings.temperature, excluded)
        return loss, {"positive_cosine": functional.cosine_similarity(x, y).mean(), "masked": masked}


def nt_xent(x: Tensor, y: Tensor, temperature: float, excluded: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The normalised temperature-scaled cross entropy of SimCLR, mean over this process's 2N rows.

    Without `excluded` it equals lightly's `NTXentLoss(temperature, gather_distributed=True)`, which has no mask.

    Args:
        x: (N, P) float, projections of the first views.
        y: (N, P) float, of the second.
        temperature: divides the cosines.
        excluded: (2N, 2M) bool, rows [x; y] of this process, columns [x; y] of all processes' M pairs: True where the
            two show the same place. What it says of the row itself and of its positive does not matter.

    Returns:
        The loss, and the mean number of terms per row that `excluded` took away.
    """
    rows = functional.normalize(torch.cat([x, y]), dim=1)
    first, second = rows.chunk(2)
    columns = torch.cat([gathered(first), gathered(second)])
    pairs = len(x)
    all_pairs = pairs * process_count()
    index = torch.arange(pairs, device=x.device) + process_rank() * pairs
    itself = torch.cat([index, index + all_pairs])
    positive = torch.cat([index + all_pairs, index])

    removed = functional.one_hot(itself, 2 * all_pairs).bool()
    if excluded is not None:
        removed = removed | (excluded & ~functional.one_hot(positive, 2 * all_pairs).bool())
    logits = (rows @ columns.T / temperature).masked_fill(removed, -math.inf)
    return functional.cross_entropy(logits, positive), removed.sum(dim=1).float().mean() - 1
