"""What OSCP GeoPose clients send and expect, versions 1 and 2: github.com/OpenArCloud/oscp-geopose-protocol.

Lenient where its clients are careless: unknown fields are ignored, and what was never set arrives as null, 0, NaN, or
as the largest float there is.
"""

import math
import re
import time
from datetime import UTC, datetime
from typing import Any, Final, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator
from pydantic.alias_generators import to_camel

from retrieval.geo import GeoPrior
from service.problems import RequestError

MEDIA_TYPE: Final = "application/vnd.oscp+json"
MAX_CAMERAS: Final = 8
_VERSION: Final = re.compile(r"version\s*=\s*\"?(\d+)(?:\.(\d+))?")

# Never set by the client: C++ and Python clients send the largest double, 1.797e308.
_UNSET_ABOVE: Final = 1e300

# Sensors define accuracy differently; three times it is wide enough, and so are 50 m.
_PRIOR_ACCURACIES: Final = 3.0

_MIN_PRIOR_M: Final = 50.0
_MAX_TIMESTAMP_MS: Final = 2**53
Version = Literal["1.0", "2.0"]


class _Sent(BaseModel):
    """Base of a client's messages."""

    model_config = ConfigDict(extra="ignore", alias_generator=to_camel, coerce_numbers_to_str=True)


class ImageOrientation(_Sent):
    """How the camera sensor sits in the device."""

    mirrored: bool | None = None
    rotation: float | None = Field(default=None, description="Clockwise turn that makes the image upright, degrees")


class CameraReading(_Sent):
    """One image."""

    timestamp: float | str | None = None
    image_format: str | None = Field(default=None, examples=["JPG"], description="RGBA32, GRAY8, DEPTH or JPG")
    size: list[float | None] | None = Field(default=None, examples=[[1920, 1080]], description="Width, height")
    image_bytes: str = Field(description="The photo, or raw pixels, as base64")
    image_orientation: ImageOrientation | None = None


class GeolocationReading(_Sent):
    """The position that the device reports."""

    latitude: float | None = Field(default=None, examples=[47.61155])
    longitude: float | None = Field(default=None, examples=[-122.337056])
    accuracy: float | None = Field(default=None, description="Of latitude and longitude, metres; 0 is unknown")

    def prior(self) -> GeoPrior | None:
        """The circle in which the answer must lie, or None where the reading has no accuracy."""
        lat, lon, accuracy = known(self.latitude), known(self.longitude), known(self.accuracy)
        if lat is None or lon is None or accuracy is None or accuracy <= 0.0:
            return None
        if lat == 0.0 and lon == 0.0:  # never set: that is a place in the Atlantic
            return None
        radius_m = max(_PRIOR_ACCURACIES * accuracy, _MIN_PRIOR_M)
        if not (-90.0 <= lat <= 90.0 and -180.0 <= lon < 360.0) or radius_m > GeoPrior.MAX_RADIUS_M:
            return None
        return GeoPrior(lat, lon, radius_m)


class SensorReadings(_Sent):
    """The readings we use; others are allowed."""

    camera_readings: list[CameraReading] | None = None
    # The JavaScript client writes it with a capital L.
    geolocation_readings: list[GeolocationReading] | None = Field(
        default=None, validation_alias=AliasChoices("geolocationReadings", "geoLocationReadings")
    )


class GeoPoseRequest(_Sent):
    """A request of either version; version 1 becomes version 2 while it is read."""

    id: str = Field(examples=["d9fbf438-b7c6-419a-a75b-1cf79275e58d"], description="Comes back in the answer")
    timestamp: float | str | None = Field(default=None, description="Unix milliseconds")
    type: str | None = Field(default=None, examples=["geopose"])
    sensor_readings: SensorReadings

    @field_validator("sensor_readings", mode="before")
    @classmethod
    def _from_version_1(cls, value: Any) -> Any:
        """Version 1 has one list for readings of every kind; their fields tell which is which."""
        if not isinstance(value, list):
            return value
        readings: dict[str, list[Any]] = {"cameraReadings": [], "geolocationReadings": []}
        for item in value:
            reading = item.get("reading") if isinstance(item, dict) else None
            if not isinstance(reading, dict):
                continue
            if "imageBytes" in reading:
                readings["cameraReadings"].append({**item, **reading})
            elif "latitude" in reading:
                readings["geolocationReadings"].append({**item, **reading})
        return readings

    def cameras(self) -> list[tuple[int, CameraReading]]:
        """The readings that are photos, each with its place among the camera readings.

        Raises:
            RequestError: none, or more than are answered at once (``validation_error``).
        """
        readings = self.sensor_readings.camera_readings or []
        photos = [one for one in enumerate(readings) if (one[1].image_format or "").upper() != "DEPTH"]
        if not photos:
            raise RequestError(
                "/sensorReadings has no photo", code="validation_error", remedy="Send at least one camera reading"
            )
        if len(photos) > MAX_CAMERAS:
            raise RequestError(
                f"/sensorReadings has {len(photos)} photos, more than {MAX_CAMERAS}",
                code="validation_error",
                remedy="Send one photo, or one of each camera",
            )
        return photos

    def prior(self) -> GeoPrior | None:
        """The circle in which the answer must lie: the narrowest that a geolocation reading gives."""
        priors = [reading.prior() for reading in self.sensor_readings.geolocation_readings or []]
        return min((prior for prior in priors if prior), key=lambda prior: prior.radius_m, default=None)

    def timestamp_ms(self) -> int:
        """When the request was made, Unix milliseconds; now, if its own value is not plausible."""
        stated = self.timestamp
        if isinstance(stated, str):
            stated = _milliseconds(stated)
        if stated is None or not math.isfinite(stated) or not 0 < stated < _MAX_TIMESTAMP_MS:
            return int(time.time() * 1e3)
        return int(stated)


class GeoPosePosition(BaseModel):
    """WGS84 position."""

    lat: float = Field(description="Degrees", examples=[47.61153])
    lon: float = Field(description="Degrees", examples=[-122.33708])
    h: float = Field(description="Metres, as the references state it; 0 where they do not", examples=[0.0])


class GeoPoseQuaternion(BaseModel):
    """Turns east-north-up at the position to the camera's frame: x ahead, y left, z up. Unit length."""

    x: float
    y: float
    z: float
    w: float


class GeoPose(BaseModel):
    """OGC GeoPose 1.0 (21-056r11), Basic-Quaternion."""

    position: GeoPosePosition
    quaternion: GeoPoseQuaternion


class GeoPoseAccuracy(BaseModel):
    """The accuracy of a pose."""

    position: float = Field(description="Radius of the fix, metres", examples=[12.4])
    orientation: float = Field(description="Degrees; 180 is unknown", examples=[30.0])


class GeoPoseResponse(BaseModel):
    """The answer, the same in both versions. Clients refuse any further field."""

    id: str = Field(description="Of the request")
    timestamp: int = Field(description="Of the request, Unix milliseconds")
    type: Literal["geopose"] = "geopose"
    accuracy: GeoPoseAccuracy
    geopose: GeoPose


def _milliseconds(text: str) -> float | None:
    """A time as text: a number, or ISO 8601 as early clients send it."""
    for read in (float, _iso_milliseconds):
        try:
            return read(text)
        except ValueError:
            continue
    return None


def _iso_milliseconds(text: str) -> float:
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1e3


def known(number: float | None) -> float | None:
    """A number that a client really set, or None."""
    return number if number is not None and math.isfinite(number) and abs(number) < _UNSET_ABOVE else None


def version_of(accept: str) -> Version:
    """Which version an `Accept` header asks for; without one, 2.

    Raises:
        RequestError: another version than 1 and 2.
    """
    ours = next((part for part in accept.split(",") if MEDIA_TYPE in part.lower()), "")
    stated = _VERSION.search(ours.lower())
    major = stated.group(1) if stated else "2"
    if major not in ("1", "2"):
        raise RequestError(
            f"version {major} of the GeoPose protocol is not supported",
            remedy=f"Accept {MEDIA_TYPE};version=2.0 or 1.0",
        )
    return "1.0" if major == "1" else "2.0"
