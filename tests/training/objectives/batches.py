"""Batches of made-up descriptors and positions."""

import torch
from torch import Tensor

from retrieval.geo import Position, from_local_metres, unit_vectors

LUND = Position(55.7047, 13.1910)


def rows(count: int, dim: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random unit rows that ask for a gradient."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=1).to(dtype).requires_grad_()


def positions(east_metres: list[float]) -> Tensor:
    """Positions on a line through Lund, as points on the unit sphere."""
    places = [from_local_metres(LUND, east, 0.0) for east in east_metres]
    return torch.from_numpy(unit_vectors([p.lat for p in places], [p.lon for p in places]))


def spread_out(count: int, apart_m: float = 30.0, start_m: float = 0.0) -> Tensor:
    """Positions every `apart_m` metres."""
    return positions([start_m + apart_m * i for i in range(count)])
