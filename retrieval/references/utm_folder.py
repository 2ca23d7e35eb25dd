"""A folder whose file names carry UTM coordinates, as VPR-datasets-downloader writes them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Final

from pydantic import BeforeValidator

from retrieval.errors import ParameterError, ReferenceDataError
from retrieval.geo import Position, utm_to_wgs84
from retrieval.references.at_name import AtName, AtNameError
from retrieval.references.photo_folder import count_reasons, relative_id, subfolder_session, walk_photos
from retrieval.references.reader import Reader, ReaderOptions, Row, check_folder
from retrieval.references.reference import Reference, SkippedPhoto

_ZONE: Final = re.compile(r"(\d{1,2})([NS])", re.IGNORECASE)


def _zone(value: object) -> object:
    match = _ZONE.fullmatch(value) if isinstance(value, str) else None
    if isinstance(value, str) and (match is None or not 1 <= int(match[1]) <= 60):
        raise ParameterError(
            f"option zone={value} of the reader utm is not a UTM zone",
            remedy="Give the number and the hemisphere, N or S, such as zone=33N",
        )
    return (int(match[1]), match[2].upper() == "S") if match else value


class UtmOptions(ReaderOptions):
    """Options of `utm:`.

    Attributes:
        zone: UTM zone and hemisphere (N or S) of names that do not give them, such as ``33N``.
    """

    zone: Annotated[tuple[int, bool] | None, BeforeValidator(_zone)] = None


class UtmFolder(Reader[UtmOptions]):
    """`utm:FOLDER`: photos named ``@UTM_east@UTM_north@zone@letter@lat@lon@…@.jpg``, subfolders included.

    `plane_m` is (east, north). The position is the latitude and longitude of the name; else it is worked out from the
    UTM zone of the name or of the options; else there is none. The session is the subfolder.

    Raises:
        ReferenceDataError: no such folder; when iterated: no photo with such a name.
    """

    kind: ClassVar[str] = "utm"

    def __init__(self, location: Path, options: UtmOptions | None = None, spec: str | None = None) -> None:
        check_folder(location)
        super().__init__(location, options or UtmOptions(), location, spec)

    def _read(self, skipped: list[SkippedPhoto]) -> Iterator[tuple[Row | None, Reference]]:
        for path in walk_photos(self.location, skipped):
            try:
                name = AtName.parse(path.name)
                position = name.position or self._from_utm(name)
            except AtNameError as error:
                skipped.append(SkippedPhoto(path, str(error)))
                continue
            yield (
                None,
                Reference(
                    id=relative_id(path, self.root),
                    path=path,
                    position=position,
                    plane_m=(name.east, name.north),
                    heading_deg=name.heading_deg,
                    captured_at=name.captured_at,
                    session=subfolder_session(path, self.root),
                    metadata=name.metadata,
                ),
            )

    def _from_utm(self, name: AtName) -> Position | None:
        given_zone, given_southern = self.options.zone or (None, None)
        zone = name.zone if name.zone is not None else given_zone
        southern = name.southern if name.southern is not None else given_southern
        if zone is None or southern is None:
            return None
        lat, lon = (float(degrees) for degrees in utm_to_wgs84(name.east, name.north, zone, southern))
        if not (-90.0 <= lat <= 90.0 and -180.0 <= lon <= 180.0):
            raise AtNameError(f"there is no point {name.east:g} east, {name.north:g} north in UTM zone {zone}")
        return Position(lat, lon)

    def _count(self) -> int:
        return sum(1 for _ in walk_photos(self.location))

    def _nothing_read(self, skipped: list[SkippedPhoto]) -> ReferenceDataError:
        found = f"none of {len(skipped)} photos can be used: {count_reasons(skipped)}"
        return ReferenceDataError(
            found if skipped else "there is no photo in this folder",
            where=str(self.location),
            remedy="Give a folder of photos named @UTM_east@UTM_north@zone@letter@lat@lon@…@.jpg",
        )
