"""`sightfix evaluate`: how often, and how far off, on photos whose position is known."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.text import Text

from retrieval.errors import ParameterError, StorageError
from retrieval.index.folder import DEFAULT_INDEXES
from sightfix.commands.options import (
    BatchSizeOption,
    CpuFallbackOption,
    IndexesOption,
    MaxUnreadableOption,
    PrecisionOption,
    ProviderOption,
    StoreOption,
    ThreadsOption,
    make_describer,
)
from sightfix.console import console, plain_table, progress_bar

if TYPE_CHECKING:
    from retrieval.evaluation import Evaluation, EvaluationReport, Protocol, Ranked
    from sightfix.evaluation_search import Found


def evaluate(
    queries: Annotated[str, typer.Option(help="Photos to localize, with known positions: a folder, a CSV, or a spec")],
    database: Annotated[str | None, typer.Option(help="Photos to find them in: a folder, a CSV, or a spec")] = None,
    index: Annotated[str | None, typer.Option(help="Or a published place index to find them in")] = None,
    indexes: IndexesOption = DEFAULT_INDEXES,
    store: StoreOption = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle to describe with; the one that the index holds, or the shipped one")
    ] = None,
    radius: Annotated[
        list[float] | None, typer.Option(help="Metres within which a match is right; repeatable; 25 if left out")
    ] = None,
    recall_at: Annotated[str, typer.Option(help="The Ns of recall@N")] = "1,5,10,20",
    convention: Annotated[
        str, typer.Option(help="solvable: only queries with a right match count; vpr-methods-evaluation: all count")
    ] = "solvable",
    group: Annotated[
        str | None, typer.Option(help="What intervals draw: session, if there are ten, else place")
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="Fit confidence and NO_MATCH to the database's own sessions, as indexing does"
        ),
    ] = False,
    rerank: Annotated[
        int,
        typer.Option(min=0, help="Compare so many best matches with the query point by point"),
    ] = 0,
    out_of_area: Annotated[
        str | None, typer.Option(help="Photos of other places: how many are NO_MATCH? A folder, a CSV, or a spec")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the report to this file")] = None,
    figures: Annotated[Path | None, typer.Option(help="Draw curves, successes and failures into this folder")] = None,
    provider: ProviderOption = None,
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    allow_cpu_fallback: CpuFallbackOption = None,
    batch_size: BatchSizeOption = 16,
    max_unreadable: MaxUnreadableOption = 0,
) -> None:
    """Measure recall and position error on photos whose position is known."""
    from index_builder.describing import DescribeSettings
    from retrieval.bundle import open_bundle
    from retrieval.evaluation import Protocol, evaluation_work
    from retrieval.evaluation import evaluate as evaluate_ranking
    from retrieval.index.stores import open_store
    from retrieval.verification.verifier import RerankSettings
    from sightfix.evaluation_search import EvaluationRequest, search_index, search_photos

    if (database is None) == (index is None):
        raise ParameterError("give either --database or --index", remedy="Say where the queries are to be found")
    if rerank and index is None:
        raise ParameterError(
            "--rerank needs the local features of an index",
            remedy="Index the database with --local-features, and give --index instead of --database",
        )
    protocol = Protocol(
        radii_m=tuple(radius or [25.0]),
        recall_at=_whole_numbers(recall_at),
        convention=convention,  # type: ignore[arg-type]
        grouping=group,  # type: ignore[arg-type]
    )
    if figures is not None:
        from sightfix.figures.plotting import matplotlib_figure

        matplotlib_figure()
    settings = DescribeSettings(batch_size=batch_size, max_unreadable=max_unreadable)
    request = EvaluationRequest(queries, out_of_area, calibrate, RerankSettings(top=rerank) if rerank else None)
    how = (provider, precision, threads, allow_cpu_fallback)
    if database is not None:
        describer = make_describer(open_bundle(bundle), *how)
        found = search_photos(database, request, describer, settings, protocol)
    else:
        opened = open_store(store, indexes)
        place_index = opened.open(opened.find(index))
        describer = make_describer(place_index.open_bundle(bundle), *how)
        found = search_index(place_index, request, describer, settings, protocol)
    ranked = found.ranked()
    with progress_bar("Evaluating", evaluation_work(ranked, protocol), "steps") as advance:
        evaluation = evaluate_ranking(ranked, protocol, advance, found.all_notes())
    _print_report(evaluation.report)
    if json is not None:
        _write_json(evaluation.report, json)
    if figures is not None:
        _draw(evaluation, ranked, protocol, found, figures)


def _whole_numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ParameterError(f"--recall-at {text!r} is not whole numbers", remedy="Give such as 1,5,10,20") from None


def _print_report(report: "EvaluationReport") -> None:
    from retrieval.evaluation import plain_text, report_tables
    from retrieval.evaluation.tables import headline, trailing_lines

    if not console.is_terminal:
        console.print(plain_text(report), markup=False, soft_wrap=True)
        return
    console.print(headline(report))
    for content in report_tables(report):
        table = plain_table(*content.columns, right=content.columns[1:], title=content.title)
        for row in content.rows:
            table.add_row(*(Text(cell) for cell in row))
        console.print()
        console.print(table)
    for line in trailing_lines(report):
        console.print()
        console.print(line, markup=False)


def _write_json(report: "EvaluationReport", path: Path) -> None:
    try:
        path.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"the report cannot be written ({error.strerror})", where=str(path), remedy="Give a writable file"
        ) from error
    console.print(f"\n[green]wrote[/] {escape(str(path))}", soft_wrap=True)


def _draw(evaluation: "Evaluation", ranked: "Ranked", protocol: "Protocol", found: "Found", folder: Path) -> None:
    import numpy as np

    from sightfix.figures.evaluation import EvaluatedPhotos, write_figures

    photos = EvaluatedPhotos(
        query=lambda row: found.queries.references[row].path,
        database=lambda row: found.references_of(np.array([row]))[0].path,
        scores=found.queries.reported_scores,
    )
    with console.status("Drawing"):
        written = write_figures(evaluation, ranked, protocol, photos, folder)
    console.print(f"[green]drew[/] {', '.join(path.name for path in written)} in {escape(str(folder))}", soft_wrap=True)
