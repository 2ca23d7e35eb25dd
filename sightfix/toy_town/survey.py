"""The survey of the town: mapping drives by day, and people who take photos later, by day and at dusk."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ExifTags import GPS, IFD, Base
from PIL.TiffImagePlugin import IFDRational

from retrieval.artefact import replace_file, storage_errors
from retrieval.errors import ParameterError
from retrieval.geo import Position
from retrieval.machine import read_ahead
from sightfix.toy_town.camera import Camera
from sightfix.toy_town.plan import LANE_M, generator
from sightfix.toy_town.town import ToyTown

_Part = Literal["references", "queries"]
_SPACING_M: Final = 10.5

# Written into the stamp: photos of another version are drawn anew.
_VERSION: Final = 2
_VIEWS_DEG: Final = (0.0, 40.0)
_STAMP_NAME: Final = "survey.json"
# No photo is taken right in front of the house that ends a street.
_END_M: Final = 4.0
# Block and street, as the plan draws them on average.
_MEAN_COLUMN_M: Final = 72.0
_MEAN_ROW_M: Final = 63.0


@dataclass(frozen=True, slots=True)
class PlannedPhoto:
    """A photo that the survey takes.

    Attributes:
        path: relative to the survey's folder.
        position: exactly where.
        camera: how it stands and looks.
        light: ``day`` or ``dusk``.
        moment: which cars pass.
        captured_at: made up, with an offset from UTC.
        session: the drive or walk.
    """

    path: str
    position: Position
    camera: Camera
    light: str
    moment: int
    captured_at: datetime
    session: str


@dataclass(frozen=True, slots=True)
class Survey:
    """Where a written survey lies."""

    folder: Path
    references_csv: Path
    queries_csv: Path


def town_for(references: int, seed: int = 0) -> ToyTown:
    """The smallest town with room for so many references at the usual spacing.

    Raises:
        ParameterError: not even 60 × 60 blocks have.
    """
    for side in range(2, 61):
        for columns in (side, side + 1):
            if columns <= 60 and _room(columns, side) >= references:
                return ToyTown(seed, columns=columns, rows=side)
    raise ParameterError(f"no toy town has room for {references} references", remedy=f"Ask for at most {_room(60, 60)}")


def _room(columns: int, rows: int) -> int:
    """About how many references a town has room for: both ways, every view."""
    metres = (columns + 1) * rows * _MEAN_ROW_M + (rows + 1) * columns * _MEAN_COLUMN_M
    return int(metres / _SPACING_M) * 2 * len(_VIEWS_DEG)


def plan_references(town: ToyTown, count: int) -> list[PlannedPhoto]:
    """At least `count` photos of a mapping drive by day, evenly along all streets, both ways, ahead and to the right.

    Raises:
        ParameterError: count below 1.
    """
    _check_count(count)
    spacing = sum(street.length_m - 2 * _END_M for street in town.streets) * 2 * len(_VIEWS_DEG) / count
    photos: list[PlannedPhoto] = []
    for drive, street in enumerate(town.streets):
        stops = max(1, math.ceil((street.length_m - 2 * _END_M) / spacing))
        for reverse in (False, True):
            for stop in range(stops):
                along = _END_M + (stop + 0.5) * (street.length_m - 2 * _END_M) / stops
                east, north = street.at(along, -LANE_M if reverse else LANE_M)
                for view in _VIEWS_DEG:
                    heading = (street.heading_deg + (180.0 if reverse else 0.0) + view) % 360.0
                    camera = Camera(east, north, 2.2, heading, pitch_deg=4.0, fov_deg=72.0)
                    started = datetime(2026, 5, 4, 10, tzinfo=UTC) + timedelta(minutes=12 * drive)
                    photos.append(
                        _planned(town, "references", len(photos), camera, "day", started, f"drive-{drive + 1}-day")
                    )
    return photos


def plan_queries(town: ToyTown, count: int) -> list[PlannedPhoto]:
    """Photos of people on foot: off the lane, turned, at other heights and fields of view; every second one at dusk.

    Raises:
        ParameterError: count below 1.
    """
    _check_count(count)
    lengths = np.array([street.length_m for street in town.streets])
    photos = []
    for number in range(count):
        rng = generator(town.seed, "query", number)
        street = town.streets[int(rng.choice(len(lengths), p=lengths / lengths.sum()))]
        reverse, view = bool(rng.integers(2)), float(rng.choice(_VIEWS_DEG))
        right = (LANE_M + rng.uniform(1.0, 3.2)) * (-1 if reverse else 1)
        east, north = street.at(float(rng.uniform(8.0, street.length_m - 8.0)), float(right))
        camera = Camera(
            east,
            north,
            float(rng.uniform(1.5, 1.8)),
            (street.heading_deg + (180.0 if reverse else 0.0) + view + float(rng.uniform(-15, 15))) % 360.0,
            pitch_deg=float(rng.uniform(0, 8)),
            roll_deg=float(rng.normal(0, 1.2)),
            fov_deg=float(rng.uniform(60, 76)),
        )
        light = "dusk" if number % 2 else "day"
        started = datetime(2026, 9, 12 + number % 5, 20 if number % 2 else 11, tzinfo=UTC)
        photos.append(_planned(town, "queries", number, camera, light, started, f"walk-{number % 5 + 1}-{light}"))
    return photos


def photographs(
    town: ToyTown, photos: list[PlannedPhoto], size: tuple[int, int] = (320, 240)
) -> Iterator[tuple[PlannedPhoto, NDArray[np.uint8]]]:
    """Take photos without writing any: (plan, (height, width, 3) uint8 RGB), in order, on every core."""

    def take(photo: PlannedPhoto) -> NDArray[np.uint8]:
        return town.photograph(photo.camera, size, photo.light, photo.moment)

    return zip(photos, read_ahead(take, photos), strict=True)


def write_survey(
    town: ToyTown,
    folder: Path,
    *,
    references: int = 300,
    queries: int = 60,
    size: tuple[int, int] = (320, 240),
    on_progress: Callable[[int], None] | None = None,
) -> Survey:
    """Write photos as JPEG with EXIF GPS, and their exact positions as CSV; a finished survey is used again.

    Args:
        town: what to photograph.
        folder: gets ``references/``, ``queries/``, ``references.csv``, ``queries.csv`` and a stamp.
        references, queries: how many at least.
        size: width and height in pixels.
        on_progress: called with the number of photos done since the last call.

    Raises:
        ParameterError: a count below 1.
        StorageError: the disk refuses.
    """
    survey = Survey(folder, folder / "references.csv", folder / "queries.csv")
    stamp = json.dumps(
        {"version": _VERSION, "seed": town.seed, "blocks": [town.columns, town.rows], "size": list(size),
         "references": references, "queries": queries},
        indent=2,
    )  # fmt: skip
    parts: dict[_Part, list[PlannedPhoto]] = {
        "references": plan_references(town, references),
        "queries": plan_queries(town, queries),
    }
    with storage_errors(folder):
        if _is_finished(folder, stamp):
            return survey
        (folder / _STAMP_NAME).unlink(missing_ok=True)
        for part, photos in parts.items():
            (folder / part).mkdir(parents=True, exist_ok=True)
            for photo, image in photographs(town, photos, size):
                Image.fromarray(image).save(folder / photo.path, "JPEG", quality=90, exif=_exif(photo))
                if on_progress:
                    on_progress(1)
            replace_file(folder / f"{part}.csv", _table(photos))
        replace_file(folder / _STAMP_NAME, stamp.encode())
    return survey


def _planned(
    town: ToyTown, part: _Part, number: int, camera: Camera, light: str, started: datetime, session: str
) -> PlannedPhoto:
    return PlannedPhoto(
        path=f"{part}/{number:05d}.jpg",
        position=town.position(camera.east, camera.north),
        camera=camera,
        light=light,
        moment=number * 2 + (part == "queries"),
        captured_at=started + timedelta(seconds=3 * number),
        session=session,
    )


def _check_count(count: int) -> None:
    if count < 1:
        raise ParameterError(f"a survey of {count} photos is none", remedy="Ask for 1 or more")


def _is_finished(folder: Path, stamp: str) -> bool:
    try:
        return (folder / _STAMP_NAME).read_text() == stamp
    except OSError:
        return False


def _exif(photo: PlannedPhoto) -> Image.Exif:
    position = photo.position
    exif = Image.Exif()
    exif[Base.Make], exif[Base.Model] = "sightfix", "toy town"
    time = photo.captured_at.strftime("%Y:%m:%d %H:%M:%S")
    exif.get_ifd(IFD.Exif).update({Base.DateTimeOriginal: time, Base.OffsetTimeOriginal: "+00:00"})
    exif.get_ifd(IFD.GPSInfo).update(
        {
            GPS.GPSLatitudeRef: "N" if position.lat >= 0 else "S",
            GPS.GPSLatitude: _degrees(position.lat),
            GPS.GPSLongitudeRef: "E" if position.lon >= 0 else "W",
            GPS.GPSLongitude: _degrees(position.lon),
            GPS.GPSImgDirectionRef: "T",
            GPS.GPSImgDirection: IFDRational(round(photo.camera.heading_deg, 2)),
        }
    )
    return exif


def _degrees(value: float) -> tuple[IFDRational, IFDRational, IFDRational]:
    minutes, seconds = divmod(abs(value) * 3600.0, 60.0)
    degrees, minutes = divmod(minutes, 60.0)
    return IFDRational(int(degrees)), IFDRational(int(minutes)), IFDRational(round(seconds, 5))


def _table(photos: list[PlannedPhoto]) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(("path", "lat", "lon", "heading", "captured_at", "session"))
    for photo in photos:
        position, heading = photo.position, photo.camera.heading_deg
        row = (f"{position.lat:.9f}", f"{position.lon:.9f}", f"{heading:.2f}", photo.captured_at.isoformat())
        writer.writerow((photo.path, *row, photo.session))
    return file.getvalue().encode()
