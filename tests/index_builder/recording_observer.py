"""A observer that writes down what it was told, and stops an update where a test wants it."""

from collections.abc import Callable, Sequence

from index_builder.update_observer import Update, UpdateObserver, UpdateStep
from retrieval.images import LeftOut


class StoppedError(Exception):
    """The test stopped the update."""


class RecordingObserver(UpdateObserver):
    """Remembers everything; calls `on_step` after each step."""

    def __init__(self, on_step: Callable[[UpdateStep], None] = lambda _: None) -> None:
        self.steps: list[UpdateStep] = []
        self.skipped: list[LeftOut] = []
        self.failures: list[LeftOut] = []
        self.totals: list[int] = []
        self.progress: list[tuple[int, int]] = []
        self.update: Update | None = None
        self.not_pruned_for: list[str] = []
        self._on_step = on_step

    def reached(self, step: UpdateStep) -> None:
        self.steps.append(step)
        self._on_step(step)

    def listed(self, count: int, left_out: Sequence[LeftOut]) -> None:
        self.skipped.extend(left_out)

    def planned(self, total: int) -> None:
        self.totals.append(total)

    def described(self, done: int, failed: int) -> None:
        self.progress.append((done, failed))

    def unreadable(self, photos: Sequence[LeftOut]) -> None:
        self.failures.extend(photos)

    def publishing(self, update: Update) -> None:
        self.update = update

    def not_pruned(self, problem: str) -> None:
        self.not_pruned_for.append(problem)


def stop_at(step: UpdateStep, count: int = 1) -> Callable[[UpdateStep], None]:
    """Raises when a step is reached for the `count`-th time."""
    left = count

    def on_step(reached: UpdateStep) -> None:
        nonlocal left
        if reached == step:
            left -= 1
            if left == 0:
                raise StoppedError

    return on_step
