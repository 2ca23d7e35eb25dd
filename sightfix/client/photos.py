"""The bytes that are sent of a photo: shrunk to what the server's model sees if wanted, and without further loss."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from retrieval.errors import BundleError, ImageError, ParameterError, ServerError
from retrieval.images import (
    DEFAULT_LIMITS,
    MEDIA_TYPES,
    Preprocessing,
    decode_image,
    fit_image,
    read_image_bytes,
    sniff_format,
)
from sightfix.client.answers import ServerInfo

Photo = Path | bytes | NDArray[np.uint8] | Image.Image
Resize = Literal["model"] | Preprocessing | None
_WEBP_MAX_SIDE: Final = 16_383


@dataclass(frozen=True, slots=True)
class EncodedPhoto:
    """A photo as it is sent."""

    data: bytes
    media_type: str


def encode_photo(photo: Photo, preprocessing: Preprocessing | None = None) -> EncodedPhoto:
    """The bytes to send.

    Arrays and Pillow images are encoded without loss. With a preprocessing the photo is shrunk to what the model sees,
    by the code with which the server would do it, and encoded without loss, so that the descriptor is the same; a
    photo whose own bytes are fewer is sent as it is.

    Args:
        photo: a file, encoded bytes, an (H, W, 3) uint8 RGB array, or a Pillow image.
        preprocessing: of the server's bundle, or None.

    Raises:
        ImageError: the file cannot be read, or is no photo that a server accepts.
        ParameterError: an array of another shape or type.
    """
    if isinstance(photo, Image.Image):
        photo = _pixels_of(photo)
    if isinstance(photo, np.ndarray):
        pixels = _checked(photo)
        return _lossless(pixels if preprocessing is None else fit_image(pixels, preprocessing))
    where = str(photo) if isinstance(photo, Path) else None
    data = read_image_bytes(photo, DEFAULT_LIMITS) if isinstance(photo, Path) else photo
    try:
        media_type = MEDIA_TYPES[sniff_format(data)][0]
    except ImageError as error:
        raise ImageError(error.what, where=where, remedy=error.remedy, code=error.code) from error
    if preprocessing is not None:
        shrunk = _lossless(decode_image(data, preprocessing, where=where))
        if len(shrunk.data) < len(data):
            return shrunk
    return EncodedPhoto(data, media_type)


def _pixels_of(image: Image.Image) -> bytes | NDArray[np.uint8]:
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "RGB":
        return np.asarray(upright, np.uint8)
    # Transparency, palettes and 16 bits are the server's to interpret, as in any other photo.
    buffer = io.BytesIO()
    upright.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _checked(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise ParameterError(
            f"the array is {pixels.shape} {pixels.dtype}, not (H, W, 3) uint8",
            remedy="Give RGB; OpenCV has BGR: image[:, :, ::-1]",
        )
    return pixels


def _lossless(pixels: NDArray[np.uint8]) -> EncodedPhoto:
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if max(image.size) > _WEBP_MAX_SIDE:
        image.save(buffer, "PNG", compress_level=1)
        return EncodedPhoto(buffer.getvalue(), "image/png")
    # A fifth smaller than PNG, in half the time.
    image.save(buffer, "WEBP", lossless=True, method=0, quality=0)
    return EncodedPhoto(buffer.getvalue(), "image/webp")


@dataclass(frozen=True, slots=True)
class _Known:
    """A preprocessing, and the fingerprint of the model it belongs to (None: the caller vouches for it)."""

    preprocessing: Preprocessing
    fingerprint: str | None = None


class PreprocessingCache:
    """The preprocessing of the server's model, to shrink photos with.

    Args:
        resize: "model" to ask the server; a preprocessing to use; None to send photos as they are.
    """

    def __init__(self, resize: Resize) -> None:
        self._resize = resize
        self._known = _Known(resize) if isinstance(resize, Preprocessing) else None

    @property
    def is_stale(self) -> bool:
        """Whether the server must be asked for its preprocessing before a photo is sent."""
        return self._resize is not None and self._known is None

    def update(self, info: ServerInfo) -> None:
        """Store the preprocessing of the server's model.

        Raises:
            ServerError: the server does not say (``preprocessing_unknown``).
        """
        self._known = _Known(_preprocessing_of(info), info.model.fingerprint)

    def matches(self, fingerprint: str | None) -> bool:
        """Whether the model that answered is the one that photos were shrunk for; if not, the cache becomes stale.

        Args:
            fingerprint: of the model that answered, if the answer says so.
        """
        known = self._known.fingerprint if self._known else None
        if known is None or fingerprint in (None, known):
            return True
        self._known = None
        return False

    def encode(self, photos: Sequence[Photo]) -> list[EncodedPhoto]:
        """The photos as they are sent; raises as `encode_photo`."""
        known = self._known
        return [encode_photo(photo, known.preprocessing if known else None) for photo in photos]


def _preprocessing_of(info: ServerInfo) -> Preprocessing:
    if info.preprocessing is not None:
        return info.preprocessing
    # An older server does not say; most serve the bundle we ship.
    from retrieval.bundle import BundleManifest, default_bundle_folder

    shipped = BundleManifest.read(default_bundle_folder(), BundleError)
    if shipped.fingerprint == info.model.fingerprint:
        return shipped.preprocessing
    raise ServerError(
        f"the server does not say how its model {info.model.name} sees photos",
        remedy='Give the preprocessing of its bundle instead of resize="model", or do not resize',
        code="preprocessing_unknown",
    )
