"""One training step of any objective on a tiny encoder, as the loop will take it."""

import torch
from torch import nn

from tests.training.objectives.batches import spread_out
from training.objectives.pair_model import PairModel, PairViews
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
    """A pair model and its optimizer, as the loop holds them."""

    def __init__(self, name: str) -> None:
        self.model = PairModel(TinyEncoder(), build_objective(name, 8, SMALL[name]))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)

    def run(self, seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        x_images = torch.randn(6, 3, 2, 2, generator=generator)
        y_images = x_images + 0.3 * torch.randn(6, 3, 2, 2, generator=generator)
        negatives = torch.randn(6, 2, 3, 2, 2, generator=generator)
        loss, scalars, _ = self.model(
            PairViews(x_images, y_images, negatives, spread_out(6), spread_out(6, start_m=5.0))
        )
        assert scalars["loss"].item() == loss.item()
        assert not any(value.requires_grad or value.ndim for value in scalars.values())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.model.update_target()
        return loss.item()
