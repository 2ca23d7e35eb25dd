"""What is shown while photos are indexed: rate, time left, unreadable photos."""

import io
import re

import pytest
from rich.console import Console

from index_builder import update_observer
from sightfix.commands import index as indexing_progress
from sightfix.commands.index import IndexingProgress


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (indexing_progress, update_observer):
        monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_log_gets_a_line_now_and_then(clock: Clock) -> None:
    """4000 of 10,000 were described by an earlier run: they count as done, but not for the rate."""
    written = io.StringIO()
    progress = IndexingProgress(Console(file=written, width=40))
    progress.reached("draft opened")
    progress.planned(10_000)
    progress.reached("planned")
    progress.described(4000, 1)
    for second in range(1, 71):
        clock.now = 100.0 + second
        progress.described(4000 + 20 * second, 1 if second < 60 else 3)
    assert written.getvalue().splitlines() == [
        "described 4,620 of 10,000 photos, 20.0 photos/s, 4.5 min left, 1 unreadable",
        "described 5,240 of 10,000 photos, 20.0 photos/s, 4 min left, 3 unreadable",
    ]


def test_a_short_build_leaves_no_line_in_a_log(clock: Clock) -> None:
    written = io.StringIO()
    progress = IndexingProgress(Console(file=written))
    progress.planned(2)
    progress.described(2, 0)
    progress.described(2, 0)
    assert written.getvalue() == ""


def test_a_terminal_shows_a_bar(clock: Clock) -> None:
    written = io.StringIO()
    progress = IndexingProgress(Console(file=written, force_terminal=True, width=160))
    with progress.bar:
        progress.planned(1000)
        progress.reached("planned")
        progress.described(200, 0)
        clock.now += 10.0
        progress.described(300, 2)
        progress.bar.refresh()
        progress.reached("described")
        progress.bar.refresh()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.getvalue())
    assert re.search(r"Describing .* 300/1000 10\.0 photos/s 2 unreadable", shown)
    assert "Writing the index" in shown
