"""Made-up places, each photographed on two walks: enough to train on in seconds."""

from pathlib import Path

import numpy as np
from PIL import Image

from retrieval.geo import Position
from retrieval.references.reference import Reference
from tests.places import pattern

PLACES_APART_M = 60.0
_METRES_PER_DEGREE = 74_400.0  # of longitude at 48° north


def make_walks(folder: Path, places: int, *, sessions: int = 2, first_seed: int = 0) -> list[Reference]:
    """Write a photo of each place for each session, 3 m apart, of other light and framing; session by session."""
    folder.mkdir(parents=True, exist_ok=True)
    references = []
    for session in range(sessions):
        for place in range(places):
            path = folder / f"walk{session}_{place:03d}.jpg"
            _photo(first_seed + place, session).save(path, quality=92)
            east = place * PLACES_APART_M + 3.0 * session
            references.append(
                Reference(
                    id=path.name,
                    path=path,
                    position=Position(48.0, 11.0 + east / _METRES_PER_DEGREE),
                    heading_deg=90.0,
                    session=f"walk{session}",
                )
            )
    return references


def _photo(seed: int, session: int) -> Image.Image:
    rng = np.random.default_rng([seed, session])
    whole = np.asarray(pattern(seed, (120, 90)), np.float32)
    top, left = rng.integers(0, 14, 2)
    light = np.float32(1.0 - 0.25 * session)
    noise = rng.normal(0, 6, (72, 96, 3)).astype(np.float32)
    return Image.fromarray((whole[top : top + 72, left : left + 96] * light + noise).clip(0, 255).astype(np.uint8))
