"""How far the indexing is, on the console: a bar in a terminal, a line now and then in a log."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Final, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from index_builder.update_watch import LeftOut, UpdateStep, UpdateWatch
from sightfix.index_console import duration_text

_LINE_EVERY_S: Final = 30.0
_WHAT_FOLLOWS: Final[dict[UpdateStep, str]] = {
    "draft opened": "Listing the photos",
    "planned": "Describing",
    "described": "Writing the index",
    "manifest written": "Checking the index",
}


class IndexingProgress(UpdateWatch):
    """Shows what is done, at which rate, how long it will take, and how many photos failed.

    Args:
        errors: where to show it.
    """

    def __init__(self, errors: Console) -> None:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("[red]{task.fields[failed]}[/]"),
            TimeRemainingColumn(),
        )
        self._errors = errors
        self.bar = Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal)
        self._task = self.bar.add_task("Listing the photos", total=None, rate="", failed="")
        self._total = 0
        self._began: tuple[float, int] | None = None
        self._told = time.monotonic()

    @classmethod
    @contextlib.contextmanager
    def shown(cls) -> Iterator[Self]:
        """Show it on the standard error stream."""
        progress = cls(Console(stderr=True))
        with progress.bar:
            yield progress

    def reached(self, step: UpdateStep) -> None:
        """Say what comes next."""
        what = _WHAT_FOLLOWS.get(step)
        if what is not None:
            self.bar.update(self._task, description=what, rate="")

    def planned(self, total: int) -> None:
        """So many photos are to be described."""
        self._total = total
        self.bar.update(self._task, total=total)

    def local_features(self, done: int, total: int, without: Sequence[LeftOut]) -> None:
        """The local features of so many are written."""
        if done == 1:
            self.bar.reset(self._task, total=total, description="Finding local features", rate="", failed="")
        self.bar.update(self._task, completed=done)

    def described(self, done: int, failed: int) -> None:
        """So many are."""
        if self._began is None:
            # What an earlier run described does not count for the rate, nor does the first batch of this one.
            self._began = (time.monotonic(), done)
            self.bar.reset(self._task, total=self._total, completed=done)
        started, before = self._began
        rate = (done - before) / max(1e-3, time.monotonic() - started)
        self.bar.update(
            self._task,
            completed=done,
            rate=f"{rate:.1f} photos/s" if done > before else "",
            failed=f"{failed} unreadable" if failed else "",
        )
        if self.bar.disable and done > before and time.monotonic() - self._told > _LINE_EVERY_S:
            self._told = time.monotonic()
            left = duration_text((self._total - done) / rate)
            unreadable = f", {failed} unreadable" if failed else ""
            self._errors.print(
                f"described {done} of {self._total} photos, {rate:.1f} photos/s, {left} left{unreadable}",
                soft_wrap=True,
            )

    def not_pruned(self, problem: str) -> None:
        """The new version is there; the old ones are still there too."""
        self._errors.print(f"[yellow]old versions stay:[/] {escape(problem)}", soft_wrap=True)
