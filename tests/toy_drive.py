"""A drive through the toy town at dusk: an index of the town, and camera frames that are not in the index."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.toy_drives import noisy_odometry, plan_drive
from index_builder.update import build_index
from retrieval.describer import Describer
from retrieval.geo import Position, haversine_m
from retrieval.references.reference import Reference
from retrieval.tracking import Displacement
from sightfix.toy_town import PlannedPhoto, ToyTown, generator, photographs, plan_references, town_for
from tests.places import Places

_REFERENCES = 150
_SIZE = (240, 180)
_AT = datetime(2026, 9, 12, tzinfo=UTC)


@dataclass(frozen=True)
class ToyDrive:
    """One frame a second.

    Attributes:
        indexes: the folder of the town's index.
        frames: encoded photos.
        truth: where each was taken.
        odometry: displacement since the frame before, as noisy as wheels and compass; None for the first.
    """

    indexes: Path
    frames: list[bytes]
    truth: list[Position]
    odometry: list[Displacement | None]

    def error_m(self, frame: int, lat: float, lon: float) -> float:
        """How far an answer is from the truth."""
        true = self.truth[frame]
        return float(haversine_m(true.lat, true.lon, lat, lon))


def make_toy_drive(folder: Path, describer: Describer, *, seed: int, number: int, frames: int) -> ToyDrive:
    """Draw a town, index it, and drive through it."""
    town = town_for(_REFERENCES, seed=seed)
    plans = plan_references(town, _REFERENCES)
    paths = _photographed(town, plans, folder / "references")
    rows = [Reference(id=path.name, path=path, position=plan.position) for plan, path in zip(plans, paths, strict=True)]
    build_index(Places(folder, rows), describer, folder / "indexes", "toy")
    drive = plan_drive(town, number, frames)
    truth = [town.position(camera.east, camera.north) for camera in drive.cameras]
    taken = [
        PlannedPhoto("", where, camera, "dusk", 1_000_000 + 1000 * number + frame, _AT, "drive")
        for frame, (where, camera) in enumerate(zip(truth, drive.cameras, strict=True))
    ]
    odometry = noisy_odometry(drive, generator(seed, "odometry", number))["displacement"]
    return ToyDrive(
        folder / "indexes",
        [path.read_bytes() for path in _photographed(town, taken, folder / "frames")],
        truth,
        [step if isinstance(step, Displacement) else None for step in odometry],
    )


def _photographed(town: ToyTown, plans: list[PlannedPhoto], folder: Path) -> list[Path]:
    folder.mkdir(parents=True)
    paths = []
    for number, (_, photo) in enumerate(photographs(town, plans, _SIZE)):
        paths.append(folder / f"{number:05d}.jpg")
        Image.fromarray(np.asarray(photo)).save(paths[-1], quality=92)
    return paths
