"""`sightfix evaluate`: how often, and how far off, on photos whose position is known."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from retrieval.index_folder import DEFAULT_INDEXES
from retrieval.reranking.reranker import MAX_RERANKED, RerankSettings
from sightfix.describer_options import (
    CpuFallbackOption,
    PrecisionOption,
    ProviderOption,
    ThreadsOption,
    make_describer,
)
from sightfix.store_options import IndexesOption, StoreOption

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from index_builder.describing import DescribedReferences, DescribeSettings
    from index_builder.held_out import ReferenceIndex
    from retrieval.calibration import Calibration
    from retrieval.describer import Describer, Descriptors
    from retrieval.evaluation import Evaluation, EvaluationReport, Fixes, Positions, Protocol, Ranked
    from retrieval.evidence import StoredDescriptors
    from retrieval.references import Reference
    from retrieval.reranking.reranker import Reranker
    from retrieval.stores.contract import PlaceIndexStore


def evaluate(
    queries: Annotated[str, typer.Option(help="Photos to localize, with known positions: a folder, a CSV, or a spec")],
    database: Annotated[str | None, typer.Option(help="Photos to find them in: a folder, a CSV, or a spec")] = None,
    index: Annotated[str | None, typer.Option(help="Or a published place index to find them in")] = None,
    indexes: IndexesOption = DEFAULT_INDEXES,
    store: StoreOption = None,
    bundle: Annotated[Path | None, typer.Option(help="Bundle to describe with; the shipped one if left out")] = None,
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
        typer.Option(min=0, max=MAX_RERANKED, help="Compare so many best matches with the query point by point"),
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
    batch_size: Annotated[int, typer.Option(min=1, max=1024, help="Photos described at once")] = 16,
    max_unreadable: Annotated[int, typer.Option(min=0, help="Photos that may be left out as undecodable")] = 0,
) -> None:
    """Measure recall and position error on photos whose position is known."""
    from index_builder.describing import DescribeSettings
    from retrieval.errors import ParameterError
    from retrieval.evaluation import Protocol, evaluation_work
    from retrieval.evaluation import evaluate as evaluate_ranking
    from retrieval.stores.opening import open_store
    from sightfix.console import progress_bar

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
        from sightfix.matplotlib_figure import matplotlib_figure

        matplotlib_figure()
    describer = make_describer(bundle, provider, precision, threads, allow_cpu_fallback)
    settings = DescribeSettings(batch_size=batch_size, max_unreadable=max_unreadable)
    asked = _Asked(queries, out_of_area, calibrate, RerankSettings(top=rerank) if rerank else None)
    if database is not None:
        found = _search_photos(database, asked, describer, settings, protocol)
    else:
        found = _search_index(open_store(store, indexes), index, asked, describer, settings, protocol)
    ranked = found.ranked()
    with progress_bar("Evaluating", evaluation_work(ranked, protocol), "steps") as advance:
        evaluation = evaluate_ranking(ranked, protocol, advance, found.notes())
    _print_report(evaluation.report)
    if json is not None:
        _write_json(evaluation.report, json)
    if figures is not None:
        _draw(evaluation, ranked, protocol, found, figures)


@dataclass(frozen=True)
class _Asked:
    """What to localize, and how."""

    queries: str
    out_of_area: str | None
    calibrate: bool
    rerank: RerankSettings | None = None


@dataclass(frozen=True)
class _Matches:
    """What was found for some photos.

    Attributes:
        rows, scores: (Q, K), best first.
        centred: (Q, k) centred cosines of the first of them.
        order: (Q, K) places in these, best first after re-ranking; None where nothing was re-ranked.
    """

    rows: "NDArray[np.int64]"
    scores: "NDArray[np.float32]"
    centred: "NDArray[np.float64]"
    order: "NDArray[np.int64] | None" = None

    def in_order(self, values: "NDArray[Any]") -> "NDArray[Any]":
        """Rows or scores as they are told: re-ranked, where that was asked for."""
        import numpy as np

        return values if self.order is None else np.take_along_axis(values, self.order, axis=1)


@dataclass(frozen=True)
class _Found:
    """Queries and what was found for them."""

    queries: "Sequence[Reference]"
    query_positions: "Positions"
    database_positions: "Positions"
    references: "Callable[[NDArray[np.int64]], Sequence[Reference]]"
    matches: _Matches
    elsewhere: _Matches | None = None
    calibration: "Calibration | None" = None
    search_notes: tuple[str, ...] = ()
    rerank: RerankSettings | None = None

    def ranked(self) -> "Ranked":
        """The ranking with a fix for every query, where degrees are known."""
        from retrieval.evaluation import BeforeReranking, Ranked

        fixes = None
        if self.query_positions.lat is not None and self.database_positions.lat is not None:
            fixes = self._fixes("Making fixes", self.matches)
        sessions = [query.session for query in self.queries]
        elsewhere = None if self.elsewhere is None or fixes is None else self._fixes("and elsewhere", self.elsewhere)
        rows, how = self.matches.rows, self.rerank
        before = None if how is None else BeforeReranking(rows, how.top, how.min_inliers)
        told = self.matches.in_order(rows)
        return Ranked(self.database_positions, self.query_positions, told, fixes, sessions, elsewhere, before)

    def _fixes(self, what: str, matches: _Matches) -> "Fixes":
        from retrieval.evaluation import fixes_of_matches
        from sightfix.console import progress_bar

        with progress_bar(what, len(matches.rows), "fixes") as advance:
            return fixes_of_matches(
                self.database_positions,
                # As the localizer does: what was calibrated stays by score, what was not follows the new order.
                matches.rows if self.calibration is not None else matches.in_order(matches.rows),
                matches.scores,
                on_progress=advance,
                centred=matches.centred,
                calibration=self.calibration,
            )

    def notes(self) -> list[str]:
        """What makes the numbers look better than they are."""
        import numpy as np

        notes = list(self.search_notes)
        same = int((self.matches.scores[:, 0] > _SAME_PHOTO).sum())
        if same:
            notes.append(f"{_queries(same)} a best match with a score above {_SAME_PHOTO}: the same photo, very likely")
        distinct, back = np.unique(self.matches.rows[:, 0], return_inverse=True)
        sessions = np.array([reference.session or "" for reference in self.references(distinct)], dtype=object)
        of_queries = np.array([query.session or "" for query in self.queries], dtype=object)
        own = int(((sessions[back.ravel()] == of_queries) & (of_queries != "")).sum())
        if own:
            notes.append(f"{_queries(own)} a best match of the same session: not a test of another day")
        return notes


_SAME_PHOTO = 0.999


def _queries(count: int) -> str:
    return "1 query has" if count == 1 else f"{count} queries have"


def _search_photos(
    database: str, asked: _Asked, describer: "Describer", settings: "DescribeSettings", protocol: "Protocol"
) -> _Found:
    from index_builder.described_index import DescribedIndex, DescribedVectors
    from retrieval.evaluation import Positions, exact_ranking
    from sightfix.console import progress_bar

    described = _describe("Describing the database", database, describer, settings)
    positions = Positions.from_references(described.references)
    stored = DescribedVectors(described.descriptors)
    index = DescribedIndex(described.references, described.descriptors) if positions.lat is not None else None

    def search(descriptors: "Descriptors") -> _Matches:
        with progress_bar("Searching", len(descriptors), "queries") as advance:
            rows, scores = exact_ranking(described.descriptors, descriptors, _matches_needed(protocol), advance)
        return _with_centred(stored, rows, scores, descriptors)

    queries = _describe("Describing the queries", asked.queries, describer, settings)
    calibration, notes = _calibrated(index) if asked.calibrate and index is not None else (None, ())
    return _Found(
        queries.references,
        Positions.from_references(queries.references),
        positions,
        lambda wanted: [described.references[row] for row in wanted],
        search(queries.descriptors),
        _elsewhere(asked, describer, settings, search),
        calibration,
        notes,
    )


def _search_index(
    store: "PlaceIndexStore",
    name: str | None,
    asked: _Asked,
    describer: "Describer",
    settings: "DescribeSettings",
    protocol: "Protocol",
) -> _Found:
    import numpy as np

    from retrieval.errors import ParameterError
    from retrieval.evaluation import Positions
    from retrieval.place_index import PlaceIndex
    from retrieval.reranking.reranker import Reranker, require_features
    from sightfix.console import progress_bar

    place_index = store.open(store.find(name))
    place_index.check_bundle(describer.bundle)
    if asked.calibrate and not isinstance(place_index, PlaceIndex):
        raise ParameterError(
            "an index is calibrated where its files are",
            where=store.where,
            remedy="Leave out --calibrate, or give the folder: --indexes",
        )
    reranker = None
    if asked.rerank is not None:
        reranker = Reranker(require_features(place_index.local_features, place_index.where), asked.rerank)

    matches_needed = max(_matches_needed(protocol), asked.rerank.top if asked.rerank else 0)

    def search(descriptors: "Descriptors") -> _Matches:
        pieces = []
        with progress_bar("Searching", len(descriptors), "queries") as advance:
            for begin in range(0, len(descriptors), _QUERIES_AT_ONCE):
                some = descriptors[begin : begin + _QUERIES_AT_ONCE]
                pieces.append(place_index.search(some, matches_needed))
                advance(len(some))
        rows = np.concatenate([piece.rows for piece in pieces])
        scores = np.concatenate([piece.scores for piece in pieces])
        return _with_centred(place_index, rows, scores, place_index.whitened(descriptors))

    queries = _describe("Describing the queries", asked.queries, describer, settings)
    calibration: Calibration | None = place_index.manifest.calibration
    notes: tuple[str, ...] = ()
    if isinstance(place_index, PlaceIndex) and asked.calibrate:
        calibration, notes = _calibrated(place_index)
    matches = search(queries.descriptors)
    if reranker is not None:
        matches = replace(matches, order=_reranked(reranker, queries.references, matches.rows))
        order = "by score, as the calibration was measured" if calibration is not None else "in their new order"
        notes = (*notes, f"Fixes are made from the matches {order}")
    if protocol.convention != "solvable":
        stored = place_index.manifest.storage
        notes = (*notes, f"The matches come from the index's own search ({stored} vectors, cosine)")
    return _Found(
        queries.references,
        Positions.from_references(queries.references),
        Positions.from_degrees(*place_index.all_positions()),
        place_index.references,
        matches,
        _elsewhere(asked, describer, settings, search),
        calibration,
        notes,
        asked.rerank,
    )


def _reranked(reranker: "Reranker", queries: "Sequence[Reference]", rows: "NDArray[np.int64]") -> "NDArray[np.int64]":
    """The new order of each query's matches, (Q, K) places."""
    from retrieval.reranking.reranker import rerank_photos
    from sightfix.console import progress_bar

    with progress_bar("Re-ranking", len(queries), "queries") as advance:
        return rerank_photos(reranker, [query.path for query in queries], rows, on_progress=advance)


def _elsewhere(
    asked: _Asked, describer: "Describer", settings: "DescribeSettings", search: "Callable[[Descriptors], _Matches]"
) -> _Matches | None:
    if asked.out_of_area is None:
        return None
    described = _describe("Describing photos of other places", asked.out_of_area, describer, settings)
    return search(described.descriptors)


def _calibrated(index: "ReferenceIndex") -> "tuple[Calibration | None, tuple[str, ...]]":
    from index_builder.calibrating import fit_calibration
    from sightfix.console import console

    with console.status("Calibrating"):
        calibration = fit_calibration(index)
    if calibration is None:
        return None, ("Not calibrated: too few references see what references of other sessions see",)
    taken = f"{calibration.queries} references of {calibration.groups} {calibration.held_out}"
    return calibration, (f"Calibrated on {taken}, each held out with its own",)


def _with_centred(
    index: "StoredDescriptors",
    rows: "NDArray[np.int64]",
    scores: "NDArray[np.float32]",
    descriptors: "Descriptors",
) -> _Matches:
    """Matches with the centred cosines that confidence needs."""
    import numpy as np

    from retrieval.evidence import centre_of, centred_cosines
    from retrieval.fix import FixSettings

    centre, best = centre_of(index), rows[:, : FixSettings().matches_needed]
    centred = np.empty(best.shape)
    for begin in range(0, len(best), _QUERIES_AT_ONCE):
        some = slice(begin, begin + _QUERIES_AT_ONCE)
        matched = index.descriptors(np.maximum(best[some], 0).ravel()).reshape(*best[some].shape, -1)
        centred[some] = np.where(best[some] < 0, -1.0, centred_cosines(descriptors[some], matched, centre))
    return _Matches(rows, scores, centred)


_QUERIES_AT_ONCE = 256


def _describe(what: str, spec: str, describer: "Describer", settings: "DescribeSettings") -> "DescribedReferences":
    from index_builder.describing import describe_references
    from retrieval.errors import ReferenceDataError
    from retrieval.references import open_references
    from sightfix.console import console, progress_bar

    source = open_references(spec)
    with progress_bar(what, len(source)) as advance:
        described = describe_references(source, describer, settings, advance)
    if not described.references:
        raise ReferenceDataError("there is no photo with a position", where=spec, remedy="Check folder and filters")
    left_out = len(source.skipped) + len(described.unreadable)
    if left_out:
        console.print(
            f"[yellow]left out[/] {left_out} photos of {escape(spec)}; see: sightfix inspect {escape(spec)}",
            soft_wrap=True,
        )
    return described


def _matches_needed(protocol: "Protocol") -> int:
    from retrieval.fix import FixSettings

    return max(*protocol.recall_at, FixSettings().matches_needed)


def _whole_numbers(text: str) -> tuple[int, ...]:
    from retrieval.errors import ParameterError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ParameterError(f"--recall-at {text!r} is not whole numbers", remedy="Give such as 1,5,10,20") from None


def _print_report(report: "EvaluationReport") -> None:
    from rich.table import Table
    from rich.text import Text

    from retrieval.evaluation import plain_text, report_tables
    from retrieval.evaluation.tables import headline, trailing_lines
    from sightfix.console import console

    if not console.is_terminal:
        console.print(plain_text(report), markup=False, soft_wrap=True)
        return
    console.print(headline(report))
    look: dict[str, Any] = {"box": None, "pad_edge": False, "title_justify": "left", "header_style": "dim"}
    for content in report_tables(report):
        table = Table(title=content.title, title_style="bold", **look)
        for place, column in enumerate(content.columns):
            table.add_column(column, justify="left" if place == 0 else "right", no_wrap=True)
        for row in content.rows:
            table.add_row(*(Text(cell) for cell in row))
        console.print()
        console.print(table)
    for line in trailing_lines(report):
        console.print()
        console.print(line, markup=False)


def _write_json(report: "EvaluationReport", path: Path) -> None:
    from retrieval.errors import StorageError
    from sightfix.console import console

    try:
        path.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"the report cannot be written ({error.strerror})", where=str(path), remedy="Give a writable file"
        ) from error
    console.print(f"\n[green]wrote[/] {escape(str(path))}", soft_wrap=True)


def _draw(evaluation: "Evaluation", ranked: "Ranked", protocol: "Protocol", found: _Found, folder: Path) -> None:
    import numpy as np

    from sightfix.console import console
    from sightfix.evaluation_figures import EvaluatedPhotos, write_figures

    photos = EvaluatedPhotos(
        query=lambda row: found.queries[row].path,
        database=lambda row: found.references(np.array([row]))[0].path,
        scores=found.matches.in_order(found.matches.scores),
    )
    with console.status("Drawing"):
        written = write_figures(evaluation, ranked, protocol, photos, folder)
    console.print(f"[green]drew[/] {', '.join(path.name for path in written)} in {escape(str(folder))}", soft_wrap=True)
