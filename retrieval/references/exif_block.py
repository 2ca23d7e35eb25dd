"""The EXIF block of a photo, read from its header: pixels are never decoded."""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

import pillow_heif
from PIL import Image
from PIL.ExifTags import IFD

from retrieval.errors import ImageError
from retrieval.images import ImageFormat, open_photo, sniff_format

_HEAD_BYTES: Final = 32
_PNG_SIGNATURE_BYTES: Final = 8
_WEBP_HEADER_BYTES: Final = 12


def read_exif(path: Path) -> Image.Exif:
    """The EXIF tags of a JPEG, PNG, WebP or HEIC; empty where it has none.

    Raises:
        ImageError: not a photo, or its header or EXIF block is damaged.
        OSError: the file cannot be read.
    """
    with open_photo(path) as file:
        image_format = sniff_format(file.read(_HEAD_BYTES))
        file.seek(0)
        try:
            exif = _READERS[image_format](file)
            for directory in (IFD.GPSInfo, IFD.Exif):  # here and not later, where nobody expects a damaged block
                exif.get_ifd(directory)
            return exif
        except OSError as error:
            if error.errno is not None:
                raise
            raise ImageError(f"its header is damaged ({error})", where=str(path)) from error
        except Exception as error:  # parsers raise nearly anything on damaged blocks, struct.error for one
            reason = str(error).strip().rstrip(".") or type(error).__name__
            raise ImageError(f"its EXIF cannot be read ({reason})", where=str(path)) from error


def _parse(block: bytes | None) -> Image.Exif:
    exif = Image.Exif()
    if block:
        exif.load(block)
    return exif


def _jpeg_exif(file: BinaryIO) -> Image.Exif:
    with Image.open(file, formats=["JPEG"]) as image:
        return image.getexif()


def _png_exif(file: BinaryIO) -> Image.Exif:
    # Pillow finds a block behind the pixels only by decoding them; the chunks say where it is.
    file.seek(_PNG_SIGNATURE_BYTES)
    while len(head := file.read(8)) == 8:
        length, name = int.from_bytes(head[:4], "big"), head[4:]
        if name == b"eXIf":
            return _parse(file.read(length))
        if name == b"IEND":
            break
        file.seek(length + 4, 1)
    return Image.Exif()


def _webp_exif(file: BinaryIO) -> Image.Exif:
    file.seek(_WEBP_HEADER_BYTES)
    while len(head := file.read(8)) == 8:
        length = int.from_bytes(head[4:], "little")
        if head[:4] == b"EXIF":
            return _parse(file.read(length))
        file.seek(length + length % 2, 1)
    return Image.Exif()


def _heif_exif(file: BinaryIO) -> Image.Exif:
    return _parse(pillow_heif.open_heif(file).info.get("exif"))


_READERS: Final[dict[ImageFormat, Callable[[BinaryIO], Image.Exif]]] = {
    "JPEG": _jpeg_exif,
    "PNG": _png_exif,
    "WEBP": _webp_exif,
    "HEIF": _heif_exif,
}
