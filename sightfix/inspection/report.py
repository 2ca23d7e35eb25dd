"""The findings about a reference database, as numbers for machines and for `inspection.printing`."""

from collections import Counter
from datetime import datetime
from typing import Final

import numpy as np
from pydantic import BaseModel, ConfigDict

from retrieval.references.reference import ReferenceSource
from sightfix.inspection.coverage import Coverage, measure_coverage
from sightfix.inspection.identical_files import IdenticalFiles
from sightfix.inspection.survey import Survey
from sightfix.inspection.wording import counted

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
    """Draw the findings from a survey.

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
        coverage=None if coverage is None else _coverage_report(coverage, survey),
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


def _coverage_report(coverage: Coverage, survey: Survey) -> CoverageReport:
    bounds = None
    corners = (coverage.lat_min, coverage.lat_max, coverage.lon_min, coverage.lon_max)
    if survey.has_positions:
        bounds = BoundsReport(**dict(zip(BoundsReport.model_fields, corners, strict=True)))
    placed = int(np.isfinite(survey.lat if survey.has_positions else survey.north).sum())
    return CoverageReport(
        bounds=bounds,
        east_west_m=coverage.east_west_m,
        north_south_m=coverage.north_south_m,
        distinct_positions=coverage.distinct,
        spacing_m=coverage.spacing_m,
        spacing_sample=len(coverage.nearest_m),
        covered_hectares=coverage.covered_hectares,
        references_per_hectare=placed / coverage.covered_hectares,
    )


def _notes(survey: Survey, coverage: Coverage | None) -> list[str]:
    """What a newcomer should know about these findings, one sentence or two each."""
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
    if coverage is not None and coverage.spacing_m is not None:
        notes += _spacing_notes(coverage, coverage.spacing_m)
    if survey.without["heading"] == total:
        notes.append("No headings: photos that look opposite ways from one spot count as the same place.")
    if survey.magnetic:
        notes.append(f"Magnetic headings: {survey.magnetic} differ from true north by the local declination.")
    if survey.without["session"] == total:
        notes.append(
            "No sessions: put every walk or drive in a subfolder of its own, or fill a session column, to be able to "
            "evaluate with a walk that is not in the database."
        )
    return notes


def _spacing_notes(coverage: Coverage, spacing_m: float) -> list[str]:
    notes = []
    if spacing_m > _SAME_PLACE_M:
        notes.append(
            f"Half of the positions have no other one within {spacing_m:.0f} m: a photo taken between them has no "
            f"reference within {_SAME_PLACE_M:.0f} m to be found by."
        )
    lonely = int((coverage.nearest_m > _LONELY_M).sum())
    if lonely and spacing_m < _LONELY_M:
        sampled = len(coverage.nearest_m) < coverage.distinct
        of = f" of {len(coverage.nearest_m)} looked at" if sampled else ""
        verb = "position lies" if lonely == 1 else "positions lie"
        notes.append(f"{lonely} {verb} more than 1 km from every other one{of}: look for wrong GPS fixes on the map.")
    return notes
