"""How far confidence, radius and NO_MATCH keep their promises: on photos that the calibration never saw.

The campus: the bundle adapted to and the calibration fitted on each protocol's database, judged on its queries; photos
of Lund and Berlin stand for other places. And fitted on some of its queries, judged on the others: session by session,
and both halves of the campus.
Toy towns: fitted on a mapping drive and 24 drives, judged on eight others; the other towns stand for other places.

    python -m benchmarks.calibration [--cache FOLDER] [--towns 1,2,3] [--figures FOLDER]
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.campus import PROTOCOLS, adapted_to
from benchmarks.indexing_throughput import PHOTOS
from benchmarks.machine import describe_machine
from benchmarks.toy_drives import describe_cameras, describe_plans, plan_drive
from index_builder.calibration.calibrating import CalibrationSettings, fit_calibration, fit_on_photos
from index_builder.calibration.queries import DescribedIndex, OutsidePhotos
from index_builder.describing import DescribeSettings, describe_references
from retrieval.bundle import Bundle, open_bundle
from retrieval.describer import Describer, Descriptors
from retrieval.evaluation import (
    Bootstrap,
    Fixes,
    Positions,
    Protocol,
    Ranked,
    evaluate,
    exact_ranking,
    place_groups,
)
from retrieval.evaluation.evaluation import Evaluation
from retrieval.evaluation.fixes import confidence_report, fix_errors_m
from retrieval.evaluation.report import Estimate
from retrieval.geo import Position
from retrieval.index.manifest import BundleIdentity
from retrieval.localize.calibration import Calibration
from retrieval.localize.evidence import FIX_METHODS, FixSettings
from retrieval.localize.fix import FixMaker
from retrieval.references import open_references
from retrieval.references.reference import Reference
from sightfix.figures.evaluation import answered_figure, confidence_figure, no_match_figure
from sightfix.toy_town import ToyTown, plan_queries, plan_references, town_for

DRIVES: Final = 32
FRAMES: Final = 40
# Of the one describer; nothing here is compared with another.
BUNDLE: Final = BundleIdentity(name="default", fingerprint="0" * 64)


@dataclass(frozen=True)
class Photos:
    """Described photos with positions."""

    references: list[Reference]
    descriptors: Descriptors

    def only(self, which: NDArray[np.bool_]) -> "Photos":
        """Some of them."""
        kept = np.flatnonzero(which)
        return Photos([self.references[row] for row in kept], self.descriptors[kept])

    def positions(self) -> Positions:
        """Where they were taken."""
        return Positions.from_references(self.references)


@dataclass(frozen=True)
class Case:
    """A database, the queries that it never saw, and photos of other places."""

    name: str
    database: Photos
    queries: Photos
    elsewhere: dict[str, Descriptors]


def campus_cases(bundle: Bundle, cache: Path | None) -> list[Case]:
    """Both protocols on the whole campus, each with the bundle adapted to its database."""
    rows = _campus_rows()
    sessions = np.array([reference.session for reference in rows])
    foreign = [row for folder in ("lund_exif", "berlin_exif") for row in open_references(str(PHOTOS / folder))]
    cases = []
    for name, parts in PROTOCOLS.items():

        def described(part: str = parts[0]) -> Descriptors:
            with tempfile.TemporaryDirectory() as folder:
                database = [row for row in rows if part in (row.session or "")]
                describer = Describer(adapted_to(bundle, database, Path(folder) / "adapted"))
                return describe_references([*rows, *foreign], describer, DescribeSettings(batch_size=8)).descriptors

        descriptors = _cached(cache, name, described)
        campus, elsewhere = np.split(descriptors, [len(rows)])
        photos = Photos(rows, campus)
        database, queries = (photos.only(np.char.find(sessions, part) >= 0) for part in parts)
        cases.append(Case(name, database, queries, {"Lund and Berlin": elsewhere}))
    return cases


def _campus_rows() -> list[Reference]:
    source = open_references(f"csv:{PHOTOS / 'bgu_campus' / 'images.csv'}")
    return list(source)


def toy_cases(seeds: Sequence[int], describer: Describer, cache: Path | None) -> list[Case]:
    """Each town with few and with many drives in its database, and its mapping drive alone."""
    towns = {seed: _town_photos(seed, describer, cache) for seed in seeds}
    cases = []
    for place, seed in enumerate(seeds):
        town, other = towns[seed], towns[seeds[place - 1]]
        survey, drive = town.role == "survey", town.number
        elsewhere = {"another toy town": other.photos.descriptors[other.number >= 24]}
        for name, database in (
            ("toy, survey and 24 drives", survey | ((drive >= 0) & (drive < 24))),
            ("toy, survey and 4 drives", survey | ((drive >= 0) & (drive < 4))),
            ("toy, survey only", survey),
        ):
            cases.append(Case(name, town.photos.only(database), town.photos.only(drive >= 24), elsewhere))
        mapped = survey | ((drive >= 0) & (drive < 24))
        walks = town.photos.only(town.role == "walk")
        cases.append(Case("toy, survey and 24 drives; walks", town.photos.only(mapped), walks, elsewhere))
    return cases


@dataclass(frozen=True)
class TownPhotos:
    """Everything photographed in one town: role is survey, drive or walk; number that of the drive, else -1."""

    photos: Photos
    role: NDArray[np.str_]
    number: NDArray[np.int64]


def _town_photos(seed: int, describer: Describer, cache: Path | None) -> TownPhotos:
    town = town_for(300, seed)
    started = datetime(2026, 9, 12, tzinfo=UTC)
    survey, walks = plan_references(town, 300), plan_queries(town, 160)
    drives = [plan_drive(town, number, FRAMES) for number in range(DRIVES)]

    def lit(number: int) -> str:
        return "dusk" if number % 2 else "day"

    def described() -> Descriptors:
        parts = [describe_plans(town, survey, describer)]
        for number, drive in enumerate(drives):
            parts.append(describe_cameras(town, drive.cameras, lit(number), describer, 10_000 * (number + 1)))
        return np.concatenate([*parts, describe_plans(town, walks, describer)])

    rows = [_row(town, p.camera.east, p.camera.north, p.session, p.captured_at) for p in survey]
    for number, drive in enumerate(drives):
        at = started + timedelta(hours=number)
        rows += [_row(town, e, n, f"extra-{number}", at) for e, n in zip(drive.east, drive.north, strict=True)]
    rows += [_row(town, p.camera.east, p.camera.north, p.session, p.captured_at) for p in walks]
    role = ["survey"] * len(survey) + ["drive"] * DRIVES * FRAMES + ["walk"] * len(walks)
    numbers = [-1] * len(survey) + [n for n in range(DRIVES) for _ in range(FRAMES)] + [-1] * len(walks)
    photos = Photos(rows, _cached(cache, f"town-{seed}", described))
    return TownPhotos(photos, np.array(role), np.array(numbers))


def _row(town: ToyTown, east: float, north: float, session: str, at: datetime) -> Reference:
    where: Position = town.position(float(east), float(north))
    return Reference(id="", path=Path(), position=where, session=session, captured_at=at)


def _cached(cache: Path | None, name: str, make: Callable[[], Descriptors]) -> Descriptors:
    path = None if cache is None else cache / f"calibration-{name}.npy"
    if path is not None and path.exists():
        return np.asarray(np.load(path))
    made = make()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, made)
    return made


@dataclass(frozen=True)
class Outcome:
    """One case, answered."""

    case: Case
    evaluation: Evaluation
    fixes: Fixes
    errors_m: NDArray[np.float64]
    calibration: Calibration | None


def answer(case: Case, calibration: Calibration | None, settings: FixSettings | None = None) -> Outcome:
    """Make all fixes of a case and evaluate them, intervals over places."""
    settings = settings or FixSettings()
    fixes = _fixes(case.database, case.queries.descriptors, calibration, settings)
    elsewhere = _fixes(case.database, np.concatenate(list(case.elsewhere.values())), calibration, settings)
    rows, _ = exact_ranking(case.database.descriptors, case.queries.descriptors, 20)
    queries = case.queries.positions()
    ranked = Ranked(case.database.positions(), queries, rows, fixes=fixes, elsewhere=elsewhere)
    evaluation = evaluate(ranked, Protocol(grouping="place"))
    return Outcome(case, evaluation, fixes, fix_errors_m(queries, fixes), calibration)


def _fixes(database: Photos, descriptors: Descriptors, calibration: Calibration | None, settings: FixSettings) -> Fixes:
    index = DescribedIndex(database.references, database.descriptors, BUNDLE)
    found = index.search(descriptors, settings.matches_needed)
    maker = FixMaker(index, settings, calibration)
    centred = maker.centred(descriptors, found.rows)
    rankings = [maker.ranking(rows, scores) for rows, scores in zip(found.rows, found.scores, strict=True)]
    outcomes = [maker.fix(ranking, near) for ranking, near in zip(rankings, centred, strict=True)]
    familiarity = [maker.familiarity(ranking, near) for ranking, near in zip(rankings, centred, strict=True)]
    return Fixes.of(outcomes, np.array(familiarity))


def print_row(name: str, outcomes: Sequence[Outcome]) -> None:
    """One line of the table; several towns are pooled, intervals draw places of all of them."""
    confidence, radius, located = (np.concatenate([_column(o.fixes, name) for o in outcomes])
                                   for name in ("confidence", "radius_m", "located"))  # fmt: skip
    lat, lon = (np.concatenate([getattr(o.fixes, axis) for o in outcomes]) for axis in ("lat", "lon"))
    errors = np.concatenate([o.errors_m for o in outcomes])
    solvable = np.concatenate([o.evaluation.positives[0] > 0 for o in outcomes])
    calibrated = all(o.calibration is not None for o in outcomes)
    fixes = Fixes(lat, lon, confidence, radius, located.astype(bool), calibrated)
    report = confidence_report(fixes, errors, _groups([o.case for o in outcomes]), Bootstrap())
    assert report is not None
    right = errors <= 25.0
    elsewhere = [status for o in outcomes for status in o.evaluation.report.statuses if status.of.startswith("photos")]
    rejected = sum(status.photos * status.no_match_share for status in elsewhere)
    shown = sum(status.photos * status.located_share for status in elsewhere)
    photos = sum(status.photos for status in elsewhere)
    print(
        f"| {name} | {'yes' if calibrated else 'no'} | {len(errors)} | {100 * np.nanmean(right[fixes.answered]):.1f} | "
        f"{np.nanmean(confidence) * 100:.1f} | {_three(report.calibration_error)} | "
        f"{report.calibration_error_if_honest:.3f} | {report.brier:.3f} ({report.brier_of_base_rate:.3f}) | "
        f"{_percent(report.radius_coverage)} | {100 * np.mean(located[solvable]):.0f}, "
        f"{100 * np.mean(right[located.astype(bool)]):.0f} | {100 * np.mean(~fixes.answered[solvable]):.1f} | "
        f"{100 * rejected / photos:.0f}, {100 * shown / photos:.0f} (n = {photos}) |",
        flush=True,
    )


def _column(fixes: Fixes, name: str) -> NDArray[np.float64]:
    column = getattr(fixes, name)
    assert column is not None
    return np.asarray(column)


def print_trade_off(outcomes: Sequence[Outcome]) -> None:
    """What other thresholds would reject."""
    print("\n| solvable queries rejected, % | " + " | ".join(o.case.name for o in outcomes) + " |")
    print("|---|" + "---|" * len(outcomes))
    for wanted in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3):
        cells = [
            min(o.evaluation.report.no_match_curve, key=lambda point: abs(point.solvable_share - wanted))
            for o in outcomes
        ]
        print(f"| {100 * wanted:.0f} | " + " | ".join(f"{100 * cell.elsewhere_share:.0f}" for cell in cells) + " |")


def print_methods(cases: Sequence[Case]) -> None:
    """Every estimator against top-1, paired, over all queries; differences draw places."""
    print("\n| queries | method | median m | p90 m | within 25 m, % | over top-1: median m | p90 m | within, points |")
    print("|---|---|---|---|---|---|---|---|")
    for name in dict.fromkeys(case.name for case in cases):
        pooled = [case for case in cases if case.name == name]
        groups = _groups(pooled)
        errors = {
            method: np.concatenate([_errors_m(case, FixSettings(method=method)) for case in pooled])
            for method in FIX_METHODS
        }
        for method, metres in errors.items():
            median, p90 = np.quantile(metres, [0.5, 0.9])
            change = "| | |" if method == "top1" else _paired(metres, errors["top1"], groups)
            within = 100 * np.mean(metres <= 25.0)
            print(f"| {name} ({len(metres)}) | {method} | {median:.1f} | {p90:.1f} | {within:.1f} | {change}")


def _errors_m(case: Case, settings: FixSettings) -> NDArray[np.float64]:
    fixes = _fixes(case.database, case.queries.descriptors, None, settings)
    return fix_errors_m(case.queries.positions(), fixes)


def _groups(cases: Sequence[Case]) -> NDArray[np.int64]:
    """The place of each query; places of different towns are different."""
    groups: list[NDArray[np.int64]] = []
    for case in cases:
        before = int(groups[-1].max()) + 1 if groups else 0
        groups.append(place_groups(case.queries.positions(), 25.0) + before)
    return np.concatenate(groups)


def _paired(metres: NDArray[np.float64], before: NDArray[np.float64], groups: NDArray[np.int64]) -> str:
    """Changes in median, p90 and share within 25 m, with 95 % intervals: whole places drawn 2000 times."""
    labels, whose = np.unique(groups, return_inverse=True)
    members = [np.flatnonzero(whose == label) for label in range(len(labels))]
    random, drawn = np.random.default_rng(0), []

    def measures(some: NDArray[np.int64]) -> NDArray[np.float64]:
        changes = np.quantile(metres[some], [0.5, 0.9]) - np.quantile(before[some], [0.5, 0.9])
        return np.append(changes, 100 * (np.mean(metres[some] <= 25) - np.mean(before[some] <= 25)))

    for _ in range(2000):
        some = np.concatenate([members[label] for label in random.integers(0, len(labels), len(labels))])
        drawn.append(measures(some))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    value = measures(np.arange(len(metres)))
    return " | ".join(f"{v:+.1f} ({a:+.1f} to {b:+.1f})" for v, a, b in zip(value, low, high, strict=True)) + " |"


def _three(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} ({estimate.low:.3f}–{estimate.high:.3f})"


def _percent(estimate: Estimate | None) -> str:
    assert estimate is not None
    assert estimate.value is not None
    assert estimate.low is not None
    assert estimate.high is not None
    return f"{100 * estimate.value:.1f} ({100 * estimate.low:.1f}–{100 * estimate.high:.1f})"


def main() -> None:
    """Print Markdown tables; with --figures draw the campus's curves."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--towns", default="1,2,3")
    parser.add_argument("--figures", type=Path)
    arguments = parser.parse_args()
    bundle = open_bundle()
    print(f"calibration, default bundle, on the campus adapted to each database; {describe_machine()}\n")
    cases = campus_cases(bundle, arguments.cache)
    seeds = [int(seed) for seed in arguments.towns.split(",") if seed]
    toys = toy_cases(seeds, Describer(bundle), arguments.cache)
    print(
        "| queries | calibrated | n | within 25 m, % | stated, % | calibration error | if honest | Brier (base rate) | "
        "radius holds, % | solvable LOCATED, right of LOCATED, % | solvable NO_MATCH, % | "
        "elsewhere NO_MATCH, LOCATED, % |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    campus = []
    for case in cases:
        print_row(f"{case.name}, not calibrated", [answer(case, None)])
        campus.append(answer(case, _calibrate(case)))
        print_row(case.name, campus[-1:])
        for split, parts in _splits(case).items():
            print_row(f"{case.name}, on photos: {split}", calibrated_on_photos(case, parts))
    for name in dict.fromkeys(case.name for case in toys):
        some = [case for case in toys if case.name == name]
        print_row(f"{name}, not calibrated", [answer(case, None) for case in some])
        outcomes = [answer(case, _calibrate(case)) for case in some]
        if all(outcome.calibration is not None for outcome in outcomes):
            print_row(name, outcomes)
    print_trade_off(campus)
    print_methods([*cases, *(case for case in toys if "24" in case.name)])
    if arguments.figures:
        for outcome in campus:
            folder = arguments.figures / outcome.case.name
            folder.mkdir(parents=True, exist_ok=True)
            confidence_figure(outcome.evaluation).savefig(folder / "confidence.png", dpi=130)
            answered_figure(outcome.evaluation).savefig(folder / "answered.png", dpi=130)
            no_match_figure(outcome.evaluation).savefig(folder / "no_match.png", dpi=130)


def _splits(case: Case) -> dict[str, NDArray[np.int64]]:
    """Ways to part the queries, (Q,) each."""
    positions = case.queries.positions()
    assert positions.lat is not None
    assert positions.lon is not None
    sessions = np.array([reference.session for reference in case.queries.references])
    return {
        "each session by the others": np.unique(sessions, return_inverse=True)[1],
        "north and south by each other": (positions.lat > np.median(positions.lat)).astype(np.int64),
        "east and west by each other": (positions.lon > np.median(positions.lon)).astype(np.int64),
    }


def calibrated_on_photos(case: Case, parts: NDArray[np.int64]) -> list[Outcome]:
    """Each part of the queries, with a calibration that was fitted on the other parts."""
    index = DescribedIndex(case.database.references, case.database.descriptors, BUNDLE)
    outcomes = []
    for part in np.unique(parts):
        others = case.queries.only(parts != part)
        photos = OutsidePhotos.from_references(others.references, others.descriptors)
        outcomes.append(answer(replace(case, queries=case.queries.only(parts == part)), fit_on_photos(index, photos)))
    return outcomes


def _calibrate(case: Case) -> Calibration | None:
    index = DescribedIndex(case.database.references, case.database.descriptors, BUNDLE)
    return fit_calibration(index, CalibrationSettings())


if __name__ == "__main__":
    main()
