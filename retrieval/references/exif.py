"""Folders of photos that carry their position in their EXIF, such as those of a phone; pixels are never decoded.

Tags are those of Exif 2.32 (CIPA DC-008-2019, sections 4.6.5 and 4.6.6).
"""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Final

import pillow_heif
from PIL import Image
from PIL.ExifTags import GPS, IFD, Base

from retrieval.errors import ImageError
from retrieval.geo import Position
from retrieval.images import ImageFormat, open_photo, sniff_format
from retrieval.references.reader import FolderReader, ReaderOptions, UnusablePhotoError, relative_id, subfolder_session
from retrieval.references.reference import Reference

_HEAD_BYTES: Final = 32
_PNG_SIGNATURE_BYTES: Final = 8
_WEBP_HEADER_BYTES: Final = 12
_BELOW_SEA_LEVEL: Final = 1


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
            for directory in (IFD.GPSInfo, IFD.Exif):  # a damaged block raises here, and not when a tag is wanted
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


@dataclass(frozen=True, slots=True)
class ExifRecord:
    """What the tags say. The fields are those of `Reference`; metadata may hold ``heading_reference`` (``magnetic``),
    ``position_error_m`` and ``camera``.
    """

    position: Position
    altitude_m: float | None
    heading_deg: float | None
    captured_at: datetime | None
    metadata: Mapping[str, str]


def read_exif_record(exif: Image.Exif) -> ExifRecord:
    """Read position, altitude, heading and time.

    A rational with a zero denominator counts as missing. A magnetic heading is given as it is, and the metadata say so.
    The time is DateTimeOriginal with its offset; without that tag the UTC time of the GPS.

    Raises:
        UnusablePhotoError: there is no position, only half of one, or an impossible one.
    """
    gps = exif.get_ifd(IFD.GPSInfo)
    details = exif.get_ifd(IFD.Exif)
    position = _position(gps)
    heading = _number(gps.get(GPS.GPSImgDirection))
    if heading is not None and not -360.0 <= heading <= 360.0:
        heading = None
    metadata: dict[str, str] = {}
    if heading is not None and _letter(gps.get(GPS.GPSImgDirectionRef)) == "M":
        metadata["heading_reference"] = "magnetic"
    error_m = _number(gps.get(GPS.GPSHPositioningError))
    if error_m is not None:
        metadata["position_error_m"] = f"{error_m:g}"
    camera = " ".join(filter(None, (_string(exif.get(tag)) for tag in (Base.Make, Base.Model))))
    if camera:
        metadata["camera"] = camera
    return ExifRecord(
        position=position,
        altitude_m=_altitude(gps),
        heading_deg=None if heading is None else heading % 360.0,
        captured_at=_captured_at(details) or _gps_time(gps),
        metadata=metadata,
    )


def _position(gps: Mapping[int, Any]) -> Position:
    if GPS.GPSLatitude not in gps and GPS.GPSLongitude not in gps:
        raise UnusablePhotoError("no GPS position in its EXIF")
    lat = _angle(gps, GPS.GPSLatitude, GPS.GPSLatitudeRef, "NS", "latitude")
    lon = _angle(gps, GPS.GPSLongitude, GPS.GPSLongitudeRef, "EW", "longitude")
    if lat == 0.0 and lon == 0.0:
        raise UnusablePhotoError("its GPS position is 0, 0, which cameras write when they have none")
    if not (-90.0 <= lat <= 90.0 and -180.0 <= lon <= 180.0):
        raise UnusablePhotoError(f"its GPS position {lat:g}, {lon:g} is outside the Earth")
    return Position(lat, lon)


def _angle(gps: Mapping[int, Any], tag: int, ref_tag: int, refs: str, name: str) -> float:
    """Degrees, minutes and seconds, of which the last may be left out, with the sign of the reference letter."""
    value = gps.get(tag)
    parts = value if isinstance(value, (tuple, list)) else (value,)
    numbers = [_number(part) for part in parts[:3]]
    if not numbers or any(number is None for number in numbers):
        raise UnusablePhotoError(f"its GPS {name} is empty")
    ref = _letter(gps.get(ref_tag))
    if not ref or ref not in refs:
        raise UnusablePhotoError(f"its GPS {name} does not say {' or '.join(refs)}")
    degrees = sum(number / 60.0**power for power, number in enumerate(numbers) if number is not None)
    return -degrees if ref == refs[1] else degrees


def _altitude(gps: Mapping[int, Any]) -> float | None:
    altitude = _number(gps.get(GPS.GPSAltitude))
    ref = gps.get(GPS.GPSAltitudeRef)
    if isinstance(ref, (bytes, tuple)):
        ref = ref[0] if ref else 0
    return -altitude if altitude is not None and ref == _BELOW_SEA_LEVEL else altitude


def _number(value: object) -> float | None:
    """A rational or number as a finite float, else None."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) else None


def _string(value: object) -> str:
    text = value.decode("ascii", "ignore") if isinstance(value, bytes) else value
    return text.strip("\0 \t\r\n") if isinstance(text, str) else ""


def _letter(value: object) -> str:
    return _string(value)[:1].upper()


def _captured_at(details: Mapping[int, Any]) -> datetime | None:
    text = _string(details.get(Base.DateTimeOriginal))
    try:
        local = datetime.strptime(text[:19], "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None
    fraction = _string(details.get(Base.SubsecTimeOriginal))
    if fraction.isdecimal():
        local = local.replace(microsecond=int(fraction[:6].ljust(6, "0")))
    offset = _offset(details.get(Base.OffsetTimeOriginal)) or _offset(details.get(Base.OffsetTime))
    return local.replace(tzinfo=offset)


def _offset(value: object) -> timezone | None:
    text = _string(value)
    if text == "Z":
        return UTC
    try:
        sign, hours, minutes = {"+": 1, "-": -1}[text[0]], int(text[1:3]), int(text[4:6])
        return timezone(sign * timedelta(hours=hours, minutes=minutes))
    except (LookupError, ValueError):
        return None


def _gps_time(gps: Mapping[int, Any]) -> datetime | None:
    date, time = _string(gps.get(GPS.GPSDateStamp)), gps.get(GPS.GPSTimeStamp)
    if not isinstance(time, (tuple, list)) or len(time) != 3:
        return None
    numbers = [_number(part) for part in time]
    try:
        day = datetime.strptime(date, "%Y:%m:%d").replace(tzinfo=UTC)
        hours, minutes, seconds = (float(number) for number in numbers if number is not None)
        return day + timedelta(hours=hours, minutes=minutes, seconds=seconds)
    except (ValueError, OverflowError):
        return None


class ExifOptions(ReaderOptions):
    """Options of `exif:`; the common ones only."""


class ExifFolder(FolderReader[ExifOptions]):
    """`exif:FOLDER`: JPEG, PNG, WebP and HEIC photos, subfolders included.

    The session of a photo is its subfolder. Photos without a usable position are left out and stand in `skipped`. Only
    headers are read.

    Raises:
        ReferenceDataError: no such folder; when iterated: no photo in it, or none with a position.
    """

    kind: ClassVar[str] = "exif"
    options_type = ExifOptions
    nothing_remedy = "Give a folder of JPEG, PNG, WebP or HEIC photos; subfolders are searched too"
    unusable_remedy = (
        "Take photos with location switched on in the camera, copy them without an app that removes it, or "
        "list their positions in a CSV with the columns path, lat, lon"
    )

    def _reference(self, path: Path) -> Reference:
        record = _read_record(path)
        return Reference(
            id=relative_id(path, self.root),
            path=path,
            position=record.position,
            altitude_m=record.altitude_m,
            heading_deg=record.heading_deg,
            captured_at=record.captured_at,
            session=subfolder_session(path, self.root),
            metadata=record.metadata,
        )


def _read_record(path: Path) -> ExifRecord:
    try:
        with warnings.catch_warnings(record=True) as damage:
            warnings.simplefilter("always")  # Pillow warns of a damaged block, and reads of it what it can
            exif = read_exif(path)
        return read_exif_record(exif)
    except UnusablePhotoError as error:
        raise UnusablePhotoError(f"{error} (its EXIF is damaged)" if damage else str(error)) from None
    except ImageError as error:
        raise UnusablePhotoError(error.what) from error
    except OSError as error:
        raise UnusablePhotoError(f"the file cannot be read ({error.strerror})") from error
