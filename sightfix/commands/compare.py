"""`sightfix compare`: train several recipes with several seeds, evaluate them alike, and write one table."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.text import Text

from retrieval.errors import ParameterError, counted
from sightfix.commands.options import open_eval_sets
from sightfix.commands.train import ConsoleObserver, training_photos
from sightfix.console import console, plain_table, require
from training.run.observing import ComparisonObserver

if TYPE_CHECKING:
    from training.comparison.definition import Comparison
    from training.comparison.report import ComparisonReport
    from training.recipe_settings import Recipe
    from training.run.train import TrainSettings

FIGURE_NAME = "comparison.png"


def compare(
    recipes: Annotated[list[str] | None, typer.Argument(help="Names of recipes, or .toml files")] = None,
    train: Annotated[str | None, typer.Option(help="Photos to train on: a folder, a CSV, or a spec")] = None,
    eval_: Annotated[
        list[str] | None,
        typer.Option("--eval", help="Name of an evaluation set; repeatable, each with the two options that follow"),
    ] = None,
    eval_database: Annotated[
        list[str] | None, typer.Option(help="The photos to find, one spec for each --eval")
    ] = None,
    eval_queries: Annotated[list[str] | None, typer.Option(help="The queries, one spec for each --eval")] = None,
    out: Annotated[Path, typer.Option(help="Folder of runs, tables and figure")] = Path("comparison"),
    seeds: Annotated[int, typer.Option(help="Train each recipe so many times, with training.seed 0, 1, …")] = 3,
    radius: Annotated[
        list[float] | None, typer.Option(help="Metres within which a match is right; repeatable; 25 and 10 if left out")
    ] = None,
    checkpoint: Annotated[
        list[str] | None, typer.Option(help="LABEL=DIR: an existing checkpoint as a further row; repeatable")
    ] = None,
    baseline: Annotated[str, typer.Option(help="Differences are to this objective, or row")] = "triplet",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="table.key=value over that of all recipes; repeatable")
    ] = None,
    hold_out: Annotated[
        float,
        typer.Option(help="Share of the training photos to choose each run's best checkpoint by; 0: take the last"),
    ] = 0.0,
    cache: Annotated[Path, typer.Option(help="Folder of decoded photos, shared by all runs")] = Path("photo-cache"),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    max_unreadable: Annotated[int, typer.Option(min=0, help="Training photos that may be left out as undecodable")] = 0,
) -> None:
    """Compare objectives: recipes × seeds trained, evaluated, and put into one table; the same command goes on."""
    from sightfix.figures.plotting import matplotlib_figure

    if not recipes and not checkpoint:
        raise ParameterError(
            "there is nothing to compare", remedy="Give recipes (sightfix train lists them), or --checkpoint LABEL=DIR"
        )
    matplotlib_figure()
    require("training")
    from training.comparison.definition import DEFAULT_RADII_M, Comparison
    from training.run.device import DeviceSettings
    from training.run.train import TrainSettings

    comparison = Comparison(
        recipes=tuple(_recipes(recipes or [], set_ or [])),
        photos=None if train is None else training_photos(train, hold_out, "choose the best checkpoints by"),
        eval_sets=tuple(open_eval_sets(eval_ or [], eval_database or [], eval_queries or [])),
        seeds=seeds,
        checkpoints=_checkpoints(checkpoint or []),
        radii_m=tuple(radius or DEFAULT_RADII_M),
        baseline=baseline,
    )
    console.print(_headline(comparison))
    _compare(comparison, out, TrainSettings(cache, DeviceSettings(device), max_unreadable))  # type: ignore[arg-type]


def _compare(comparison: "Comparison", out: Path, settings: "TrainSettings") -> None:
    from training.comparison.compare import compare as run_comparison
    from training.run.training_run import TrainingStoppedError

    try:
        report = run_comparison(comparison, out, settings, ConsoleComparisonObserver(out))
    except TrainingStoppedError as stopped:
        console.print(f"[yellow]{escape(str(stopped))}[/]")
        raise typer.Exit(128 + stopped.signal_number) from stopped
    print_report(report)
    console.print(f"[green]wrote[/] table.md, table.csv and comparison.png in {escape(str(out))}")


def _recipes(names: Sequence[str], overrides: Sequence[str]) -> "list[Recipe]":
    from training.recipe import load_recipe

    for override in overrides:
        if override.partition("=")[0].strip() == "training.seed":
            raise ParameterError(
                "training.seed is what --seeds counts", where=f"--set {override}", remedy="Give --seeds instead"
            )
    return [load_recipe(name, overrides) for name in names]


def _checkpoints(given: Sequence[str]) -> dict[str, Path]:
    checkpoints: dict[str, Path] = {}
    for text in given:
        label, equals, folder = text.partition("=")
        if not equals or not label or not folder:
            raise ParameterError(f"--checkpoint {text!r} is not LABEL=DIR", remedy="Write such as mine=runs/mine/best")
        if label in checkpoints:
            raise ParameterError(
                f"the label {label!r} is given to two checkpoints", remedy="Give each a label of its own"
            )
        checkpoints[label] = Path(folder)
    return checkpoints


def _headline(comparison: "Comparison") -> str:
    sets = ", ".join(
        f"{photos.name} ({counted(len(photos.queries), 'query')}, {counted(len(photos.database), 'photo')})"
        for photos in comparison.eval_sets
    )
    train = "" if comparison.photos is None else f"{counted(len(comparison.photos.training), 'photo')} to train on; "
    runs, further = len(comparison.runs), len(comparison.checkpoints)
    return (
        f"[bold]{counted(runs, 'run')}[/], {counted(further, 'further checkpoint')}; {train}evaluated on {escape(sets)}"
    )


class ConsoleComparisonObserver(ConsoleObserver, ComparisonObserver):
    """Prints a comparison as it goes, and draws the figure anew with every table.

    Args:
        folder: of the comparison.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run_begins(self, number: int, total: int, label: str, seed: int, *, done: bool) -> None:
        """A headline for each run."""
        before = "  [dim]done before[/]" if done else ""
        console.print(f"[bold]{number} of {total}: {escape(label)}, seed {seed}[/]{before}")

    def warning(self, text: str) -> None:
        """A line that begins in yellow."""
        console.print(f"[yellow]warning[/] {escape(text)}")

    def reported(self, report: "ComparisonReport") -> None:
        """The figure beside the table."""
        from sightfix.figures.comparison import write_comparison_figure

        write_comparison_figure(report, self._folder / FIGURE_NAME)


def print_report(report: "ComparisonReport") -> None:
    """Print recall@1 of every row, whether the paper's ordering holds, and what is missing; files hold the rest."""
    from training.comparison.table_text import contrast_sentence, epochs_text, percent, row_name, seeds_text

    first = [(index, column) for index, column in enumerate(report.columns) if column.n == 1]
    numbers = ("seeds", "epochs", *(f"{column.eval_set}\n{column.radius_m:g} m" for _, column in first))
    table = plain_table("method", "backbone", *numbers, right=numbers, title="Recall@1, %")
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
