"""What commands share: the console, tables, progress bars, an answer for people, quantities, optional libraries."""

import contextlib
import re
import shlex
import sys
from collections.abc import Callable, Collection, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from retrieval.errors import MissingExtraError, ParameterError, counted

if TYPE_CHECKING:
    from service.answer import LocalizeAnswer

# A pipe or a file has no width to keep to.
_PIPE_WIDTH: Final = 200
_QUANTITY: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kKMGTB]?)(i?)[bB]?\s*")
_POWERS: Final = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "B": 3, "T": 4}
_LIBRARIES: Final = {
    "torch": "PyTorch",
    "timm": "timm",
    "lightning": "Lightning",
    "safetensors": "safetensors",
    "scipy": "SciPy",
    "tensorboard": "TensorBoard",
    "onnx": "ONNX",
    "onnxscript": "ONNX Script",
}
_NEEDED: Final = {
    "training": ("torch", "timm", "lightning", "safetensors", "scipy", "tensorboard"),
    "export": ("torch", "timm", "safetensors", "onnx", "onnxscript"),
    "heat maps": ("torch", "timm", "safetensors"),
}
_EXTRAS: Final = {"training": "training", "export": "cpu,export", "heat maps": "training"}
console: Final = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def require(what: str) -> None:
    """Check that what a command needs is installed, without importing it.

    Args:
        what: `training`, `export` or `heat maps`.

    Raises:
        MissingExtraError: names what is missing and the command that installs it.
    """
    missing = [_LIBRARIES[module] for module in _NEEDED[what] if find_spec(module) is None]
    if missing:
        raise MissingExtraError(
            f"{what} {'need' if what.endswith('s') else 'needs'} {' and '.join(missing)}, "
            f"which {'is' if len(missing) == 1 else 'are'} not installed",
            remedy=f"Run: pip install 'sightfix[{_EXTRAS[what]}]'",
        )


def print_next(*words: str) -> None:
    """Print the command that comes next.

    Args:
        words: what follows `sightfix`, quoted here where a shell needs it.
    """
    console.print(f"Next: sightfix {shlex.join(words)}", markup=False, soft_wrap=True)


def parse_bytes(text: str) -> int:
    """Bytes of a text such as ``16G``, ``512M``, ``1.5TB`` (powers of 1000) or ``16GiB`` (of 1024).

    Raises:
        ParameterError: not a size.
    """
    return _parse(text, "a size", "16G")


def parse_count(text: str) -> int:
    """A number such as ``50M``, ``1.2B`` or ``300000``.

    Raises:
        ParameterError: not a number, or less than 1.
    """
    count = _parse(text, "a number", "50M")
    if count < 1:
        raise ParameterError(f"{text!r} is not at least 1", remedy="Write it like 50M")
    return count


def _parse(text: str, what: str, example: str) -> int:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ParameterError(f"{text!r} is not {what}", remedy=f"Write it like {example}")
    number, prefix, binary = match.groups()
    return round(float(number) * float((1024 if binary else 1000) ** _POWERS[prefix]))


def distance_text(metres: float) -> str:
    """Such as ``3.2 m``, ``180 m``, ``1.4 km`` or ``539 km``."""
    if metres >= 10_000:
        return f"{metres / 1000:.0f} km"
    if metres >= 1000:
        return f"{metres / 1000:.1f} km"
    return f"{metres:.0f} m" if metres >= 10 else f"{metres:.1f} m"


def plain_table(*columns: str, right: Collection[str] = (), title: str | None = None) -> Table:
    """A table without lines.

    Args:
        columns: their headings.
        right: those whose values stand at the right, such as numbers.
        title: above the table.
    """
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left")
    return table


def new_progress(errors: Console, *further: TextColumn) -> Progress:
    """A progress bar that is removed when it ends; without a terminal nothing is shown, not even blank lines.

    Args:
        errors: the console to show it on.
        further: columns beside description, bar, count, rate and time left. Tasks have the field `rate`.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        *further,
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal)


@contextlib.contextmanager
def progress_bar(what: str, total: int | None, unit: str = "photos") -> Iterator[Callable[[int], None]]:
    """Show a bar with rate and time left; yields the function that advances it.

    Args:
        what: what is being done.
        total: how many there are, or None if unknown.
        unit: what is counted.
    """
    with new_progress(Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total, rate="")

        def advance(count: int) -> None:
            progress.advance(task, count)
            speed = progress.tasks[0].speed
            if speed:
                progress.update(task, rate=f"{speed:.1f} {unit}/s")

        yield advance


def print_answer(answer: "LocalizeAnswer", shown: int = 5) -> None:
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
        reranked = any(match.inliers is not None for match in answer.matches)
        numbers = ("#", "score", *(["inliers"] if reranked else []), "lat", "lon")
        table = plain_table(*numbers, right=numbers)
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
        f"[dim]{counted(answer.index.size, 'reference')} in {answer.index.name}; {timings.total:.0f} ms: "
        f"decode {timings.decode:.0f}, describe {timings.describe:.0f}, search {timings.search:.1f}{reranking}[/]"
    )
