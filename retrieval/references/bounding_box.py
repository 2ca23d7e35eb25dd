"""A box of latitudes and longitudes that a reference database can be cut to."""

from dataclasses import dataclass
from typing import Self

from retrieval.errors import ParameterError
from retrieval.geo import Position, check_lat_lon


@dataclass(frozen=True, slots=True)
class BoundingBox:
    """A box on the Earth, border included, in WGS84 degrees; it crosses the antimeridian where lon_min > lon_max.

    Raises:
        ParameterError: a corner outside the Earth, or lat_min above lat_max.
    """

    lat_min: float
    lon_min: float
    lat_max: float
    lon_max: float

    def __post_init__(self) -> None:
        for lat, lon in ((self.lat_min, self.lon_min), (self.lat_max, self.lon_max)):
            check_lat_lon(lat, lon)
        if self.lat_min > self.lat_max:
            raise ParameterError(
                f"bbox lat_min {self.lat_min:g} is above lat_max {self.lat_max:g}",
                remedy="Give bbox=lat_min,lon_min,lat_max,lon_max",
            )
        for name in ("lon_min", "lon_max"):
            lon = getattr(self, name)
            if lon > 180.0:
                object.__setattr__(self, name, lon - 360.0)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The box written as ``lat_min,lon_min,lat_max,lon_max``.

        Raises:
            ParameterError: not four numbers, or no box.
        """
        try:
            lat_min, lon_min, lat_max, lon_max = (float(part) for part in text.split(","))
        except ValueError:
            raise ParameterError(
                f"bbox={text} is not four numbers",
                remedy="Give bbox=lat_min,lon_min,lat_max,lon_max, such as bbox=48.1,11.5,48.2,11.6",
            ) from None
        return cls(lat_min, lon_min, lat_max, lon_max)

    def holds(self, position: Position) -> bool:
        """Whether the position lies in the box."""
        if not self.lat_min <= position.lat <= self.lat_max:
            return False
        if self.lon_min > self.lon_max:
            return position.lon >= self.lon_min or position.lon <= self.lon_max
        return self.lon_min <= position.lon <= self.lon_max

    def __str__(self) -> str:
        return f"{self.lat_min!r},{self.lon_min!r},{self.lat_max!r},{self.lon_max!r}"
