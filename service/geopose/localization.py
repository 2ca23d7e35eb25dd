"""From a GeoPose request to a photo, and from the answer for it to a pose."""

import io
import math
from typing import Final

import numpy as np
from PIL import Image

from retrieval.errors import ImageError, SightfixError
from retrieval.geo import Float64Array, haversine_m
from retrieval.images import ImageLimits, RgbImage, check_byte_count, decode_upright, open_image, sniff_format
from retrieval.localize.evidence import FixSettings, match_weights
from retrieval.localize.fix import Fix
from retrieval.localize.localizer import Located
from retrieval.references.reference import Reference
from service.geopose.protocol import CameraReading, GeoPose, GeoPoseAccuracy, GeoPosePosition, GeoPoseQuaternion, known
from service.http.requests import decode_base64
from service.problems import RequestError

_CHANNELS: Final = {"RGBA32": 4, "GRAY8": 1}

# More than any model takes: a photo that must be turned is decoded, and need not be encoded again in full.
_TURNED_SIDE: Final = 1024

_EXIF_ORIENTATION: Final = 0x0112

# The directions of photos of one object differ by up to half a field of view: an assumption, not a measurement.
_MIN_ORIENTATION_DEG: Final = 30.0

_UNKNOWN_DEG: Final = 180.0

# Below this mean resultant length the directions agree too little to have a mean: they spread over 67 degrees.
_MIN_RESULTANT: Final = 0.5


def photo_of(camera: CameraReading, number: int, limits: ImageLimits) -> "bytes | SightfixError":
    """The photo of one camera reading, encoded and upright, or why there is none.

    It is an encoded file, whatever its declared format is, or raw pixels.

    Args:
        camera: the reading.
        number: its place among the readings, for errors.
        limits: of encoded images.
    """
    where = f"/sensorReadings/cameraReadings/{number}"
    try:
        data = _decoded(camera.image_bytes, where)
        check_byte_count(len(data), limits)
        if not data:
            sniff_format(data)
        quarters, mirrored = _turn(camera)
        pixels = _raw_pixels(camera, data, where)
        if pixels is None:
            if not (quarters or mirrored) or _turned_by_exif(data, limits):
                return data
            pixels = decode_upright(data, _TURNED_SIDE, limits)
        return _png(np.fliplr(np.rot90(pixels, -quarters)) if mirrored else np.rot90(pixels, -quarters))
    except SightfixError as error:
        return error


def _decoded(text: str, where: str) -> bytes:
    if text.startswith("data:"):  # as browsers' canvases give it
        text = text.partition(",")[2]
    return decode_base64("".join(text.split()), f"{where}/imageBytes")


def _turn(camera: CameraReading) -> tuple[int, bool]:
    """Quarter turns clockwise that make the image upright, and whether it is mirrored after them."""
    orientation = camera.image_orientation
    if orientation is None:
        return 0, False
    return round((known(orientation.rotation) or 0.0) % 360.0 / 90.0) % 4, bool(orientation.mirrored)


def _raw_pixels(camera: CameraReading, data: bytes, where: str) -> RgbImage | None:
    """The pixels of a raw image, (h, w, 3) uint8; None for an encoded photo: many clients declare those as RGBA32."""
    channels = _CHANNELS.get((camera.image_format or "").upper())
    try:
        sniff_format(data)
        return None
    except ImageError:
        if channels is None:
            raise
    sides = [int(side) for side in camera.size or [] if side is not None and known(side) is not None and side >= 1]
    if len(sides) != 2 or len(data) != sides[0] * sides[1] * channels:
        raise RequestError(
            f"{where}/imageBytes is no encoded photo, and its {len(data)} bytes are no {camera.image_format} "
            f"of size {camera.size}",
            code="validation_error",
            remedy="Send a JPEG or PNG, or size as [width, height] of the raw pixels",
        )
    pixels = np.frombuffer(data, np.uint8).reshape(sides[1], sides[0], channels)
    # A camera's alpha channel is not part of the scene.
    return np.ascontiguousarray(pixels[..., :3] if channels == 4 else pixels.repeat(3, axis=2))


def _turned_by_exif(data: bytes, limits: ImageLimits) -> bool:
    """Whether the photo's EXIF data has an orientation: it must not be turned twice."""
    try:
        return open_image(data, limits).getexif().get(_EXIF_ORIENTATION, 1) not in (0, 1)
    except ImageError:
        raise
    except Exception:  # damaged: decoding will say how
        return False


def _png(pixels: RgbImage) -> bytes:
    buffer = io.BytesIO()
    # For the decoder, not for a disk: a small file would gain nothing.
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def pose_of(located: Located, settings: FixSettings) -> tuple[GeoPose, GeoPoseAccuracy]:
    """The pose of the camera.

    The heading is the mean of those of the matches at the fix, weighted like the fix itself. Pitch and roll are taken
    as 0. Without headings, or when they disagree, the quaternion is identity and its accuracy 180 degrees.

    Args:
        located: with a fix.
        settings: how the fix was made.
    """
    fix = located.fix
    assert fix is not None, "only for results with a fix"
    references, weights = _supporting(located, fix, settings)
    quaternion, orientation_deg = _orientation(references, weights)
    height_m = _height_m(references, weights)
    position = GeoPosePosition(lat=fix.position.lat, lon=fix.position.lon, h=height_m)
    pose = GeoPose(position=position, quaternion=quaternion)
    return pose, GeoPoseAccuracy(position=fix.radius_m, orientation=orientation_deg)


def _supporting(located: Located, fix: Fix, settings: FixSettings) -> tuple[list[Reference], Float64Array]:
    """The reported references at the fix, and their weights."""
    references, places = [], []
    for place, match in zip(located.ranking.order, located.matches, strict=False):
        position = match.reference.position
        assert position is not None, "a place index holds positions only"
        distance_m = haversine_m(fix.position.lat, fix.position.lon, position.lat, position.lon)
        if distance_m <= settings.cluster_radius_m:
            references.append(match.reference)
            places.append(place)
    cosines = located.ranking.cosines[np.array(places, np.int64)]
    return references, match_weights(cosines, settings.score_scale) if places else cosines


def _orientation(references: list[Reference], weights: Float64Array) -> tuple[GeoPoseQuaternion, float]:
    headings = np.array([math.nan if one.heading_deg is None else one.heading_deg for one in references])
    stated = np.isfinite(headings)
    identity = GeoPoseQuaternion(x=0.0, y=0.0, z=0.0, w=1.0)
    if not stated.any():
        return identity, _UNKNOWN_DEG
    # Counter-clockwise from east, as mathematics and ENU have it; headings are clockwise from north.
    yaws = np.radians(90.0 - headings[stated])
    mean = complex(np.average(np.exp(1j * yaws), weights=weights[stated]))
    resultant = min(abs(mean), 1.0)
    if resultant < _MIN_RESULTANT:
        return identity, _UNKNOWN_DEG
    yaw = math.atan2(mean.imag, mean.real)
    spread_deg = math.degrees(math.sqrt(-2.0 * math.log(resultant)))
    quaternion = GeoPoseQuaternion(x=0.0, y=0.0, z=math.sin(yaw / 2.0), w=math.cos(yaw / 2.0))
    return quaternion, max(spread_deg, _MIN_ORIENTATION_DEG)


def _height_m(references: list[Reference], weights: Float64Array) -> float:
    """The mean altitude of the references, as they state it; 0 where none does."""
    altitudes = np.array([math.nan if one.altitude_m is None else one.altitude_m for one in references])
    stated = np.isfinite(altitudes)
    return float(np.average(altitudes[stated], weights=weights[stated])) if stated.any() else 0.0
