"""Encoded photos for tests, and crafted files whose headers promise more than they hold."""

import io
import struct
import zlib
from typing import Final

import numpy as np
import pillow_heif
from PIL import Image

FORMATS: Final = ("JPEG", "PNG", "WEBP", "HEIC")

# What a camera held that way stores, for the upright picture to come out: the inverse of each EXIF orientation.
STORED_AS: Final = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    """Soft coloured blobs: compresses well in every format, and no turn or mirror looks like the original."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, image_format: str, orientation: int | None = None, **options: object) -> bytes:
    """Encode; with an orientation, store the picture turned as a camera would, and say so in EXIF."""
    exif = Image.Exif()
    if orientation:
        turn = STORED_AS[orientation]
        image = image if turn is None else image.transpose(turn)
        exif[0x0112] = orientation
    buffer = io.BytesIO()
    if image_format == "HEIC":
        file = pillow_heif.from_pillow(image)
        if orientation:
            file.info["exif"] = exif.tobytes()
        file.save(buffer, **{"quality": 95, **options})
    else:
        if orientation:
            options["exif"] = exif
        if image_format == "WEBP":
            options.setdefault("lossless", True)
        image.save(buffer, image_format, **{"quality": 95, **options})
    return buffer.getvalue()


def png(width: int, height: int, bit_depth: int, colour_type: int, pixels: bytes) -> bytes:
    """A PNG written by hand: `pixels` are the raw rows, each with its filter byte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)


def bomb_png(side: int) -> bytes:
    """A PNG of less than 100 bytes that says it is side × side pixels."""
    return png(side, side, 8, 2, b"")


def bomb_jpeg(side: int) -> bytes:
    """A JPEG of less than 100 bytes that says it is side × side pixels."""
    frame = struct.pack(">HBHHB", 17, 8, side, side, 3) + bytes([1, 0x11, 0, 2, 0x11, 1, 3, 0x11, 1])
    scan = struct.pack(">HB", 12, 3) + bytes([1, 0, 2, 0x11, 3, 0x11, 0, 63, 0])
    return b"\xff\xd8\xff\xc0" + frame + b"\xff\xda" + scan + bytes(8) + b"\xff\xd9"


def bomb_webp(side: int) -> bytes:
    """A lossless WebP of less than 100 bytes that says it is side × side pixels, 16383 at most."""
    data = b"\x2f" + struct.pack("<I", (side - 1) | (side - 1) << 14) + bytes(11)
    chunk = b"VP8L" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def bomb_heic(side: int) -> bytes:
    """A HEIC whose image property says side × side pixels."""
    data = bytearray(encode(smooth(64, 64), "HEIC"))
    place = data.find(b"ispe") + 8
    data[place : place + 8] = struct.pack(">II", side, side)
    return bytes(data)
