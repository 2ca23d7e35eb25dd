"""What came of the items of gpu_check: passed, failed, or skipped with the reason."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Status = Literal["PASS", "FAIL", "SKIPPED"]


class SkippedError(Exception):
    """The item cannot be checked here; says why."""


class FailedError(Exception):
    """The item was checked and is not as it should be; says what was measured."""


@dataclass(frozen=True)
class Outcome:
    """One line of the report."""

    item: str
    status: Status
    detail: str

    def __str__(self) -> str:
        return f"{self.status:<7} {self.item}: {self.detail}"


@dataclass(frozen=True)
class Timing:
    """One line of the table of speeds: what computed, in which precision, how many at once, how long."""

    runtime: str
    precision: str
    batch: int
    milliseconds: float

    @property
    def images_per_second(self) -> float:
        """Throughput at this batch size."""
        return 1000.0 * self.batch / self.milliseconds


@dataclass
class Report:
    """Everything that was found, in order."""

    outcomes: list[Outcome] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)

    def check(self, item: str, function: Callable[[], str]) -> Outcome:
        """Run one item; whatever it raises is its outcome and never ends the script."""
        try:
            outcome = Outcome(item, "PASS", function())
        except SkippedError as reason:
            outcome = Outcome(item, "SKIPPED", str(reason))
        except FailedError as found:
            outcome = Outcome(item, "FAIL", str(found))
        except Exception as error:
            outcome = Outcome(item, "FAIL", f"{type(error).__name__}: {error}")
        self.outcomes.append(outcome)
        return outcome

    @property
    def exit_code(self) -> int:
        """1 when anything failed; what was skipped is no failure."""
        return 1 if any(outcome.status == "FAIL" for outcome in self.outcomes) else 0

    def markdown(self, title: str) -> str:
        """The whole report for RESULTS.md."""
        lines = [f"# GPU check: {title}", "", "| item | result | detail |", "|---|---|---|"]
        lines += [f"| {o.item} | {o.status} | {_cell(o.detail)} |" for o in self.outcomes]
        lines += ["", "| runtime | precision | batch | ms (median) | images/s |", "|---|---|---|---|---|"]
        lines += [
            f"| {t.runtime} | {t.precision} | {t.batch} | {t.milliseconds:.2f} | {t.images_per_second:.0f} |"
            for t in self.timings
        ]
        if not self.timings:
            lines.append("| nothing was measured | | | | |")
        counts = [f"{sum(o.status == s for o in self.outcomes)} {s}" for s in ("PASS", "FAIL", "SKIPPED")]
        return "\n".join([*lines, "", ", ".join(counts), ""])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
