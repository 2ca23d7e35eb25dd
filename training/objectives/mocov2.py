"""MoCo v2: find your pair among a long queue of past photos (He et al., CVPR 2020; Chen et al., 2020)."""

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from training.heads import contrastive_head, projection_dim
from training.objectives.gathering import gathered
from training.objectives.momentum import MomentumEncoder
from training.objectives.objective import (
    DescribedPairs,
    Objective,
    ObjectiveError,
    ObjectiveSettings,
    Scalars,
    View,
    given,
)
from training.objectives.same_place import same_place


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
        """Let new keys take the place of the oldest.

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
    """Cross entropy of (query, key of the momentum encoder) against a queue of keys; one direction, x finds y.

    Args:
        descriptor_dim: D.
        settings: see `MocoV2Settings`.
    """

    settings_class: ClassVar[type[ObjectiveSettings]] = MocoV2Settings
    online_views: ClassVar[tuple[View, ...]] = ("x",)
    target_views: ClassVar[tuple[View, ...]] = ("y",)
    min_pairs: ClassVar[int] = 1

    def __init__(self, descriptor_dim: int, settings: MocoV2Settings) -> None:
        super().__init__(contrastive_head(descriptor_dim, settings.head_layers, settings.head_width))
        self.settings = settings
        self.queue = KeyQueue(
            settings.queue_size, projection_dim(descriptor_dim, settings.head_layers, settings.head_width)
        )

    def make_target(self, encoder: nn.Module) -> MomentumEncoder:
        """The momentum encoder that makes the keys."""
        return MomentumEncoder(encoder, self.projection, self.settings.decay)

    def check_batch_size(self, pairs: int) -> None:
        """As every objective, and the queue must hold a batch."""
        super().check_batch_size(pairs)
        self.queue.check_room(pairs)

    def loss(self, pairs: DescribedPairs) -> tuple[Tensor, Scalars]:
        """InfoNCE; the queue is read first and in train mode then takes this batch's keys, of all processes."""
        queries = functional.normalize(self.projection(pairs.x), dim=1)
        keys = functional.normalize(given(pairs.target_y).detach(), dim=1)
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
            self.queue.push(gathered(keys), None if pairs.y_positions is None else gathered(pairs.y_positions))
        return loss, {"positive_cosine": positive.mean(), "masked": masked.sum(dim=1).float().mean()}
