"""Small photos with the EXIF tags a test asks for."""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pillow_heif
from PIL import Image
from PIL.ExifTags import GPS, IFD, Base
from PIL.TiffImagePlugin import IFDRational

NOTHING = IFDRational(0, 0)


def sexagesimal(degrees: float) -> tuple[IFDRational, IFDRational, IFDRational]:
    """Degrees, minutes and seconds as phones write them, to a hundred-thousandth of a second."""
    seconds = Fraction(abs(degrees)).limit_denominator(10**12) * 3600
    whole, rest = divmod(seconds, 60)
    hours, minutes = divmod(whole, 60)
    return IFDRational(int(hours), 1), IFDRational(int(minutes), 1), IFDRational(round(rest * 100_000), 100_000)


def gps_tags(lat: float, lon: float, **further: Any) -> dict[int, Any]:
    """The GPS tags of a position; further ones by their name in PIL.ExifTags.GPS."""
    return {
        GPS.GPSLatitudeRef: "S" if lat < 0 else "N",
        GPS.GPSLatitude: sexagesimal(lat),
        GPS.GPSLongitudeRef: "W" if lon < 0 else "E",
        GPS.GPSLongitude: sexagesimal(lon),
    } | {GPS[name]: value for name, value in further.items()}


def exif_of(gps: Mapping[int, Any] | None = None, details: Mapping[str, Any] | None = None) -> Image.Exif:
    """An EXIF block of GPS tags, and of details by their name in PIL.ExifTags.Base."""
    exif = Image.Exif()
    exif[Base.Model] = "Test"
    if gps is not None:
        exif.get_ifd(IFD.GPSInfo).update(gps)
    exif.get_ifd(IFD.Exif).update({Base[name]: value for name, value in (details or {}).items()})
    return exif


def write_photo(
    path: Path, gps: Mapping[int, Any] | None = None, details: Mapping[str, Any] | None = None, size: int = 16
) -> Path:
    """Write a photo in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (size, size), (90, 120, 60))
    block = exif_of(gps, details).tobytes()
    if path.suffix.lower() in (".heic", ".heif"):
        pillow_heif.from_pillow(image).save(path, exif=block)
    else:
        image.save(path, exif=block)
    return path
