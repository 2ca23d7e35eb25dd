"""The light in the town: day, dusk and overcast, as the few numbers the renderer needs."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ParameterError

Rgb = tuple[int, int, int]
RgbShare = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Light:
    """One kind of light. Shares multiply a surface's colour; 1 leaves it as painted.

    Attributes:
        name: ``day``, ``dusk`` or ``overcast``.
        sun_azimuth_deg: where the sun stands, clockwise from north.
        sun_elevation_deg: of the sun; the length of shadows.
        sun: share of sunlight on a wall that faces the sun.
        sky: share of skylight on every wall.
        ground: share of light on the ground.
        shadow: what share of the ground's light a cast shadow takes.
        haze: the colour of far things.
        haze_m: distance at which haze covers 63 %.
        glow: what a lit window or sign adds, RGB.
        zenith, horizon: colours of the sky.
    """

    name: str
    sun_azimuth_deg: float
    sun_elevation_deg: float
    sun: RgbShare
    sky: RgbShare
    ground: RgbShare
    shadow: float
    haze: Rgb
    haze_m: float
    glow: RgbShare
    zenith: Rgb
    horizon: Rgb

    def on_wall(self, normal: NDArray[np.float64]) -> NDArray[np.float32]:
        """The share of light on walls.

        Args:
            normal: (N, 2) unit vectors east, north, pointing out of the wall.

        Returns:
            (N, 3) float32.
        """
        azimuth = math.radians(self.sun_azimuth_deg)
        facing = np.clip(normal @ np.array([math.sin(azimuth), math.cos(azimuth)]), 0, 1)[:, None]
        return np.asarray(np.array(self.sky) + np.sqrt(facing) * np.array(self.sun), np.float32)

    @property
    def lamps_lit(self) -> bool:
        """Whether lamps, windows and headlights are on."""
        return self.glow[0] > 0


LIGHTS: Final[dict[str, Light]] = {
    "day": Light(
        name="day",
        sun_azimuth_deg=38,
        sun_elevation_deg=52,
        sun=(0.40, 0.37, 0.30),
        sky=(0.66, 0.69, 0.76),
        ground=(1.0, 0.98, 0.94),
        shadow=0.36,
        haze=(196, 214, 230),
        haze_m=520,
        glow=(0, 0, 0),
        zenith=(78, 138, 208),
        horizon=(206, 224, 238),
    ),
    "dusk": Light(
        name="dusk",
        sun_azimuth_deg=242,
        sun_elevation_deg=6,
        sun=(0.30, 0.15, 0.05),
        sky=(0.34, 0.33, 0.46),
        ground=(0.36, 0.33, 0.42),
        shadow=0.25,
        haze=(166, 118, 122),
        haze_m=420,
        glow=(1.0, 0.76, 0.40),
        zenith=(44, 52, 104),
        horizon=(244, 150, 92),
    ),
    "overcast": Light(
        name="overcast",
        sun_azimuth_deg=38,
        sun_elevation_deg=60,
        sun=(0.05, 0.05, 0.05),
        sky=(0.80, 0.82, 0.85),
        ground=(0.82, 0.83, 0.86),
        shadow=0.06,
        haze=(198, 203, 208),
        haze_m=330,
        glow=(0, 0, 0),
        zenith=(158, 168, 180),
        horizon=(212, 216, 220),
    ),
}


def light_named(name: str) -> Light:
    """The light of that name.

    Raises:
        ParameterError: there is none; the choices are listed.
    """
    if name not in LIGHTS:
        raise ParameterError(f"the toy town has no light {name!r}", remedy=f"Choose one of {', '.join(LIGHTS)}")
    return LIGHTS[name]
