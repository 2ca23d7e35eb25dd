"""`sightfix compare`: train several recipes with several seeds, evaluate them alike, and write one table."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

if TYPE_CHECKING:
    from training.comparison.compare import CompareSettings
    from training.comparison.plan import ComparisonPlan
    from training.recipe import Recipe
    from training.train import TrainingPhotos


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
    from retrieval.errors import ParameterError
    from sightfix.console import console
    from sightfix.eval_set_options import open_eval_sets
    from sightfix.extras import require
    from sightfix.matplotlib_figure import matplotlib_figure

    if not recipes and not checkpoint:
        raise ParameterError(
            "there is nothing to compare", remedy="Give recipes (sightfix train lists them), or --checkpoint LABEL=DIR"
        )
    matplotlib_figure()
    require("training")
    from training.comparison.compare import CompareSettings
    from training.comparison.plan import DEFAULT_RADII_M, ComparisonPlan
    from training.run_device import DeviceSettings

    plan = ComparisonPlan(
        recipes=tuple(_recipes(recipes or [], set_ or [])),
        photos=None if train is None else _training_photos(train, hold_out),
        eval_sets=tuple(open_eval_sets(eval_ or [], eval_database or [], eval_queries or [])),
        seeds=seeds,
        checkpoints=_checkpoints(checkpoint or []),
        radii_m=tuple(radius or DEFAULT_RADII_M),
        baseline=baseline,
    )
    console.print(_headline(plan))
    _compare(plan, out, CompareSettings(cache, DeviceSettings(device), max_unreadable))  # type: ignore[arg-type]


def _compare(plan: "ComparisonPlan", out: Path, settings: "CompareSettings") -> None:
    from sightfix.comparison_console import ConsoleComparisonObserver, print_report
    from sightfix.console import console
    from training.comparison.compare import compare as compare_plan
    from training.training_run import TrainingStoppedError

    try:
        report = compare_plan(plan, out, settings, ConsoleComparisonObserver(out))
    except TrainingStoppedError as stopped:
        console.print(f"[yellow]{escape(str(stopped))}[/]")
        raise typer.Exit(128 + stopped.signal_number) from stopped
    print_report(report)
    console.print(f"[green]wrote[/] table.md, table.csv and comparison.png in {escape(str(out))}")


def _recipes(names: Sequence[str], overrides: Sequence[str]) -> "list[Recipe]":
    from retrieval.errors import ParameterError
    from training.recipe import load_recipe

    for override in overrides:
        if override.partition("=")[0].strip() == "training.seed":
            raise ParameterError(
                "training.seed is what --seeds counts", where=f"--set {override}", remedy="Give --seeds instead"
            )
    return [load_recipe(name, overrides) for name in names]


def _training_photos(spec: str, share: float) -> "TrainingPhotos":
    from retrieval.references import open_references
    from sightfix.console import console
    from training.hold_out import hold_out
    from training.train import TrainingPhotos

    source = open_references(spec)
    references = list(source)
    name = source.root.name or spec
    if share == 0:
        return TrainingPhotos(name, references)
    held = hold_out(references, share)
    console.print(
        f"[dim]held out to choose the best checkpoints by: {len(held.validation.database)} photos to find, "
        f"{len(held.validation.queries)} queries; {held.margin} more lie too near to them to train on[/]"
    )
    return TrainingPhotos(name, held.training, held.validation)


def _checkpoints(given: Sequence[str]) -> dict[str, Path]:
    from retrieval.errors import ParameterError

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


def _headline(plan: "ComparisonPlan") -> str:
    sets = ", ".join(
        f"{photos.name} ({len(photos.queries)} queries, {len(photos.database)} photos)" for photos in plan.eval_sets
    )
    train = "" if plan.photos is None else f"{len(plan.photos.training)} photos to train on; "
    runs = len(plan.runs)
    return (
        f"[bold]{runs} {'run' if runs == 1 else 'runs'}[/], {len(plan.checkpoints)} further checkpoints; {train}"
        f"evaluated on {escape(sets)}"
    )
