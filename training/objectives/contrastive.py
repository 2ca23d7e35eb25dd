"""Objectives that pull pairs together and push other places apart: triplet, SimCLR, MoCo v2."""

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from retrieval.geo import EARTH_RADIUS_M
from training.objectives.objective import (
    DescribedPairs,
    Objective,
    ObjectiveError,
    ObjectiveSettings,
    Scalars,
    View,
    contrastive_head,
    gather_rows,
    process_count,
    process_rank,
    projection_dim,
    required,
)


class TripletSettings(ObjectiveSettings):
    """The triplet loss's settings.

    Attributes:
        margin: how much nearer the positive must be, in L2 distance of unit descriptors.
    """

    margin: float = Field(default=0.1, ge=0)


class Triplet(Objective):
    """Triplet loss on descriptors, without a head, over mined negatives (Schroff et al., CVPR 2015).

    The supervised baseline: nearer to the pair than to mined photos of other places, by a margin.
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

    def forward(self, pairs: DescribedPairs) -> tuple[Tensor, Scalars]:
        """The mean hinge, the share of `active` triplets, and the mean distances."""
        negatives = required(pairs.negatives)
        anchor = pairs.x.unsqueeze(1).expand_as(negatives)
        positive = required(pairs.y).unsqueeze(1).expand_as(negatives)
        hinges = functional.triplet_margin_loss(
            anchor, positive, negatives, margin=self.settings.margin, p=2.0, reduction="none"
        )
        return hinges.mean(), {
            "active": (hinges > 0).float().mean(),
            "positive_distance": (anchor - positive).norm(dim=-1).mean(),
            "negative_distance": (anchor - negatives).norm(dim=-1).mean(),
        }


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
    """SimCLR: among all photos of the batch, of all processes, find your pair (Chen et al., ICML 2020).

    NT-Xent over both views, with photos of the same place taken out of the negatives.

    Args:
        descriptor_dim: D.
        settings: see `SimclrSettings`.
    """

    settings_class: ClassVar[type[ObjectiveSettings]] = SimclrSettings

    def __init__(self, descriptor_dim: int, settings: SimclrSettings) -> None:
        super().__init__(contrastive_head(descriptor_dim, settings.head_layers, settings.head_width))
        self.settings = settings

    def forward(self, pairs: DescribedPairs) -> tuple[Tensor, Scalars]:
        """NT-Xent of the projections; `positive_cosine` and how many terms were `masked` per row."""
        x, y = self.projection(pairs.x), self.projection(required(pairs.y))
        excluded = None
        if pairs.x_positions is not None and pairs.y_positions is not None:
            own = torch.cat([pairs.x_positions, pairs.y_positions])
            of_all = torch.cat([gather_rows(pairs.x_positions), gather_rows(pairs.y_positions)])
            excluded = same_place(own, of_all, self.settings.same_place_m)
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
    columns = torch.cat([gather_rows(first), gather_rows(second)])
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


class MocoV2Settings(ObjectiveSettings):
    """MoCo v2's settings.

    Attributes:
        temperature: of the logits.
        queue_size: how many past keys are kept, K.
        decay: of the momentum encoder.
        head_layers: Linear layers of the projection head, 0 to 2.
        head_width: width of each.
        same_place_m: keys taken within this many metres of the query are never its negatives.
    """

    temperature: float = Field(default=0.07, gt=0)
    queue_size: int = Field(default=65536, ge=1)
    decay: float = Field(default=0.999, ge=0, le=1)
    head_layers: int = Field(default=0, ge=0)
    head_width: int = Field(default=1024, ge=1)
    same_place_m: float = Field(default=25.0, ge=0)


class KeyQueue(nn.Module):
    """The last K keys in a ring, with where their photos were taken; all of it in the state_dict.

    Args:
        size: K.
        dim: P. The queue begins with random unit vectors, which are nowhere on the Earth.
    """

    keys: Tensor
    positions: Tensor
    oldest: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", functional.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("positions", torch.full((size, 3), math.nan, dtype=torch.float64))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.long))

    def check_room(self, keys: int) -> None:
        """Raise ObjectiveError unless so many keys fit at once."""
        size = len(self.keys)
        if keys > size:
            raise ObjectiveError(
                f"the queue holds {size} keys, fewer than one batch of {keys}",
                remedy=f"Set queue_size to {keys} or more, or lower the batch size",
            )

    @torch.no_grad()
    def push(self, keys: Tensor, positions: Tensor | None) -> None:
        """Replace the oldest keys by new ones.

        Args:
            keys: (N, P) float, N at most K; K need not be a multiple of N.
            positions: (N, 3) float64, or None where unknown.

        Raises:
            ObjectiveError: more keys than the queue holds.
        """
        self.check_room(len(keys))
        size = len(self.keys)
        places = (self.oldest + torch.arange(len(keys), device=keys.device)) % size
        self.keys[places] = keys.to(self.keys.dtype)
        self.positions[places] = math.nan if positions is None else positions.double()
        self.oldest.copy_((self.oldest + len(keys)) % size)


class MocoV2(Objective):
    """MoCo v2: find your pair among a long queue of past photos (He et al., CVPR 2020; Chen et al., 2020).

    Cross entropy of (query, key of the momentum encoder) against a queue of keys; one direction, x finds y.

    Args:
        descriptor_dim: D.
        settings: see `MocoV2Settings`.
    """

    settings_class: ClassVar[type[ObjectiveSettings]] = MocoV2Settings
    online_views: ClassVar[tuple[View, ...]] = ("x",)
    target_views: ClassVar[tuple[View, ...]] = ("y",)
    min_pairs: ClassVar[int] = 1

    def __init__(self, descriptor_dim: int, settings: MocoV2Settings) -> None:
        layers, width = settings.head_layers, settings.head_width
        super().__init__(contrastive_head(descriptor_dim, layers, width), target_decay=settings.decay)
        self.settings = settings
        self.queue = KeyQueue(settings.queue_size, projection_dim(descriptor_dim, layers, width))

    def check_batch_size(self, pairs: int) -> None:
        """As every objective, and the queue must hold a batch."""
        super().check_batch_size(pairs)
        self.queue.check_room(pairs)

    def forward(self, pairs: DescribedPairs) -> tuple[Tensor, Scalars]:
        """InfoNCE; the queue is read first and in train mode then takes this batch's keys, of all processes."""
        queries = functional.normalize(self.projection(pairs.x), dim=1)
        keys = functional.normalize(required(pairs.target_y).detach(), dim=1)
        positive = (queries * keys).sum(dim=1, keepdim=True)
        # A copy, because the backward pass needs the keys as they were and push overwrites some.
        negative = queries @ self.queue.keys.clone().to(queries.dtype).T
        masked = torch.zeros_like(negative, dtype=torch.bool)
        if pairs.x_positions is not None:
            masked = same_place(pairs.x_positions, self.queue.positions, self.settings.same_place_m)
            negative = negative.masked_fill(masked, -math.inf)
        logits = torch.cat([positive, negative], dim=1) / self.settings.temperature
        loss = functional.cross_entropy(logits, torch.zeros(len(queries), dtype=torch.long, device=queries.device))
        if self.training:
            self.queue.push(gather_rows(keys), None if pairs.y_positions is None else gather_rows(pairs.y_positions))
        return loss, {"positive_cosine": positive.mean(), "masked": masked.sum(dim=1).float().mean()}


def same_place(positions: Tensor, others: Tensor, radius_m: float) -> Tensor:
    """Which of `others` show the same place as which of `positions`, so that they must not be pushed apart.

    By distance, not by a number for each place: being within 25 m of each other is not transitive. Positions can also
    be compared with those in a queue or in another process.

    Args:
        positions: (N, 3) float64, points on the unit sphere as `retrieval.geo.unit_vectors` gives them.
        others: (M, 3) float64; a row of NaN is nowhere.
        radius_m: metres, the border included.

    Returns:
        (N, M) bool.
    """
    # The chord differs from the arc by less than a micrometre at 25 m. Differences, not |a|² + |b|² − 2ab: in that, a
    # metre on the Earth drowns in float64's rounding.
    chord = torch.cdist(positions.double(), others.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return chord * EARTH_RADIUS_M <= radius_m
