"""`sightfix inspect`: what a reference database holds, before anything is built of it."""

import sys
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from retrieval.errors import ParameterError, counted
from sightfix.console import console, distance_text, plain_table, print_next, progress_bar

if TYPE_CHECKING:
    from sightfix.inspection.report import BoundsReport, CoverageReport, InspectionReport, SessionReport

_SHOWN_SESSIONS: Final = 12
_SHOWN_GROUPS: Final = 5


def inspect(
    source: Annotated[
        str, typer.Argument(help="The photos: a folder, a CSV, or a spec such as exif:photos/ or csv:refs.csv")
    ],
    map_file: Annotated[
        Path | None, typer.Option("--map", help="Also draw a map: FILE.png, .svg, .pdf or .geojson")
    ] = None,
    compare_files: Annotated[
        bool, typer.Option("--hash", help="Also look for photos whose files are equal byte by byte (reads files)")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON")] = False,
) -> None:
    """Count geo-tagged photos; find gaps, duplicates and photos without a position; draw a map."""
    from retrieval.references import open_references
    from sightfix.figures.map import FIGURE_SUFFIXES, write_map_figure
    from sightfix.figures.plotting import matplotlib_figure
    from sightfix.inspection.report import report_on, write_geojson
    from sightfix.inspection.survey import find_identical_files, survey_references

    suffix = map_file.suffix.lower() if map_file else None
    if suffix is not None and suffix not in FIGURE_SUFFIXES | {".geojson"}:
        raise ParameterError(
            f"--map {map_file} is not a map that can be drawn", remedy="Give .png, .svg, .pdf or .geojson"
        )
    if suffix in FIGURE_SUFFIXES:
        matplotlib_figure()
    references = open_references(source)
    with progress_bar("Reading", len(references)) as advance:
        survey = survey_references(references, advance)
    identical = None
    if compare_files:
        with progress_bar("Comparing files", len(survey)) as advance:
            identical = find_identical_files(references, advance)
    report = report_on(references, survey, identical)
    if map_file is not None and suffix == ".geojson":
        write_geojson(references, map_file)
    elif map_file is not None:
        write_map_figure(survey, references.spec, map_file)
    if json:
        sys.stdout.write(report.model_dump_json(indent=2) + "\n")
        return
    _print_report(report)
    if map_file is not None:
        console.print(f"[green]map[/] {escape(str(map_file))}")
    if survey.has_positions:
        print_next("index", source)


def _print_report(report: "InspectionReport") -> None:
    """Print a report: what and where first, then sessions, then what is wrong."""
    console.print(f"[bold]{counted(report.count, 'reference')}[/] in {escape(report.spec)}")
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, text in _facts(report):
        facts.add_row(name, text)
    console.print(Padding(facts, (0, 0, 1, 2), expand=False))
    if any(session.name is not None for session in report.sessions):
        console.print(Padding(_sessions_table(report.sessions), (0, 0, 1, 2), expand=False))
    for note in report.notes:
        console.print(f"[yellow]note[/] {escape(note)}")
    for path, reason in report.left_out.examples:
        console.print(f"[yellow]left out[/] {escape(path)}: {escape(reason)}")
    unnamed = report.left_out.count - len(report.left_out.examples)
    if unnamed > 0:
        console.print(f"[yellow]left out[/] {unnamed:,} more; --json counts them by reason")


def _facts(report: "InspectionReport") -> Iterable[tuple[str, str]]:
    coverage = report.coverage
    if coverage is not None:
        if coverage.bounds is not None:
            yield "bounds", _bounds(coverage.bounds)
        yield (
            "extent",
            f"{distance_text(coverage.east_west_m)} east–west, {distance_text(coverage.north_south_m)} north–south",
        )
        yield from _density(coverage)
    times = [time for session in report.sessions for time in (session.first, session.last) if time is not None]
    if times:
        yield "taken", _time_range(min(times, key=_wall_clock), max(times, key=_wall_clock))
    missing = [f"{name} {_share(count, report.count)}" for name, count in report.missing.items() if count]
    yield "missing", ", ".join(missing) or "nothing"
    yield "duplicates", _duplicates(report)
    if report.left_out.count:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in list(report.left_out.reasons.items())[:3])
        yield "left out", escape(f"{counted(report.left_out.count, 'photo')}: {reasons}")


def _bounds(bounds: "BoundsReport") -> str:
    lat = f"latitude {bounds.lat_min:.6f} to {bounds.lat_max:.6f}"
    return f"{lat}, longitude {bounds.lon_min:.6f} to {bounds.lon_max:.6f}"


def _density(coverage: "CoverageReport") -> Iterable[tuple[str, str]]:
    if coverage.spacing_m is not None:
        of = (
            ""
            if coverage.spacing_sample == coverage.distinct_positions
            else f", {coverage.spacing_sample:,} of them measured"
        )
        yield (
            "spacing",
            f"{distance_text(coverage.spacing_m)} to the nearest other position "
            f"(median of {counted(coverage.distinct_positions, 'position')}{of})",
        )
    hectares = coverage.covered_hectares
    area = f"{hectares:.2g} ha" if hectares < 100 else f"{hectares / 100:.1f} km²"
    yield (
        "density",
        f"{coverage.references_per_hectare:.0f} references per hectare of the {area} covered "
        "(squares of 25 m that hold one)",
    )


def _duplicates(report: "InspectionReport") -> str:
    found = report.duplicates
    parts = []
    if found.repeated_ids:
        parts.append(f"{counted(found.repeated_ids, 'repeated id')}, such as {escape(found.repeated_ids_examples[0])}")
    if found.sharing_a_position:
        parts.append(
            f"{counted(found.sharing_a_position, 'reference')} at exactly the position of another "
            f"(up to {found.most_on_one_position} at one position)"
        )
    if found.identical_files:
        copies = sum(len(group) - 1 for group in found.identical_files)
        parts.append(f"{counted(copies, 'file is a copy', 'files are copies')} of another:")
        parts += [f"  {escape(' = '.join(group))}" for group in found.identical_files[:_SHOWN_GROUPS]]
        if len(found.identical_files) > _SHOWN_GROUPS:
            parts.append(f"  and {counted(len(found.identical_files) - _SHOWN_GROUPS, 'more group')}")
    elif found.identical_files is None:
        parts.append("files not compared (--hash does)")
    else:
        parts.append("no two files are equal")
    return "\n".join(parts)


def _sessions_table(sessions: "tuple[SessionReport, ...]") -> Table:
    table = plain_table("session", "references", "taken", right=("references",))
    for session in sessions[:_SHOWN_SESSIONS]:
        times = _time_range(session.first, session.last) if session.first and session.last else "unknown"
        table.add_row("(none)" if session.name is None else escape(session.name), str(session.count), times)
    rest = sessions[_SHOWN_SESSIONS:]
    if rest:
        table.add_row(f"[dim]{counted(len(rest), 'more session')}[/]", str(sum(session.count for session in rest)), "")
    return table


def _time_range(first: datetime, last: datetime) -> str:
    start, end = f"{first:%Y-%m-%d %H:%M}", f"{last:%Y-%m-%d %H:%M}"
    if start == end:
        return start
    return f"{start} to {last:%H:%M}" if first.date() == last.date() else f"{start} to {end}"


def _wall_clock(time: datetime) -> datetime:
    return time.replace(tzinfo=None)


def _share(count: int, total: int) -> str:
    return "(all)" if count == total else f"({count})"
