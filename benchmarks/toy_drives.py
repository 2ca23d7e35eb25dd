"""Simulated drives through the toy town: a camera on the right-hand lane, one frame a second, turning at corners."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Final, Literal

import numpy as np

from retrieval.describer import Describer, Descriptors
from retrieval.geo import Float64Array
from retrieval.images import fit_image
from retrieval.tracking import Displacement, Odometry, Speed
from sightfix.toy_town import LANE_M, Camera, PlannedPhoto, ToyTown, generator, photographs, plan_references

Knowledge = Literal["nothing", "speed", "displacement"]

MEAN_SPEED_MPS: Final = 5.0

_STEP_M: Final = 0.25
# Where a turn begins before the crossing and ends behind it.
_TURN_M: Final = 6.0


@dataclass(frozen=True, slots=True)
class Drive:
    """One drive.

    Attributes:
        east, north: (F,) float64, where each frame was taken, metres in the town.
        speed_mps: (F,) float64, mean speed since the frame before; 0 for the first.
        cameras: F of them.
    """

    east: Float64Array
    north: Float64Array
    speed_mps: Float64Array
    cameras: tuple[Camera, ...]


def plan_drive(town: ToyTown, number: int, frames: int, every_s: float = 1.0) -> Drive:
    """A drive along random streets, at about 5 m/s, on the right, with a camera unlike the mapping car's.

    Args:
        town: where.
        number: which drive.
        frames: how many, one each `every_s` seconds.
        every_s: seconds.
    """
    rng = generator(town.seed, "drive", number)
    speeds = _speeds(rng, frames, every_s)
    along = np.concatenate([[0.0], np.cumsum(speeds[1:] * every_s)])
    lane = _lane(town, rng, float(along[-1]) + 4 * _STEP_M)
    steps = np.hypot(*np.diff(lane, axis=0).T)
    way = np.concatenate([[0.0], np.cumsum(steps)])
    east, north = (np.interp(along, way, axis) for axis in lane.T)
    ahead = [np.interp(along + 2 * _STEP_M, way, axis) for axis in lane.T]
    headings = np.degrees(np.arctan2(ahead[0] - east, ahead[1] - north))
    height, pitch = float(rng.uniform(1.2, 1.8)), float(rng.uniform(0.0, 6.0))
    fov, mount = float(rng.uniform(60.0, 76.0)), float(rng.uniform(-8.0, 8.0))
    sway = rng.normal(0.0, (1.2, 2.0), (frames, 2))
    cameras = tuple(
        Camera(
            float(east[frame]),
            float(north[frame]),
            height,
            float(headings[frame] + mount + sway[frame, 1]) % 360.0,
            pitch_deg=pitch,
            roll_deg=float(sway[frame, 0]),
            fov_deg=fov,
        )
        for frame in range(frames)
    )
    return Drive(east, north, speeds, cameras)


def noisy_odometry(drive: Drive, rng: np.random.Generator) -> dict[Knowledge, list[Odometry | None]]:
    """What the wheels and the compass of a drive tell at each frame, by how much of it is used.

    Wheels err by 5 % for the whole drive and 0.3 m/s (0.2 m an axis) a frame; a compass is off by 5° and wanders by 1°
    a frame; all one σ. The track is told 0.5 m/s and 1 m.
    """
    scale, compass = 1.0 + rng.normal(0.0, 0.05), rng.normal(0.0, 5.0)
    known: dict[Knowledge, list[Odometry | None]] = {"nothing": [None], "speed": [None], "displacement": [None]}
    for frame in range(1, len(drive.east)):
        speed = drive.speed_mps[frame]
        jitter = rng.normal(0.0, (0.3, 0.2, 0.2)) * (speed > 0.0)
        compass += rng.normal(0.0, 1.0)
        turn = np.exp(-1j * np.radians(compass))
        step = complex(drive.east[frame] - drive.east[frame - 1], drive.north[frame] - drive.north[frame - 1])
        seen = step * turn * scale + complex(jitter[1], jitter[2])
        known["nothing"].append(None)
        known["speed"].append(Speed(float(speed * scale + jitter[0]), 0.5))
        known["displacement"].append(Displacement(seen.real, seen.imag, 1.0))
    return known


def describe_cameras(
    town: ToyTown, cameras: tuple[Camera, ...], light: str, describer: Describer, moment: int
) -> Descriptors:
    """Photograph from each camera, each at a moment of its own, and describe: (F, D) float32."""
    at = datetime(2026, 9, 12, tzinfo=UTC)
    plans = [
        PlannedPhoto("", town.position(camera.east, camera.north), camera, light, moment + frame, at, "drive")
        for frame, camera in enumerate(cameras)
    ]
    return describe_plans(town, plans, describer)


def describe_survey(town: ToyTown, count: int, describer: Describer) -> tuple[Float64Array, Descriptors]:
    """The references of a town: (N, 2) metres east and north, and their descriptors (N, D) float32."""
    plans = plan_references(town, count)
    positions = np.array([(plan.camera.east, plan.camera.north) for plan in plans])
    return positions, describe_plans(town, plans, describer)


def describe_plans(town: ToyTown, plans: list[PlannedPhoto], describer: Describer) -> Descriptors:
    """Take planned photos and describe them: (N, D) float32."""
    preprocessing = describer.bundle.preprocessing
    pieces, waiting = [], []
    for _, photo in photographs(town, plans):
        waiting.append(fit_image(photo, preprocessing))
        if len(waiting) == 32:
            pieces.append(describer.describe(waiting))
            waiting = []
    pieces.append(describer.describe(waiting))
    return np.concatenate(pieces)


def _speeds(rng: np.random.Generator, frames: int, every_s: float) -> Float64Array:
    """Speed since the frame before: it wanders around 5 m/s, and once the car waits for three seconds."""
    speeds, speed = np.zeros(frames), MEAN_SPEED_MPS
    for frame in range(1, frames):
        speed += 0.4 * (MEAN_SPEED_MPS - speed) + float(rng.normal(0.0, 1.0)) * math.sqrt(every_s)
        speed = min(max(speed, 1.0), 9.0)
        speeds[frame] = speed
    waits = int(rng.integers(frames // 3, 2 * frames // 3))
    speeds[waits : waits + round(3 / every_s)] = 0.0
    return speeds


def _lane(town: ToyTown, rng: np.random.Generator, metres: float) -> Float64Array:
    """The middle of the lane of a random walk over crossings, (M, 2) metres at least so long, corners rounded."""
    columns, rows = town.columns + 1, town.rows + 1
    easts = np.array([street.start[0] for street in town.streets[:columns]])
    norths = np.array([street.start[1] for street in town.streets[columns:]])
    column, row = int(rng.integers(columns)), int(rng.integers(rows))
    path: list[Float64Array] = []
    corners = [np.array([easts[column], norths[row]])]
    heading: tuple[int, int] | None = None
    while len(corners) < 3 or sum(math.dist(a, b) for a, b in pairwise(corners[1:])) < metres:
        ways = [
            way
            for way in ((0, 1), (1, 0), (0, -1), (-1, 0))
            if 0 <= column + way[0] < columns
            and 0 <= row + way[1] < rows
            and (heading is None or way != (-heading[0], -heading[1]))
        ]
        heading = ways[int(rng.integers(len(ways)))]
        column, row = column + heading[0], row + heading[1]
        corners.append(np.array([easts[column], norths[row]]))
    for before, here, after in zip(corners, corners[1:], corners[2:], strict=False):
        path += _block(before, here, after, first=not path)
    line = np.array(path)
    way = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(line, axis=0).T))])
    even = np.arange(0.0, way[-1], _STEP_M)
    return np.stack([np.interp(even, way, axis) for axis in line.T], axis=1)


def _block(before: Float64Array, here: Float64Array, after: Float64Array, *, first: bool) -> list[Float64Array]:
    """The lane from behind one crossing to behind the next: straight, then a quadratic Bézier curve around."""
    come, go = ((b - a) / math.dist(a, b) for a, b in ((before, here), (here, after)))
    start, end = here + _right(come) - come * _TURN_M, here + _right(go) + go * _TURN_M
    middle = here + _right(come) + (_right(go) if not np.allclose(come, go) else 0.0)
    share = np.linspace(0.0, 1.0, 25)[:, None]
    curve = (1 - share) ** 2 * start + 2 * share * (1 - share) * middle + share**2 * end
    return ([before + _right(come) + come * _TURN_M] if first else []) + list(curve)


def _right(ahead: Float64Array) -> Float64Array:
    return np.array([ahead[1], -ahead[0]]) * LANE_M
