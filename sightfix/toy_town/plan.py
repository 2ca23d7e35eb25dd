"""The plan of the town: an irregular grid of streets, blocks between them, one of them a park."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from sightfix.toy_town.randomness import generator

STREET_M: Final = 12.0
LANE_M: Final = 1.8


@dataclass(frozen=True, slots=True)
class Block:
    """A block between streets: its rectangle in metres from the town's origin, and whether it is the park."""

    west: float
    south: float
    east: float
    north: float
    park: bool


@dataclass(frozen=True, slots=True)
class Street:
    """A straight street: its centre line from start to end, metres east and north."""

    start: tuple[float, float]
    end: tuple[float, float]

    @property
    def length_m(self) -> float:
        """Its length."""
        return math.dist(self.start, self.end)

    def at(self, along_m: float, right_m: float = 0.0) -> tuple[float, float]:
        """The point so far along it and so far to its right."""
        ux, uy = ((b - a) / self.length_m for a, b in zip(self.start, self.end, strict=True))
        return self.start[0] + ux * along_m + uy * right_m, self.start[1] + uy * along_m - ux * right_m

    @property
    def heading_deg(self) -> float:
        """Its direction, clockwise from north."""
        return math.degrees(math.atan2(self.end[0] - self.start[0], self.end[1] - self.start[1])) % 360.0


def plan_town(seed: int, columns: int, rows: int) -> tuple[list[Block], list[Street], tuple[float, float]]:
    """The blocks, the streets and the size (metres east, north) of a town."""
    rng = generator(seed, "plan")
    widths, heights = rng.uniform(46, 74, columns), rng.uniform(40, 62, rows)
    wests = STREET_M + np.concatenate([[0.0], np.cumsum(widths + STREET_M)[:-1]])
    souths = STREET_M + np.concatenate([[0.0], np.cumsum(heights + STREET_M)[:-1]])
    size = (float(wests[-1] + widths[-1] + STREET_M), float(souths[-1] + heights[-1] + STREET_M))
    park = int(rng.integers(columns * rows)) if columns * rows > 2 else -1
    blocks = [
        Block(
            float(wests[c]),
            float(souths[r]),
            float(wests[c] + widths[c]),
            float(souths[r] + heights[r]),
            r * columns + c == park,
        )
        for r in range(rows)
        for c in range(columns)
    ]
    middle = STREET_M / 2
    easts = [middle, *(float(west + width + middle) for west, width in zip(wests, widths, strict=True))]
    norths = [middle, *(float(south + height + middle) for south, height in zip(souths, heights, strict=True))]
    streets = [Street((east, 0.0), (east, size[1])) for east in easts]
    streets += [Street((0.0, north), (size[0], north)) for north in norths]
    return blocks, streets, size
