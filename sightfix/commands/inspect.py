"""`sightfix inspect`: what a reference database holds, before anything is built of it."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape


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
    from retrieval.errors import ParameterError
    from retrieval.references import open_references
    from sightfix.console import console, progress_bar
    from sightfix.inspection.geojson import write_geojson
    from sightfix.inspection.identical_files import find_identical_files
    from sightfix.inspection.map_figure import FIGURE_SUFFIXES, write_map_figure
    from sightfix.inspection.printing import print_report
    from sightfix.inspection.report import report_on
    from sightfix.inspection.survey import survey_references
    from sightfix.matplotlib_figure import matplotlib_figure

    suffix = map_file.suffix.lower() if map_file else None
    if suffix is not None and suffix not in FIGURE_SUFFIXES | {".geojson"}:
        raise ParameterError(
            f"--map {map_file} is no map that can be drawn", remedy="Give .png, .svg, .pdf or .geojson"
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
    print_report(report, console)
    if map_file is not None:
        console.print(f"[green]map[/] {escape(str(map_file))}")
    if survey.has_positions:
        console.print(
            f"Next: sightfix index {source!r}" if "?" in source else f"Next: sightfix index {source}", markup=False
        )
