"""The findings about a reference database, for people and as JSON; its coverage of the ground; its map."""

import contextlib
import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import BaseModel, ConfigDict

from retrieval.errors import StorageError, counted
from retrieval.geo import EARTH_RADIUS_M, Float64Array, longitude_bounds, unit_vectors
from retrieval.references.reference import Reference, ReferenceSource
from sightfix.console import distance_text
from sightfix.inspection.survey import IdenticalFiles, Survey

CELL_M: Final = 25.0
_SAMPLE: Final = 2000
_FIRST_WINDOW: Final = 32
_SQUARE_METRES_A_HECTARE: Final = 10_000.0
_EXAMPLES: Final = 5
_SAME_PLACE_M: Final = 25.0
_LONELY_M: Final = 1000.0
_NULL_ISLAND_DEG: Final = 0.001


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BoundsReport(_Model):
    """Degrees; lon_min > lon_max where the box crosses the antimeridian."""

    lat_min: float
    lat_max: float
    lon_min: float
    lon_max: float


class CoverageReport(_Model):
    """How the references cover the ground.

    Attributes:
        bounds: None for data sets that give plane metres only.
        east_west_m, north_south_m: size of the box around all references.
        distinct_positions: how many different positions there are.
        spacing_m: median distance from a position to the nearest other one; None with a single position.
        spacing_sample: of how many positions that median is.
        covered_hectares: area of all squares of 25 m that hold a reference.
        references_per_hectare: of the covered area.
    """

    bounds: BoundsReport | None
    east_west_m: float
    north_south_m: float
    distinct_positions: int
    spacing_m: float | None
    spacing_sample: int
    covered_hectares: float
    references_per_hectare: float


class SessionReport(_Model):
    """One session: count, and the times of its first and last photo."""

    name: str | None
    count: int
    first: datetime | None
    last: datetime | None


class DuplicatesReport(_Model):
    """What is there more than once.

    Attributes:
        repeated_ids: references whose id came before, and the first few such ids.
        sharing_a_position: references at exactly the position of another one.
        most_on_one_position: the most references at one position.
        identical_files: groups of references whose files are equal; None if it was not asked for.
    """

    repeated_ids: int
    repeated_ids_examples: tuple[str, ...]
    sharing_a_position: int
    most_on_one_position: int
    identical_files: tuple[tuple[str, ...], ...] | None


class LeftOutReport(_Model):
    """Photos that were left out: how many, reason → how many, and the first few as path and reason."""

    count: int
    reasons: dict[str, int]
    examples: tuple[tuple[str, str], ...]


class InspectionReport(_Model):
    """Everything that `sightfix inspect` finds; the lists are complete but for `examples`."""

    spec: str
    root: str
    count: int
    coverage: CoverageReport | None
    sessions: tuple[SessionReport, ...]
    missing: dict[str, int]
    duplicates: DuplicatesReport
    left_out: LeftOutReport
    notes: tuple[str, ...]


def report_on(source: ReferenceSource, survey: Survey, identical: IdenticalFiles | None = None) -> InspectionReport:
    """The findings of a survey.

    Args:
        source: the reference database.
        survey: of it.
        identical: what comparing the files found, if that was asked for.
    """
    coverage = measure_coverage(survey)
    left_out = [*survey.skipped, *(identical.unreadable if identical else ())]
    return InspectionReport(
        spec=source.spec,
        root=str(source.root),
        count=len(survey),
        coverage=coverage.report if coverage else None,
        sessions=tuple(
            SessionReport(name=s.name, count=s.count, first=s.first, last=s.last)
            for s in sorted(survey.sessions, key=lambda s: (s.name is None, s.name))
        ),
        missing=dict(survey.without),
        duplicates=DuplicatesReport(
            repeated_ids=len(survey.repeated_ids),
            repeated_ids_examples=survey.repeated_ids[:_EXAMPLES],
            sharing_a_position=coverage.shared if coverage else 0,
            most_on_one_position=coverage.most_on_one if coverage else 0,
            identical_files=None if identical is None else identical.groups,
        ),
        left_out=LeftOutReport(
            count=len(left_out),
            reasons=dict(Counter(photo.reason for photo in left_out).most_common()),
            examples=tuple((str(photo.path), photo.reason) for photo in left_out[:_EXAMPLES]),
        ),
        notes=tuple(_notes(survey, coverage)),
    )


def _notes(survey: Survey, coverage: "Coverage | None") -> list[str]:
    """What these findings mean, one sentence or two each."""
    notes, total = [], len(survey)
    if not survey.has_positions:
        notes.append(
            "There are plane metres but no latitudes and longitudes: enough to train and evaluate, not to index. "
            "For UTM names, give the zone: utm:FOLDER?zone=33N."
        )
    elif survey.without["position"]:
        notes.append(f"{counted(survey.without['position'], 'reference')} without a position, which cannot be indexed.")
    at_zero = int(((np.abs(survey.lat) < _NULL_ISLAND_DEG) & (np.abs(survey.lon) < _NULL_ISLAND_DEG)).sum())
    if at_zero:
        notes.append(
            f"{counted(at_zero, 'reference')} at 0, 0 in the Atlantic, which usually means that the GPS had no fix."
        )
    if coverage is not None and coverage.report.spacing_m is not None:
        notes += _spacing_notes(coverage, coverage.report.spacing_m)
    if survey.without["heading"] == total:
        notes.append("No headings: photos from one position in opposite directions count as the same place.")
    if survey.magnetic:
        notes.append(f"{counted(survey.magnetic, 'magnetic heading')}: true north differs by the local declination.")
    if survey.without["session"] == total:
        notes.append(
            "No sessions: put every walk or drive in a subfolder of its own, or fill a session column, to be able to "
            "evaluate with a walk that is not in the database."
        )
    return notes


def _spacing_notes(coverage: "Coverage", spacing_m: float) -> list[str]:
    notes = []
    if spacing_m > _SAME_PLACE_M:
        notes.append(
            f"Half of the positions lie more than {distance_text(spacing_m)} from the nearest other: a photo taken "
            f"between them has no reference within {_SAME_PLACE_M:.0f} m."
        )
    lonely = int((coverage.nearest_m > _LONELY_M).sum())
    if lonely and spacing_m < _LONELY_M:
        sampled = len(coverage.nearest_m) < coverage.report.distinct_positions
        of = f", of {len(coverage.nearest_m):,} that were measured" if sampled else ""
        lie = counted(lonely, "position lies", "positions lie")
        notes.append(f"{lie} more than 1 km from every other{of}: look for wrong GPS fixes on the map.")
    return notes


@dataclass(frozen=True, slots=True)
class Coverage:
    """The ground that the references cover, and what a report says elsewhere.

    Attributes:
        report: for the report.
        shared: how many references share their position with another.
        most_on_one: the most references on one position.
        nearest_m: distance of each measured position to the nearest other one; a sample of at most 2000.
    """

    report: CoverageReport
    shared: int
    most_on_one: int
    nearest_m: Float64Array


def measure_coverage(survey: Survey) -> Coverage | None:
    """Measure a survey by latitude and longitude, or in its own plane where it has none; None without either."""
    on_earth = survey.has_positions
    first, second = (survey.lat, survey.lon) if on_earth else (survey.north, survey.east)
    known = np.isfinite(first)
    if not known.any():
        return None
    spots, counts = np.unique(first[known] + 1j * second[known], return_counts=True)
    north, east = spots.real, spots.imag
    bounds = None
    if on_earth:
        west, east_edge = longitude_bounds(east)
        bounds = BoundsReport(lat_min=float(north.min()), lat_max=float(north.max()), lon_min=west, lon_max=east_edge)
        middle = math.radians((bounds.lat_min + bounds.lat_max) / 2)
        east_west = math.radians((east_edge - west) % 360.0) * math.cos(middle) * EARTH_RADIUS_M
        north_south = math.radians(bounds.lat_max - bounds.lat_min) * EARTH_RADIUS_M
        points = unit_vectors(north, east) * EARTH_RADIUS_M
    else:
        east_west, north_south = float(np.ptp(east)), float(np.ptp(north))
        points = np.stack([east, north], axis=1)
    nearest = nearest_other_m(points)
    hectares = _covered_m2(north, east, on_earth) / _SQUARE_METRES_A_HECTARE
    report = CoverageReport(
        bounds=bounds,
        east_west_m=east_west,
        north_south_m=north_south,
        distinct_positions=len(spots),
        spacing_m=float(np.median(nearest)) if nearest.size else None,
        spacing_sample=len(nearest),
        covered_hectares=hectares,
        references_per_hectare=int(known.sum()) / hectares,
    )
    return Coverage(report, int(counts[counts > 1].sum()), int(counts.max()), nearest)


def nearest_other_m(points: Float64Array, sample: int = _SAMPLE) -> Float64Array:
    """The exact distance from points to their nearest other point.

    Points are sorted along their widest axis; the nearest cannot lie further along it than the best one found so far.

    Args:
        points: (N, d) float64 metres, all different.
        sample: look at so many, drawn with a fixed seed.

    Returns:
        (min(N, sample),) float64 metres; empty for fewer than two points.
    """
    if len(points) < 2:
        return np.empty(0)
    axis = int(np.argmax(np.ptp(points, axis=0)))
    points = points[np.argsort(points[:, axis])]
    along = points[:, axis]
    chosen = np.random.default_rng(0).permutation(len(points))[:sample]
    nearest = np.empty(len(chosen))
    for place, row in enumerate(chosen):
        low, high = max(0, row - _FIRST_WINDOW), row + _FIRST_WINDOW + 1
        best = _nearest_in(points, int(row), low, high)
        low, high = np.searchsorted(along, (along[row] - best, along[row] + best), side="left")
        nearest[place] = _nearest_in(points, int(row), int(low), int(high) + 1)
    return nearest


def _nearest_in(points: Float64Array, row: int, low: int, high: int) -> float:
    low, high = min(low, max(0, row - 1)), max(high, row + 2)
    squared = np.square(points[low:high] - points[row]).sum(axis=1)
    squared[row - low] = np.inf
    return float(np.sqrt(squared.min()))


def _covered_m2(north: Float64Array, east: Float64Array, on_earth: bool) -> float:
    if on_earth:
        metres_a_degree = math.radians(1.0) * EARTH_RADIUS_M
        rows = np.floor(north * metres_a_degree / CELL_M)
        # A row of squares has the width of its middle latitude.
        middle = np.radians((rows + 0.5) * CELL_M / metres_a_degree)
        columns = np.floor(east * metres_a_degree * np.cos(middle) / CELL_M)
    else:
        rows, columns = np.floor(north / CELL_M), np.floor(east / CELL_M)
    return len(np.unique(rows + 1j * columns)) * CELL_M**2


def write_geojson(references: Iterable[Reference], path: Path) -> int:
    """Write one point a reference, row by row; references without a position get no geometry, as the RFC has it.

    The file appears when it is complete.

    Returns:
        How many references were written.

    Raises:
        StorageError: the file cannot be written.
    """
    draft = path.with_name(f".{path.name}.part")
    count = 0
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write('{"type": "FeatureCollection", "features": [\n')
            for reference in references:
                file.write(",\n" if count else "")
                json.dump(_feature(reference), file, ensure_ascii=False)
                count += 1
            file.write("\n]}\n")
        draft.replace(path)
    except OSError as error:
        raise StorageError(
            f"the map cannot be written ({error.strerror})", where=str(path), remedy="Give a file in a writable folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
    return count


def _feature(reference: Reference) -> dict[str, object]:
    position = reference.position
    geometry = None
    if position is not None:
        altitude = [] if reference.altitude_m is None else [reference.altitude_m]
        geometry = {"type": "Point", "coordinates": [position.lon, position.lat, *altitude]}
    properties = {
        "path": str(reference.path),
        "heading": reference.heading_deg,
        "captured_at": reference.captured_at.isoformat() if reference.captured_at else None,
        "session": reference.session,
    }
    return {"type": "Feature", "id": reference.id, "geometry": geometry, "properties": properties}
