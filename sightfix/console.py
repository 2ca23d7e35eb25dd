"""What the command line prints: one console, progress bars, and an answer for people."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from retrieval.answer import LocalizeAnswer

# A pipe or a file has no width to keep to.
_PIPE_WIDTH: Final = 200

console: Final = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


@contextlib.contextmanager
def progress_bar(what: str, total: int | None, unit: str = "photos") -> Iterator[Callable[[int], None]]:
    """Show a bar with rate and time left; yields the function that advances it.

    Args:
        what: what is being done.
        total: how many there are, or None if unknown.
        unit: what is counted.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    errors = Console(stderr=True)
    # Where nobody watches, a bar would leave blank lines in the log.
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task(what, total=total, rate="")

        def advance(count: int) -> None:
            progress.advance(task, count)
            speed = progress.tasks[0].speed
            if speed:
                progress.update(task, rate=f"{speed:.1f} {unit}/s")

        yield advance


def print_answer(answer: LocalizeAnswer, shown: int = 5) -> None:
    """Print an answer: status and fix first, then the best matches."""
    fix = answer.fix
    colour = {"LOCATED": "green", "AMBIGUOUS": "yellow", "NO_MATCH": "red"}[answer.status]
    if fix is None:
        console.print(f"[bold {colour}]{answer.status}[/]  no reference fits")
    else:
        calibrated = "" if fix.calibrated else ", not calibrated"
        console.print(
            f"[bold {colour}]{answer.status}[/]  [bold]{fix.lat:.6f}, {fix.lon:.6f}[/]  "
            f"± {fix.radius_m:.0f} m (68 %{calibrated})  confidence {fix.confidence:.2f}  "
            f"{fix.support} of the matches agree"
        )
    if answer.matches:
        table = Table(box=None, pad_edge=False, header_style="dim")
        reranked = any(match.inliers is not None for match in answer.matches)
        for heading in ("#", "score", *(["inliers"] if reranked else []), "lat", "lon"):
            table.add_column(heading, justify="right")
        table.add_column("reference", overflow="fold")
        for match in answer.matches[:shown]:
            table.add_row(
                str(match.rank),
                f"{match.score:.3f}",
                *(["" if match.inliers is None else str(match.inliers)] if reranked else []),
                f"{match.lat:.6f}",
                f"{match.lon:.6f}",
                escape(match.reference_id),
            )
        console.print(table)
    timings = answer.timings_ms
    reranking = "" if timings.rerank is None else f", re-rank {timings.rerank:.0f}"
    console.print(
        f"[dim]{answer.index.size} references in {answer.index.name}; {timings.total:.0f} ms: "
        f"decode {timings.decode:.0f}, describe {timings.describe:.0f}, search {timings.search:.1f}{reranking}[/]"
    )
