"""Who watches a comparison."""

from training.comparison.report import ComparisonReport
from training.run_observer import RunObserver


class ComparisonObserver(RunObserver):
    """Is told what a comparison does, and through the inherited methods what each run does."""

    def run_begins(self, number: int, total: int, label: str, seed: int, *, done: bool) -> None:
        """A run is next.

        Args:
            number: of the run, from 1.
            total: how many runs there are.
            label: the recipe's name.
            seed: of the run.
            done: whether it was trained and evaluated before, so that nothing is left to do.
        """

    def warning(self, text: str) -> None:
        """Something that makes numbers less than they seem, or missing."""

    def reported(self, report: ComparisonReport) -> None:
        """Table and CSV were written anew."""
