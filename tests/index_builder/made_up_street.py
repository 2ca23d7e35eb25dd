"""A made-up place whose descriptors tell where they were taken, session by session."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from index_builder.calibration.queries import DescribedIndex
from retrieval.geo import Position, from_local_metres
from retrieval.index.manifest import BundleIdentity
from retrieval.references.reference import Reference

DIM = 256
# Every block of houses looks much like the next.
BLOCK_M = 300.0
ITS_OWN = 0.3
ORIGIN = Position(48.0, 11.0)
MADE_UP_BUNDLE = BundleIdentity(name="made-up", fingerprint="0" * 64)


def made_up_street(
    sessions: int = 4,
    photos: int = 60,
    *,
    noise: float = 0.6,
    street_m: float = 1200.0,
    names: bool = True,
    times: bool = True,
    seed: int = 0,
) -> DescribedIndex:
    """Sessions that drive along one street, each past every place, each with a direction of its own in all its
    descriptors (its camera, its light). A descriptor is a smooth random function of the place, the session's direction,
    one direction common to all, and noise."""
    random = np.random.default_rng(7)
    frequencies = random.normal(0.0, 1.0 / 40.0, DIM)
    phases = random.uniform(0.0, 2.0 * np.pi, DIM)
    common = random.normal(0.0, 1.0, DIM)
    random = np.random.default_rng(seed)
    references, descriptors = [], []
    for session in range(sessions):
        own = random.normal(0.0, 0.4, DIM)
        started = datetime(2026, 5, 1 + session, 12, tzinfo=UTC)
        for photo, east in enumerate(np.sort(random.uniform(0.0, street_m, photos))):
            alike = np.sqrt(2.0) * np.cos((east % BLOCK_M) * frequencies + phases)
            place = alike + ITS_OWN * np.sqrt(2.0) * np.cos(east * frequencies + phases[::-1])
            descriptors.append(place + own + common + random.normal(0.0, noise, DIM))
            references.append(
                Reference(
                    id=f"{session}/{photo}",
                    path=Path(f"{session}/{photo}.jpg"),
                    position=from_local_metres(ORIGIN, float(east), 0.0),
                    session=f"drive-{session}" if names else None,
                    captured_at=started + timedelta(seconds=10 * photo) if times else None,
                )
            )
    rows = np.array(descriptors, np.float32)
    return DescribedIndex(references, rows / np.linalg.norm(rows, axis=1, keepdims=True), MADE_UP_BUNDLE)
