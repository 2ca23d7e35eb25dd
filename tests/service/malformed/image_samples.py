"""Photos that are odd, damaged or no photos at all, by name: what a server on the internet is sent sooner or later."""

import io
import struct
import zipfile
import zlib
from functools import cache
from typing import Final

import numpy as np
from PIL import Image

from tests.retrieval.encoded import bomb_heic, bomb_jpeg, bomb_png, bomb_webp, encode, png, smooth

_ORIENTATION: Final = 0x0112
_MAKER_NOTE: Final = 0x927C
_EXIF_IFD: Final = 0x8769
_GPS_IFD: Final = 0x8825


@cache
def whole() -> dict[str, bytes]:
    """Photos without a fault, each of which must be answered."""
    photo = smooth(320, 240)
    noise = Image.fromarray(np.random.default_rng(3).integers(0, 256, (240, 320, 3), dtype=np.uint8))
    transparent = photo.convert("RGBA")
    transparent.putalpha(photo.convert("L"))
    palette = photo.quantize(64)
    return {
        "jpeg": encode(photo, "JPEG"),
        "jpeg of noise": encode(noise, "JPEG", quality=80),
        "progressive jpeg": encode(photo, "JPEG", progressive=True),
        "grey jpeg": encode(photo.convert("L"), "JPEG"),
        "cmyk jpeg": encode(photo.convert("CMYK"), "JPEG"),
        "jpeg with restart markers": encode(photo, "JPEG", restart_marker_blocks=3),
        "png": encode(photo, "PNG"),
        "black and white png": encode(photo.convert("1"), "PNG"),
        "png with alpha": encode(transparent, "PNG"),
        "palette png": encode(palette, "PNG"),
        "palette png with alpha": encode(palette, "PNG", transparency=bytes(range(64))),
        "grey png with alpha": encode(transparent.convert("LA"), "PNG"),
        "16-bit grey png": png(2, 2, 16, 0, (b"\0" + b"\x80\0" * 2) * 2),
        "16-bit colour png": png(2, 2, 16, 2, (b"\0" + b"\x80\0" * 6) * 2),
        "webp": encode(photo, "WEBP", lossless=False),
        "lossless webp with alpha": encode(transparent, "WEBP"),
        "heic": encode(photo, "HEIC"),
        "jpeg of one pixel": encode(photo.resize((1, 1)), "JPEG"),
        "png of one pixel": encode(photo.resize((1, 1)), "PNG"),
        "jpeg 1 × 65500": encode(Image.new("RGB", (1, 65500), "red"), "JPEG"),
        "jpeg 65500 × 1": encode(Image.new("RGB", (65500, 1), "red"), "JPEG"),
        "png 1 × 65535": encode(Image.new("RGB", (1, 65535), "red"), "PNG"),
        "webp 1 × 16383": encode(Image.new("RGB", (1, 16383), "red"), "WEBP"),
        **{f"jpeg with {name}": with_exif(encode(photo, "JPEG"), block) for name, block in _exif_blocks().items()},
    }


@cache
def bad() -> dict[str, bytes]:
    """What must be refused, by name."""
    jpeg, small_png, webp, heic = (whole()[name] for name in ("jpeg", "png", "webp", "heic"))
    animation = [smooth(32, 32, seed) for seed in range(3)]
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        archive.writestr("photo.jpg", jpeg)
    return {
        "nothing": b"",
        "one byte": b"\xff",
        "zeros": bytes(4096),
        "text": b"this is no photo\n" * 50,
        "zip": buffer.getvalue(),
        "pdf": b"%PDF-1.7\n1 0 obj\n<< >>\nendobj\n%%EOF",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        "html": b"<!doctype html><html><body><img src='x'></body></html>",
        "executable": b"\x7fELF" + bytes(200),
        "gif": encode(smooth(32, 32).convert("P"), "GIF"),
        "bmp": encode(smooth(32, 32), "BMP"),
        "tiff": encode(smooth(32, 32), "TIFF"),
        "avif": encode(smooth(64, 64), "AVIF"),
        "animated png": encode(animation[0], "PNG", save_all=True, append_images=animation[1:]),
        "animated webp": encode(animation[0], "WEBP", save_all=True, append_images=animation[1:]),
        "only the magic of a jpeg": b"\xff\xd8\xff",
        "only the magic of a png": b"\x89PNG\r\n\x1a\n",
        "only the magic of a webp": b"RIFF\0\0\0\0WEBP",
        "only the magic of a heic": b"\0\0\0\x18ftypheic",
        "magic of a jpeg, then zeros": b"\xff\xd8\xff" + bytes(4096),
        "magic of a png, then zeros": b"\x89PNG\r\n\x1a\n" + bytes(4096),
        "magic of a heic, then zeros": b"\0\0\0\x18ftypheic" + bytes(4096),
        "jpeg that ends in its header": jpeg[:40],
        "jpeg that ends in its data": jpeg[: len(jpeg) // 2],
        "png that ends in its header": small_png[:20],
        "png that ends in its data": small_png[: len(small_png) // 2],
        "webp that ends in its data": webp[: len(webp) // 2],
        "heic that ends in its data": heic[: len(heic) // 2],
        "zip after the magic of a jpeg": b"\xff\xd8\xff" + buffer.getvalue(),
        "jpeg after a byte order mark": b"\xef\xbb\xbf" + jpeg,
        "jpeg with fill bytes only": b"\xff\xd8" + b"\xff" * 200_000,
        "jpeg of a thousand scans": jpeg[:-2] + jpeg[jpeg.find(b"\xff\xda") : -2] * 1000,
        "jpeg of no height": _with_size(jpeg, 0, 320),
        "jpeg of no width": _with_size(jpeg, 240, 0),
        "jpeg of one component too many": _with_components(jpeg, 9),
        "png of no height": png(4, 0, 8, 2, b""),
        "png of bit depth 3": png(4, 4, 3, 2, bytes(64)),
        "png without data": png(64, 64, 8, 2, b""),
        "png with a broken checksum": small_png[:29] + b"\0\0\0\0" + small_png[33:],
        "png with a text of a gigabyte": _png_with(b"zTXt", b"k\0\0" + zlib.compress(bytes(80_000_000))),
        "png with a profile of a gigabyte": _png_with(b"iCCP", b"k\0\0" + zlib.compress(bytes(80_000_000))),
        "png that says it is huge": bomb_png(65_535),
        "png that says it is larger than that": bomb_png(2**31 - 1),
        "jpeg that says it is huge": bomb_jpeg(65_535),
        "webp that says it is huge": bomb_webp(16_383),
        "heic that says it is huge": bomb_heic(60_000),
    }


@cache
def doubtful() -> dict[str, bytes]:
    """Damaged, yet their decoders make something of them: answered or refused."""
    jpeg, heic = whole()["jpeg"], whole()["heic"]
    return {
        "heic with zeros for data": heic[: len(heic) // 2] + bytes(len(heic) - len(heic) // 2),
        "jpeg without tables": _without_segments(jpeg, 0xC4),
        "jpeg with a megabyte after its end": jpeg + bytes(1_000_000),
        "jpeg after which another one comes": jpeg + jpeg,
        "png with a zip after its end": whole()["png"] + b"PK\x03\x04" + bytes(200),
        "webp whose size is wrong": whole()["webp"][:4] + b"\xff\xff\xff\x7f" + whole()["webp"][8:],
    }


def with_exif(jpeg: bytes, block: bytes) -> bytes:
    """A JPEG with an EXIF block, whatever that holds."""
    payload = b"Exif\0\0" + block
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + jpeg[2:]


def tiff(entries: list[tuple[int, int, int, bytes]], after: int = 0, tail: bytes = b"") -> bytes:
    """A little-endian TIFF block of one directory: (tag, type, count, value of four bytes), where the next one is."""
    body = b"".join(struct.pack("<HHI4s", tag, kind, count, value) for tag, kind, count, value in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + struct.pack("<I", after) + tail


def _exif_blocks() -> dict[str, bytes]:
    def long(value: int) -> bytes:
        return struct.pack("<I", value)

    end = 8 + 2 + 12 + 4
    return {
        "an orientation of 0": tiff([(_ORIENTATION, 3, 1, long(0))]),
        "an orientation of 9": tiff([(_ORIENTATION, 3, 1, long(9))]),
        "an orientation that is a text": tiff([(_ORIENTATION, 2, 4, b"up!\0")]),
        "an orientation of a million numbers": tiff([(_ORIENTATION, 3, 1_000_000, long(end))]),
        "a directory that follows itself": tiff([(_ORIENTATION, 3, 1, long(1))], after=8),
        "a directory that holds itself": tiff([(_EXIF_IFD, 4, 1, long(8))]),
        "a position directory that holds itself": tiff([(_GPS_IFD, 4, 1, long(8))]),
        "a huge maker note": tiff([(_MAKER_NOTE, 7, 60_000, long(end))], tail=bytes(range(256)) * 234),
        "a maker note that is not there": tiff([(_MAKER_NOTE, 7, 2**32 - 1, long(end))]),
        "a thousand tags": tiff([(tag, 4, 1, long(tag)) for tag in range(1000)]),
        "a nonsense position": _nonsense_position(),
        "a block that is cut off": tiff([(_ORIENTATION, 3, 1, long(6))])[:15],
        "a block of noise": np.random.default_rng(1).bytes(2000),
        "an empty block": b"",
    }


def _nonsense_position() -> bytes:
    """Latitude of 0/0, longitude of 4 billion degrees, a reference that is no letter."""
    at = 8 + 2 + 12 + 4
    values = at + 2 + 3 * 12 + 4
    inner = b"".join(
        struct.pack("<HHI4s", tag, kind, count, value)
        for tag, kind, count, value in (
            (1, 2, 2, b"\xff\0\0\0"),
            (2, 5, 3, struct.pack("<I", values)),
            (4, 5, 3, struct.pack("<I", values + 24)),
        )
    )
    numbers = struct.pack("<6I", 0, 0, 0, 0, 0, 0) + struct.pack("<6I", 2**32 - 1, 1, 1, 0, 0, 0)
    tail = struct.pack("<H", 3) + inner + bytes(4) + numbers
    return tiff([(_GPS_IFD, 4, 1, struct.pack("<I", at))], tail=tail)


def _frame_at(jpeg: bytes) -> int:
    place = jpeg.find(b"\xff\xc0")
    assert place > 0
    return place


def _with_size(jpeg: bytes, height: int, width: int) -> bytes:
    place = _frame_at(jpeg) + 5
    return jpeg[:place] + struct.pack(">HH", height, width) + jpeg[place + 4 :]


def _with_components(jpeg: bytes, count: int) -> bytes:
    place = _frame_at(jpeg) + 9
    return jpeg[:place] + bytes([count]) + jpeg[place + 1 :]


def _without_segments(jpeg: bytes, marker: int) -> bytes:
    kept, place = jpeg[:2], 2
    while jpeg[place + 1] != 0xDA:
        length = struct.unpack(">H", jpeg[place + 2 : place + 4])[0] + 2
        if jpeg[place + 1] != marker:
            kept += jpeg[place : place + length]
        place += length
    return kept + jpeg[place:]


def _png_with(kind: bytes, data: bytes) -> bytes:
    plain = whole()["png"]
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return plain[:33] + chunk + plain[33:]
