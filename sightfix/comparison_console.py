"""What the command line shows of a comparison: a headline a run, the run's own lines, and the final table."""

from pathlib import Path

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sightfix.comparison_figure import write_comparison_figure
from sightfix.console import console
from sightfix.training_console import ConsoleObserver
from training.comparison.comparison_observer import ComparisonObserver
from training.comparison.report import ComparisonReport
from training.comparison.table_text import contrast_sentence, epochs_text, percent, row_name, seeds_text

FIGURE_NAME = "comparison.png"


class ConsoleComparisonObserver(ConsoleObserver, ComparisonObserver):
    """Prints a comparison as it goes, and draws the figure anew with every table.

    Args:
        folder: of the comparison.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def run_begins(self, number: int, total: int, label: str, seed: int, *, done: bool) -> None:
        """One headline a run."""
        before = "  [dim]done before[/]" if done else ""
        console.print(f"[bold]{number} of {total}: {escape(label)}, seed {seed}[/]{before}")

    def warning(self, text: str) -> None:
        """A line that begins in yellow."""
        console.print(f"[yellow]warning[/] {escape(text)}")

    def reported(self, report: ComparisonReport) -> None:
        """The figure beside the table."""
        write_comparison_figure(report, self._folder / FIGURE_NAME)


def print_report(report: ComparisonReport) -> None:
    """Print recall@1 of every row, whether the paper's ordering holds, and what is missing; files hold the rest."""
    table = Table(box=None, pad_edge=False, title="Recall@1, %", title_justify="left", title_style="bold")
    table.header_style = "dim"
    first = [(index, column) for index, column in enumerate(report.columns) if column.n == 1]
    for heading in ("method", "backbone"):
        table.add_column(heading, no_wrap=True)
    for heading in ("seeds", "epochs", *(f"{column.eval_set}\n{column.radius_m:g} m" for _, column in first)):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row("queries", "", "", "", *(str(column.queries) for _, column in first), style="dim")
    table.add_row("chance", "", "", "", *(f"{100 * column.chance:.1f}" for _, column in first), style="dim")
    for row in report.rows:
        table.add_row(
            *(Text(row_name(row.row)), Text(row.row.backbone), seeds_text(row), epochs_text(row.epochs)),
            *(Text(percent(row.cells[index].recall)) for index, _ in first),
        )
    console.print()
    console.print(table)
    for contrast in report.contrasts:
        if contrast.verdict:
            console.print(escape(contrast_sentence(contrast)))
    for missing in report.missing:
        console.print(f"[yellow]missing[/] {escape(missing)}")
