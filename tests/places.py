"""A handful of made-up photos of made-up places, for tests that need a real index but no real town."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from retrieval.geo import Position
from retrieval.references.reference import Reference, SkippedPhoto


def pattern(seed: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """A picture of coarse coloured blocks that no other seed resembles."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rng.integers(2, 9), rng.integers(2, 9), 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


@dataclass
class Places:
    """A reference database in memory: `ReferenceSource` by shape."""

    root: Path
    rows: list[Reference]
    spec: str = "test:places"
    skipped: list[SkippedPhoto] = field(default_factory=list)

    def __iter__(self) -> Iterator[Reference]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def make_places(folder: Path, count: int, *, origin: tuple[float, float] = (48.0, 11.0), first_seed: int = 0) -> Places:
    """Write `count` photos, 100 m apart along a parallel; ids are ``photos/0000.jpg`` and so on."""
    photos = folder / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        path = photos / f"{number:04d}.jpg"
        pattern(first_seed + number).save(path, quality=92)
        position = Position(origin[0], origin[1] + number * 100.0 / 74_400.0)
        rows.append(Reference(id=f"photos/{number:04d}.jpg", path=path, position=position, heading_deg=90.0))
    return Places(folder, rows)
