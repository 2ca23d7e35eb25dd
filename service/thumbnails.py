"""Small versions of reference photos, without their metadata."""

import io
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from retrieval.images import decode_upright, read_image_bytes

THUMBNAIL_SIDE: Final = 320


def make_thumbnail(path: Path, side: int = THUMBNAIL_SIDE) -> bytes:
    """A JPEG of at most `side` × `side` pixels, upright, with the photo's aspect ratio and none of its metadata.

    Raises:
        ImageError: the photo cannot be read or decoded.
    """
    image = Image.fromarray(np.asarray(decode_upright(read_image_bytes(path), side, where=str(path))))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
