"""`sightfix train`: geo-tagged photos in, a checkpoint out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from retrieval.errors import ParameterError, counted
from sightfix.console import console, print_next, progress_bar, require
from training.run.observing import EpochSummary, RunObserver

if TYPE_CHECKING:
    from training.recipe_settings import Recipe
    from training.run.train import TrainingPhotos


def train(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe's name, or a .toml file; without one, list them")
    ] = None,
    photos: Annotated[str | None, typer.Option(help="Photos to train on: a folder, a CSV, or a spec")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/RECIPE if left out")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="table.key=value over the recipe's; repeatable")
    ] = None,
    validation_database: Annotated[str | None, typer.Option(help="Photos to measure recall on: the database")] = None,
    validation_queries: Annotated[str | None, typer.Option(help="And the queries to find in it")] = None,
    hold_out: Annotated[
        float, typer.Option(help="Else: share of the photos, at one end of the area, to measure recall on; 0 for none")
    ] = 0.15,
    cache: Annotated[Path, typer.Option(help="Folder of decoded photos, shared by all runs")] = Path("photo-cache"),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    devices: Annotated[int, typer.Option(min=1, help="GPUs that train together")] = 1,
    max_unreadable: Annotated[int, typer.Option(min=0, help="Photos that may be left out as undecodable")] = 0,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew instead of going on")] = False,
) -> None:
    """Train a place descriptor on geo-tagged photos; the same command goes on with an interrupted run."""
    if recipe is None:
        _list_recipes()
        return
    if photos is None:
        raise ParameterError("there are no photos to train on", remedy="Add --photos FOLDER, or a CSV or spec")
    require("training")
    from training.recipe import load_recipe
    from training.run.device import DeviceSettings
    from training.run.train import TrainSettings
    from training.run.train import train as train_recipe
    from training.run.training_run import TrainingStoppedError

    settings = load_recipe(recipe, set_ or [])
    chosen = _photos(photos, validation_database, validation_queries, hold_out)
    folder = out or Path("runs") / settings.name
    console.print(_headline(settings, chosen))
    how = TrainSettings(
        cache=cache,
        device=DeviceSettings(device, devices),  # type: ignore[arg-type]
        max_unreadable=max_unreadable,
        restart=restart,
    )
    try:
        result = train_recipe(settings, chosen, folder, how, ConsoleObserver())
    except TrainingStoppedError as stopped:
        console.print(f"[yellow]{escape(str(stopped))}[/]")
        raise typer.Exit(128 + stopped.signal_number) from stopped
    console.print(f"[green]trained[/] {escape(str(result.best))}, {counted(result.progress.epoch, 'epoch')}")
    if result.progress.best_epoch:
        recall, at = 100 * result.progress.best_recall, settings.validation.recall_at
        console.print(f"best after epoch {result.progress.best_epoch}: validation R@{at} {recall:.1f} %")
    print_next("explain", "PHOTO", "--checkpoint", str(result.best))


def _list_recipes() -> None:
    from training.recipe import list_recipes

    console.print("Recipes; choose one: sightfix train RECIPE --photos FOLDER\n")
    for name, description in list_recipes().items():
        console.print(f"  [bold]{name:32}[/] {escape(description)}")


def _photos(spec: str, database: str | None, queries: str | None, share: float) -> "TrainingPhotos":
    """Open the photos, and set some aside where no others are given to validate on."""
    from retrieval.references import open_references
    from training.photos.hold_out import ValidationPhotos
    from training.run.train import TrainingPhotos

    if (database is None) != (queries is None):
        raise ParameterError(
            "validation needs a database and queries",
            remedy="Give both --validation-database and --validation-queries, or neither",
        )
    if database is None or queries is None:
        return training_photos(spec, share, "measure recall on")
    source = open_references(spec)
    validation = ValidationPhotos(tuple(open_references(database)), tuple(open_references(queries)))
    return TrainingPhotos(source.root.name or spec, list(source), validation)


def training_photos(spec: str, share: float, purpose: str) -> "TrainingPhotos":
    """Open photos to train on, and hold some out.

    Args:
        spec: of the photos.
        share: of the photos to hold out, 0 to 1.
        purpose: of those held out, for people: "measure recall on".
    """
    from retrieval.references import open_references
    from training.photos.hold_out import hold_out
    from training.run.train import TrainingPhotos

    source = open_references(spec)
    references, name = list(source), source.root.name or spec
    if share == 0:
        return TrainingPhotos(name, references)
    held = hold_out(references, share)
    found, asked = len(held.validation.database), len(held.validation.queries)
    console.print(
        f"[dim]held out to {purpose}: {counted(found, 'photo')} to find, {counted(asked, 'query')}; "
        f"{held.margin:,} more lie too near to them to train on[/]"
    )
    return TrainingPhotos(name, held.training, held.validation)


def _headline(recipe: "Recipe", photos: "TrainingPhotos") -> str:
    return (
        f"[bold]{escape(recipe.name)}[/]  {recipe.objective.name} on {recipe.network.backbone}, "
        f"{recipe.image.height}×{recipe.image.width}, {counted(len(photos.training), 'photo')}, "
        f"{counted(recipe.training.pairs, 'pair')} a batch, {counted(recipe.training.epochs, 'epoch')} at most"
    )


class ConsoleObserver(RunObserver):
    """Prints a run as it goes."""

    @contextmanager
    def work(self, what: str, total: int, unit: str = "photos") -> Iterator[Callable[[int], None]]:
        """A bar with rate and time left."""
        with progress_bar(what, total, unit) as advance:
            yield advance

    def note(self, text: str) -> None:
        """A dim line."""
        console.print(f"[dim]{escape(text)}[/]")

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
        console.print(f"[bold]{name}[/]  {'  '.join(parts)}{best}")
        if summary.warning:
            console.print(f"[yellow]warning[/] {escape(summary.warning)}")
