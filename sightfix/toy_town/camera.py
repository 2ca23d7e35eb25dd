"""The camera: a pinhole at a place in the town, and the upright window through which the town is drawn.

Coordinates are metres east, north and up of the town's origin. Pixel coordinates are continuous: (0, 0) is the upper
left corner of the image, the centre of its first pixel is (0.5, 0.5).

A town of vertical walls is drawn fastest for a camera that looks level: there every wall edge is a pixel column. So the
renderer draws the `LevelWindow` of a camera, and a homography turns that into what the pitched and rolled camera sees.
The homography is exact, for both are pictures of the same rays.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ParameterError

Float64Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Camera:
    """A pinhole camera.

    Attributes:
        east, north: where it stands, metres from the town's origin.
        height_m: of the eye above the ground, in (0, 10].
        heading_deg: direction of view, clockwise from north.
        pitch_deg: upwards positive, within ±20.
        roll_deg: clockwise tilt of the camera, within ±20.
        fov_deg: horizontal field of view, in [20, 110].

    Raises:
        ParameterError: height, pitch, roll or field of view outside its domain.
    """

    east: float
    north: float
    height_m: float = 1.7
    heading_deg: float = 0.0
    pitch_deg: float = 0.0
    roll_deg: float = 0.0
    fov_deg: float = 70.0

    def __post_init__(self) -> None:
        for name, low, high in (("height_m", 0.0, 10.0), ("pitch_deg", -20, 20), ("roll_deg", -20, 20)):
            _check(name, getattr(self, name), low, high)
        _check("fov_deg", self.fov_deg, 20.0, 110.0)

    def axes(self) -> tuple[Float64Array, Float64Array]:
        """The unit vectors (east, north) that point forward and to the right."""
        heading = math.radians(self.heading_deg)
        forward = np.array([math.sin(heading), math.cos(heading)])
        return forward, np.array([forward[1], -forward[0]])

    def focal_px(self, width: int) -> float:
        """The focal length in pixels of an image of that width."""
        return width / 2 / math.tan(math.radians(self.fov_deg) / 2)

    def rays(self, size: tuple[int, int]) -> Float64Array:
        """The matrix from a pixel (x, y, 1) to its ray in level axes: right, up, forward.

        Args:
            size: width and height of the image in pixels.

        Returns:
            (3, 3) float64.
        """
        width, height = size
        focal = self.focal_px(width)
        to_camera = np.array([[1 / focal, 0, -width / 2 / focal], [0, -1 / focal, height / 2 / focal], [0, 0, 1]])
        roll, pitch = math.radians(self.roll_deg), math.radians(self.pitch_deg)
        unroll = np.array([[math.cos(roll), math.sin(roll), 0], [-math.sin(roll), math.cos(roll), 0], [0, 0, 1]])
        unpitch = np.array([[1, 0, 0], [0, math.cos(pitch), math.sin(pitch)], [0, -math.sin(pitch), math.cos(pitch)]])
        return np.asarray(unpitch @ unroll @ to_camera)


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high or (name == "height_m" and value == 0):
        raise ParameterError(f"{name} {value} of the toy town's camera is outside [{low:g}, {high:g}]")


@dataclass(frozen=True, slots=True)
class LevelWindow:
    """The picture plane of a camera without pitch and roll, in samples: column k sees right/forward = x0 + k·step.

    Attributes:
        x0: right/forward of the left border.
        y0: up/forward of the upper border.
        step: of one sample, the same both ways.
        columns, rows: its size.
        homography: the eight coefficients of Pillow's PERSPECTIVE, from image pixels to samples.
    """

    x0: float
    y0: float
    step: float
    columns: int
    rows: int
    homography: tuple[float, ...]

    def slopes(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """right/forward of the centre of each column (columns,), up/forward of that of each row (rows,)."""
        x = self.x0 + (np.arange(self.columns) + 0.5) * self.step
        y = self.y0 - (np.arange(self.rows) + 0.5) * self.step
        return x.astype(np.float32), y.astype(np.float32)


def level_window(camera: Camera, size: tuple[int, int], samples_per_px: float) -> LevelWindow:
    """The smallest level window that holds everything the camera sees."""
    width, height = size
    rays = camera.rays(size)
    step = 1 / (camera.focal_px(width) * samples_per_px)
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]]) @ rays.T
    x, y = corners[:, 0] / corners[:, 2], corners[:, 1] / corners[:, 2]
    # One sample of margin on each side, for the interpolation.
    x0, y0 = x.min() - step, y.max() + step
    columns, rows = math.ceil((x.max() - x0) / step) + 1, math.ceil((y0 - y.min()) / step) + 1
    to_samples = np.array([[1 / step, 0, -x0 / step], [0, -1 / step, y0 / step], [0, 0, 1]]) @ rays
    to_samples /= to_samples[2, 2]
    return LevelWindow(float(x0), float(y0), step, columns, rows, tuple(to_samples.ravel()[:8].tolist()))
