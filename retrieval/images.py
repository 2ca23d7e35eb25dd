"""From encoded bytes to the RGB array a bundle wants: the one decode path of references and queries.

A scaled JPEG decode or another resampling filter changes pixels, and so descriptors. Therefore every image goes through
`decode_image`, with the `Preprocessing` that travels in the bundle. Every limit and every decode error lives here.
"""

import contextlib
import errno
import io
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from pydantic import BaseModel, ConfigDict, Field

from retrieval.errors import ImageError, ReferenceDataError, counted

RgbImage = NDArray[np.uint8]
ImageFormat = Literal["JPEG", "PNG", "WEBP", "HEIF"]

MEDIA_TYPES: Final[dict[ImageFormat, tuple[str, ...]]] = {
    "JPEG": ("image/jpeg", "image/jpg"),
    "PNG": ("image/png",),
    "WEBP": ("image/webp",),
    "HEIF": ("image/heic", "image/heif"),
}
FILE_SUFFIXES: Final[frozenset[str]] = frozenset({".jpg", ".jpeg", ".png", ".webp", ".heic", ".heif"})

# An error names so many unreadable photos.
_NAMED: Final = 10
_HEIF_BRANDS: Final[frozenset[bytes]] = frozenset({b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"})
_FILTERS: Final = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_ORIENTATION_TAG: Final = 0x0112
_INCOMPLETE: Final = "Check that the file is complete; it may have been cut off while copying or sending"
# Each scan of a progressive JPEG is a pass over the whole image: a small file of thousands takes minutes to decode.
_START_OF_SCAN: Final = b"\xff\xda"
_MAX_SCANS: Final = 100
_STRIP_PIXELS: Final = 1 << 20
_SWAPS_SIDES: Final[frozenset[int]] = frozenset({5, 6, 7, 8})
_TURNS: Final[dict[int, Image.Transpose]] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Preprocessing(BaseModel):
    """How an image becomes the input array of a bundle's graph; part of the bundle's fingerprint.

    Attributes:
        height, width: size of the input array in pixels.
        fit: `stretch` resizes both sides independently, `crop` keeps the aspect ratio and cuts the longer side evenly,
            `pad` keeps it and fills the rest with black.
        filter: resampling filter. Always antialiased (its support grows with the reduction factor).
        exif_orientation: turn the photo upright by its EXIF orientation tag.
        jpeg_scaled_decode: let libjpeg decode at 1/2, 1/4 or 1/8 when that is still at least as large as the input.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    height: int = Field(ge=16, le=4096)
    width: int = Field(ge=16, le=4096)
    fit: Literal["stretch", "crop", "pad"] = "stretch"
    filter: Literal["bilinear", "bicubic"] = "bicubic"
    exif_orientation: Literal[True] = True
    jpeg_scaled_decode: bool = True


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What we refuse to decode: bytes of the encoded image, and pixels as its header states them."""

    max_bytes: int = 32 * 1024 * 1024
    max_pixels: int = 80_000_000  # below the size at which Pillow itself starts to warn


DEFAULT_LIMITS: Final = ImageLimits()


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A photo that is left out.

    Attributes:
        path: of the photo; in an index relative to the root of its source where possible, with ``/``.
        code: of the error that its photo gave, or ``skipped`` where the source itself left it out.
        reason: one sentence without a full stop.
        remedy: what to do about it, or None.
    """

    path: str
    code: str
    reason: str
    remedy: str | None = None

    @classmethod
    def of(cls, path: str | Path, error: ImageError) -> Self:
        """A photo that gave an error."""
        return cls(str(path), error.code, error.what, error.remedy)


class UnreadableTally:
    """Counts photos that cannot be read, and ends the work when there are too many.

    Args:
        allowed: how many there may be.
        own_code: whether the error about a single photo has the code of that photo's error.
    """

    def __init__(self, allowed: int, *, own_code: bool = False) -> None:
        self.allowed, self.own_code = allowed, own_code
        self.count = 0
        self.photos: list[LeftOut] = []

    def add(self, photo: LeftOut, count: int = 1) -> None:
        """Note a photo; `count` references share it."""
        self.photos.append(photo)
        self.count += count

    def check(self, spare: int = 0) -> None:
        """Refuse more unreadable photos than are allowed.

        Args:
            spare: so many more are no reason to stop yet, so that the error can name them together.

        Raises:
            ReferenceDataError: there are too many (``too_many_unreadable``); the first ones are named.
        """
        if self.count <= self.allowed + spare:
            return
        first = self.photos[0]
        others = "".join(f"; {one.path}: {one.reason}" for one in self.photos[1:_NAMED])
        more = f"; and {len(self.photos) - _NAMED} more" if len(self.photos) > _NAMED else ""
        unreadable = counted(self.count, "photo is unreadable", "photos are unreadable")
        raise ReferenceDataError(
            f"{first.reason}{others}{more}. So far {unreadable}, {self.allowed or 'none'} may be",
            where=first.path,
            remedy="Repair or remove what is named, or allow more with --max-unreadable (a job: max_unreadable)",
            code=first.code if self.own_code and self.count == 1 else "too_many_unreadable",
        )


def sniff_format(data: bytes) -> ImageFormat:
    """The format of an encoded image by its first bytes; file names and content types do not count.

    Raises:
        ImageError: nothing there (``empty_body``), or not one of our formats (``unsupported_media_type``).
    """
    if not data:
        raise ImageError("the image is empty (0 bytes)", remedy="Send the encoded photo", code="empty_body")
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
        return "HEIF"
    raise ImageError(
        f"the image is {_foreign_format(data)}, which is not accepted",
        remedy="Send JPEG, PNG, WebP or HEIC",
        code="unsupported_media_type",
    )


def _foreign_format(data: bytes) -> str:
    known = {b"GIF8": "a GIF", b"II*\x00": "a TIFF", b"MM\x00*": "a TIFF", b"%PDF": "a PDF", b"BM": "a BMP"}
    return next((name for magic, name in known.items() if data.startswith(magic)), "of an unknown format")


def decode_image(
    data: bytes, preprocessing: Preprocessing, limits: ImageLimits = DEFAULT_LIMITS, *, where: str | None = None
) -> RgbImage:
    """Decode an encoded photo to the input array of a bundle.

    Grey, CMYK, palette and 16-bit images become 8-bit RGB; transparent pixels show white.

    Args:
        data: an encoded JPEG, PNG, WebP or HEIC.
        preprocessing: the bundle's.
        limits: checked before any pixel is decoded.
        where: file name for error messages.

    Returns:
        (height, width, 3) uint8, RGB, C-contiguous.

    Raises:
        ImageError: empty, of another format, over a limit, animated, truncated or otherwise undecodable.
    """
    with _decode_errors(where):
        image = open_image(data, limits)
        sides = (preprocessing.width, preprocessing.height)
        if preprocessing.jpeg_scaled_decode:
            _draft(image, lambda size: _draft_size(size, sides, preprocessing.fit))
        rgb = _to_rgb(_upright(image))
        return np.ascontiguousarray(_fit(rgb, preprocessing), dtype=np.uint8)


def decode_upright(
    data: bytes, max_side: int, limits: ImageLimits = DEFAULT_LIMITS, *, where: str | None = None
) -> RgbImage:
    """Decode an encoded photo for people: upright, its own aspect ratio, no side longer than `max_side`.

    Returns:
        (h, w, 3) uint8 RGB.

    Raises:
        ImageError: as `decode_image`.
    """
    with _decode_errors(where):
        image = open_image(data, limits)
        _draft(image, lambda size: _draft_size(size, (max_side, max_side), "pad"))
        rgb = _to_rgb(_upright(image))
        rgb.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
        return np.asarray(rgb, dtype=np.uint8)


def fit_image(image: RgbImage, preprocessing: Preprocessing) -> RgbImage:
    """Resize a decoded photo to the input array of a bundle, as `decode_image` does after decoding.

    Args:
        image: (h, w, 3) uint8 RGB.
        preprocessing: the bundle's.

    Returns:
        (height, width, 3) uint8 RGB, C-contiguous.
    """
    return np.ascontiguousarray(_fit(Image.fromarray(image), preprocessing), dtype=np.uint8)


@contextlib.contextmanager
def _decode_errors(where: str | None) -> Iterator[None]:
    """Whatever a decoder raises on damaged input, as an ImageError that names the file."""
    try:
        yield
    except ImageError as error:
        if where is None or error.where:
            raise
        raise ImageError(error.what, where=where, remedy=error.remedy, code=error.code) from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files, struct.error for one
        raise ImageError(f"the image cannot be decoded ({_reason(error)})", where=where, remedy=_INCOMPLETE) from error


def _reason(error: Exception) -> str:
    text = str(error).strip().rstrip(".")
    return "it ends too early" if "truncated" in text.lower() else text or type(error).__name__


def _draft(image: Image.Image, wanted: Callable[[tuple[int, int]], tuple[int, int]]) -> None:
    """Let libjpeg decode smaller, as long as it stays at least as large as wanted of the upright photo."""
    if not isinstance(image, JpegImageFile):
        return
    swapped = _orientation(image) in _SWAPS_SIDES
    size = wanted(image.size[::-1] if swapped else image.size)
    image.draft(None, size[::-1] if swapped else size)


def _upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it also writes the EXIF block anew, which fails where the block is slightly damaged.
    image.load()
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1..8; 1 where the block is missing or damaged, for the photo itself may be whole."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG)
        return int(value) if value in _TURNS else 1
    except Exception:
        return 1


def read_image(path: Path, preprocessing: Preprocessing, limits: ImageLimits = DEFAULT_LIMITS) -> RgbImage:
    """`decode_image` of a file.

    Raises:
        ImageError: as `decode_image`, or the file cannot be read (``image_unreadable``).
    """
    return decode_image(read_image_bytes(path, limits), preprocessing, limits, where=str(path))


def read_image_bytes(path: Path, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
    """The encoded bytes of a photo, refused by size before they are read.

    Raises:
        ImageError: the file cannot be read (``image_unreadable``) or is too large (``body_too_large``).
    """
    try:
        with open_photo(path) as file:
            # By the file's size: asked for more, Python would make room for all of that. A pipe has none.
            size = os.fstat(file.fileno()).st_size
            data = file.read(min(size, limits.max_bytes) + 1)
            if len(data) > size:
                data += file.read(limits.max_bytes + 1 - len(data))
    except OSError as error:
        raise ImageError(
            f"the photo cannot be read ({error.strerror})",
            where=str(path),
            remedy="Check the path and its permissions",
            code="image_unreadable",
        ) from error
    check_byte_count(len(data), limits, where=str(path))
    return data


def open_photo(path: Path) -> BinaryIO:
    """Open a photo's file for reading. A named pipe without a writer reads as empty: nothing waits for one.

    Raises:
        OSError: it cannot be opened, be it for a NUL in its path.
    """
    opener = _open_without_waiting if hasattr(os, "O_NONBLOCK") else None
    try:
        return open(path, "rb", opener=opener)
    except ValueError:
        raise OSError(errno.EINVAL, "its path holds a NUL character") from None


def _open_without_waiting(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    return descriptor


def check_byte_count(count: int, limits: ImageLimits, *, where: str | None = None) -> None:
    """Raise ImageError (``body_too_large``) when an encoded image has more bytes than allowed."""
    if count > limits.max_bytes:
        raise ImageError(
            f"the image has more than {limits.max_bytes} bytes",
            where=where,
            remedy="Send a smaller photo: the model looks at a small version of it anyway",
            code="body_too_large",
        )


def open_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Read the header of an encoded image and check it against the limits; no pixel is decoded.

    Raises:
        ImageError: see `decode_image`.
        OSError, ValueError, SyntaxError: what Pillow raises on a damaged header.
    """
    check_byte_count(len(data), limits)
    image_format = sniff_format(data)
    if image_format == "JPEG" and data.count(_START_OF_SCAN) > _MAX_SCANS:
        raise ImageError(f"the JPEG has more than {_MAX_SCANS} scans", remedy="Save the photo anew, as a baseline JPEG")
    if image_format == "HEIF":
        _register_heif()
    try:
        image = Image.open(io.BytesIO(data), formats=[image_format])
    except UnidentifiedImageError as error:
        raise ImageError(
            f"the image starts like a {image_format} but its header is damaged", remedy=_INCOMPLETE
        ) from error
    except Image.DecompressionBombError:
        raise _too_many_pixels(limits) from None
    if image.width * image.height > limits.max_pixels:
        raise _too_many_pixels(limits)
    # JPEG and HEIC may carry further pictures (previews, depth, the other eye); their first is the photo.
    if image_format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) > 1:
        raise ImageError(f"the {image_format} is animated", remedy="Send a still photo", code="unsupported_media_type")
    return image


def _too_many_pixels(limits: ImageLimits) -> ImageError:
    return ImageError(
        f"the image has more than {limits.max_pixels} pixels",
        remedy="Send a smaller photo: the model looks at a small version of it anyway",
        code="too_many_pixels",
    )


_heif_lock = threading.Lock()
_heif_registered = False


def _register_heif() -> None:
    global _heif_registered
    import pillow_heif  # here, because most photos are of another format

    with _heif_lock:
        if not _heif_registered:
            pillow_heif.register_heif_opener(thumbnails=False)
            _heif_registered = True


def _draft_size(size: tuple[int, int], target: tuple[int, int], fit: str) -> tuple[int, int]:
    """The smallest (width, height) that a scaled decode may return without losing detail the resize would keep."""
    if fit == "stretch":
        return target
    ratio = (max if fit == "crop" else min)(target[0] / size[0], target[1] / size[1])
    return max(1, round(size[0] * ratio)), max(1, round(size[1] * ratio))


def _to_rgb(image: Image.Image) -> Image.Image:
    transparent = "A" in image.mode or "a" in image.mode or "transparency" in image.info
    if image.mode.startswith("I"):
        return _in_strips(image, _grey_of_16_bits)
    if transparent:
        return _in_strips(image, _over_white)
    return image if image.mode == "RGB" else image.convert("RGB")


def _in_strips(image: Image.Image, to_rgb: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert some rows at a time: whole copies of a large photo would take 20 bytes a pixel, this takes 7."""
    rows = max(1, _STRIP_PIXELS // image.width)
    rgb = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        rgb.paste(to_rgb(image.crop(box)), box)
    return rgb


def _grey_of_16_bits(image: Image.Image) -> Image.Image:
    grey = np.asarray(image) >> 8  # Pillow's own conversion would clip it to white
    return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def _fit(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    size = (preprocessing.width, preprocessing.height)
    resample = _FILTERS[preprocessing.filter]
    if image.size == size:
        image.load()
        return image
    if preprocessing.fit == "crop":
        return ImageOps.fit(image, size, resample)
    if preprocessing.fit == "pad":
        return ImageOps.pad(image, size, resample)
    return image.resize(size, resample)
