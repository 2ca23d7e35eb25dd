"""One training step of any objective on a tiny encoder, as the loop will take it."""

import torch
from torch import nn

from tests.training.objectives.batches import spread_out
from training.objectives.objective import MomentumEncoder, Objective, describe_pairs
from training.objectives.registry import build_objective

SMALL = {
    "triplet": {"margin": 1.0},
    "simclr": {"head_width": 16},
    "mocov2": {"queue_size": 13},
    "byol": {"head_width": 16, "predictor_width": 16},
    "simsiam": {"head_width": 16, "predictor_width": 16},
    "barlow_twins": {"head_width": 16},
    "vicreg": {"head_width": 16},
}


class TinyEncoder(nn.Module):
    """Pixels through one Linear to unit rows of 8."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.linear(images.flatten(1)), dim=1)


class Step:
    """Encoder, objective, target and optimizer, as the loop will hold them."""

    def __init__(self, name: str) -> None:
        self.encoder: nn.Module = TinyEncoder()
        self.objective: Objective = build_objective(name, 8, SMALL[name])
        self.target: MomentumEncoder | None = self.objective.make_target(self.encoder)
        self.modules = nn.ModuleList([self.encoder, self.objective, *([self.target] if self.target else [])])
        self.optimizer = torch.optim.Adam(self.modules.parameters(), lr=1e-2)

    def run(self, seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        x_images = torch.randn(6, 3, 2, 2, generator=generator)
        y_images = x_images + 0.3 * torch.randn(6, 3, 2, 2, generator=generator)
        pairs = describe_pairs(
            self.objective,
            self.encoder,
            self.target,
            x_images,
            y_images,
            negative_images=torch.randn(6, 2, 3, 2, 2, generator=generator),
            x_positions=spread_out(6),
            y_positions=spread_out(6, start_m=5.0),
        )
        loss, scalars = self.objective(pairs)
        assert scalars["loss"].item() == loss.item()
        assert not any(value.requires_grad or value.ndim for value in scalars.values())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.target is not None:
            self.target.update(self.encoder, self.objective.projection)
        return loss.item()
