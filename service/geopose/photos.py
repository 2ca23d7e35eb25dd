"""The photo in a camera reading: an encoded file, whatever its declared format says, or raw pixels."""

import base64
import binascii
import io
from typing import Final

import numpy as np
from PIL import Image

from retrieval.errors import ImageError, SightfixError
from retrieval.images import ImageLimits, RgbImage, check_byte_count, decode_upright, open_image, sniff_format
from service.geopose.protocol import CameraReading, known
from service.problems import RequestError

_CHANNELS: Final = {"RGBA32": 4, "GRAY8": 1}
# More than any model looks at: what must be turned is decoded, and need not be encoded again in full.
_TURNED_SIDE: Final = 1024
_EXIF_ORIENTATION: Final = 0x0112


def photo_of(camera: CameraReading, number: int, limits: ImageLimits) -> "bytes | SightfixError":
    """The photo of one camera reading, encoded and upright, or why there is none.

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
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(
            f"{where}/imageBytes is not base64 ({error})", remedy="Send the photo's bytes as standard base64"
        ) from error


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
    # A camera's alpha channel says nothing about the scene.
    return np.ascontiguousarray(pixels[..., :3] if channels == 4 else pixels.repeat(3, axis=2))


def _turned_by_exif(data: bytes, limits: ImageLimits) -> bool:
    """Whether the photo itself says how to turn it: doing so twice would be wrong."""
    try:
        return open_image(data, limits).getexif().get(_EXIF_ORIENTATION, 1) not in (0, 1)
    except ImageError:
        raise
    except Exception:  # damaged: decoding will say how
        return False


def _png(pixels: RgbImage) -> bytes:
    buffer = io.BytesIO()
    # Pixels to the decoder, not to a disk: nothing is gained by making them small.
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
