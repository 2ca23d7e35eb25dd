"""File names that carry a position: ``@UTM_east@UTM_north@zone@letter@lat@lon@…@.jpg``.

The format of VPR-datasets-downloader (Berton et al., Deep Visual Geo-localization Benchmark, CVPR 2022), in which
Pitts30k, Tokyo 24/7, MSLS, San Francisco, St Lucia, SVOX and others are kept. Any field after north may be empty.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Self

from retrieval.geo import Position

_FIELDS: Final = (
    "east",
    "north",
    "zone",
    "letter",
    "lat",
    "lon",
    "pano_id",
    "tile_num",
    "heading",
    "pitch",
    "roll",
    "height",
    "timestamp",
    "note",
)
_METADATA: Final = ("pano_id", "tile_num", "pitch", "roll", "height", "timestamp", "note")
_DAY: Final = re.compile(r"(\d{4})-?(\d\d)-?(\d\d)(?:[_T ](\d\d):?(\d\d)?:?(\d\d)?)?")


class AtNameError(ValueError):
    """A file name that is not of this format; the text says why, with the photo as its subject."""


@dataclass(frozen=True, slots=True)
class AtName:
    """What a file name says.

    Attributes:
        east, north: metres in the plane of the data set, UTM where there is a zone.
        zone: UTM zone, 1 to 60, or None.
        southern: hemisphere of the zone; None where the name does not say.
        position: as written, or None.
        heading_deg: in [0, 360), or None.
        captured_at: where at least the day is given.
        metadata: the further fields that are not empty, as text.
    """

    east: float
    north: float
    zone: int | None
    southern: bool | None
    position: Position | None
    heading_deg: float | None
    captured_at: datetime | None
    metadata: Mapping[str, str]

    @classmethod
    def parse(cls, name: str) -> Self:
        """Read the name of a file, with or without its suffix.

        Raises:
            AtNameError: it does not start with @east@north, or a number in it is none.
        """
        parts = name.split("@")
        if len(parts) < 4 or parts[0]:
            raise AtNameError("its name is not of the form @UTM_east@UTM_north@…@.jpg")
        texts = dict(zip(_FIELDS, parts[1:-1], strict=False))  # the last part is the suffix
        east, north = _number(texts, "east"), _number(texts, "north")
        if east is None or north is None:
            raise AtNameError("its name has no UTM_east or no UTM_north")
        letter = texts.get("letter", "").upper()
        heading = _number(texts, "heading")
        return cls(
            east=east,
            north=north,
            zone=_zone(texts),
            # The letter is a latitude band of 8 degrees, C to X: S lies north of the equator.
            southern=letter < "N" if letter else None,
            position=_position(texts),
            heading_deg=None if heading is None else heading % 360.0,
            captured_at=_captured_at(texts.get("timestamp", "")),
            metadata={field: text for field in _METADATA if (text := texts.get(field, ""))},
        )


def _number(texts: Mapping[str, str], field: str) -> float | None:
    text = texts.get(field, "")
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or "_" in text:
        raise AtNameError(f"the {field} in its name is not a number: '{text}'")
    return number


def _zone(texts: Mapping[str, str]) -> int | None:
    number = _number(texts, "zone")
    if number is None:
        return None
    if number not in range(1, 61):
        raise AtNameError(f"there is no UTM zone {number:g}")
    return int(number)


def _position(texts: Mapping[str, str]) -> Position | None:
    lat, lon = _number(texts, "lat"), _number(texts, "lon")
    if lat is None or lon is None:
        return None
    if not (-90.0 <= lat <= 90.0 and -180.0 <= lon <= 180.0):
        raise AtNameError(f"the position {lat:g}, {lon:g} in its name is outside the Earth")
    return Position(lat, lon)


def _captured_at(text: str) -> datetime | None:
    match = _DAY.fullmatch(text)
    if match is None:
        return None
    try:
        return datetime(*(int(part) for part in match.groups() if part is not None))  # type: ignore[arg-type]
    except ValueError:
        return None
