"""From the messages of a camera to the bytes that are sent."""

import io
from typing import Any

import numpy as np
from PIL import Image

# Channels of what a camera driver publishes, and which of them are red, green and blue.
_CHANNELS = {"rgb8": (3, (0, 1, 2)), "bgr8": (3, (2, 1, 0)), "rgba8": (4, (0, 1, 2)), "bgra8": (4, (2, 1, 0))}
_QUALITY = 95
# Pillow's numbers; Humble's Pillow 9.0 has no `Resampling`.
_FILTERS = {"bilinear": 2, "bicubic": 3}


class UnsupportedEncodingError(Exception):
    """A pixel format that we do not read."""


def jpeg_of_pixels(data: Any, *, height: int, width: int, step: int, encoding: str) -> bytes:
    """A JPEG of an uncompressed image, small enough for a network and at no loss that a place would show.

    Args:
        data: `height` rows of `step` bytes.
        height, width: pixels.
        step: bytes from one row to the next.
        encoding: rgb8, bgr8, rgba8, bgra8 or mono8.

    Raises:
        UnsupportedEncodingError: another encoding, or fewer bytes than there should be.
    """
    count, order = _CHANNELS.get(encoding, (1, (0,)))
    if encoding != "mono8" and encoding not in _CHANNELS:
        raise UnsupportedEncodingError(
            f"images in {encoding} are not read; give {', '.join(_CHANNELS)} or mono8 (for Bayer: image_proc)"
        )
    flat = np.frombuffer(bytes(data), np.uint8)
    if step < width * count or flat.size < height * step:
        raise UnsupportedEncodingError(f"{flat.size} bytes are no {width} × {height} image in {encoding}, step {step}")
    pixels = flat[: height * step].reshape(height, step)[:, : width * count].reshape(height, width, count)
    rgb = pixels[:, :, list(order)]
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(rgb if count > 1 else rgb[:, :, 0]))
    image.save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return buffer.getvalue()


def shrunk(photo: bytes, sees: dict[str, Any] | None) -> bytes:
    """A photo as the server's model sees it: reduced here as the server would do it, and sent without loss.

    The descriptor is the same, the bytes are a third or a quarter. A photo whose own bytes are fewer is left as it is,
    and so is every photo for a model that crops or pads. A camera's frames carry no EXIF orientation.

    Args:
        photo: JPEG or PNG.
        sees: `preprocessing` of GET /info; None leaves the photo as it is.
    """
    if sees is None or sees["fit"] != "stretch":
        return photo
    size = (sees["width"], sees["height"])
    with Image.open(io.BytesIO(photo)) as image:
        if image.mode != "RGB":
            return photo
        if sees["jpeg_scaled_decode"]:
            image.draft(None, size)
        small = image.resize(size, _FILTERS[sees["filter"]])
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", lossless=True, method=0, quality=0)
    return buffer.getvalue() if buffer.tell() < len(photo) else photo
