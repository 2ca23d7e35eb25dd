"""What the command line shows of a training run: bars while it works, one line an epoch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.markup import escape

from sightfix.console import console, progress_bar
from training.run_observer import EpochSummary, RunObserver


class ConsoleObserver(RunObserver):
    """Prints a run as it goes.

    Args:
        prefix: before each line, such as the name of one of several runs.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = f"[dim]{escape(prefix)}[/] " if prefix else ""

    @contextmanager
    def work(self, what: str, total: int, unit: str = "photos") -> Iterator[Callable[[int], None]]:
        """A bar with rate and time left."""
        with progress_bar(what, total, unit) as advance:
            yield advance

    def note(self, text: str) -> None:
        """A dim line."""
        console.print(f"{self._prefix}[dim]{escape(text)}[/]")

    def epoch_ended(self, summary: EpochSummary) -> None:
        """Loss, recall and rate; a warning on a line of its own."""
        parts = []
        if summary.loss is not None:
            parts.append(f"loss {summary.loss:.4f}")
        parts.extend(f"{name} {100 * value:.1f} %" for name, value in summary.recalls.items())
        if summary.recalls and summary.chance is not None:
            parts.append(f"(chance R@1 {100 * summary.chance:.1f} %)")
        if summary.photos_per_second is not None:
            parts.append(f"{summary.photos_per_second:.1f} img/s")
        name = "untrained" if summary.epoch == 0 else f"epoch {summary.epoch} of {summary.epochs}"
        best = "  [green]best so far[/]" if summary.best else ""
        console.print(f"{self._prefix}[bold]{name}[/]  {'  '.join(parts)}{best}")
        if summary.warning:
            console.print(f"{self._prefix}[yellow]warning[/] {escape(summary.warning)}")

    def saved(self, folder: Path) -> None:
        """Nothing: a checkpoint follows every epoch."""
