"""`sightfix explain`: where a descriptor looks in a photo, and where the score of two photos comes from."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.markup import escape

from retrieval.errors import ParameterError
from sightfix.console import console, require

if TYPE_CHECKING:
    from retrieval.images import RgbImage
    from sightfix.figures.heat_map import ExplainedPhoto
    from training.encoder import Encoder

_SHIPPED_RECIPE: Final = "simclr-efficientnet-lite0"


def explain(
    photo: Annotated[Path, typer.Argument(help="A photo")],
    other: Annotated[Path | None, typer.Argument(help="A photo to compare it with")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Checkpoint to look with; the shipped model's net if left out")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Or the net that this recipe starts from, before any training")
    ] = None,
    out: Annotated[Path, typer.Option(help="The figure: FILE.png, .svg, .pdf or .jpg")] = Path("heat.png"),
) -> None:
    """Draw where the descriptor looks in a photo, or where the score of two photos comes from."""
    from retrieval.images import decode_image, read_image_bytes
    from sightfix.figures.heat_map import check_figure_path, write_heat_map_figure

    if checkpoint is not None and recipe is not None:
        raise ParameterError("both --checkpoint and --recipe are given", remedy="Give one: a checkpoint has its recipe")
    check_figure_path(out)
    paths = [photo] if other is None else [photo, other]
    encoded = [read_image_bytes(path) for path in paths]
    require("heat maps")
    with console.status("Computing heat maps"):
        encoder = _encoder(checkpoint, recipe)
        views = [
            decode_image(data, encoder.preprocessing, where=str(path))
            for data, path in zip(encoded, paths, strict=True)
        ]
        photos, score = _explained(encoder, paths, views)
        provenance = encoder.provenance
        trained = f"trained by {provenance.objective}" if provenance.objective else provenance.training_data
        model = f"{provenance.backbone}, {provenance.aggregation}, {trained}"
        write_heat_map_figure(photos, score if other is not None else None, model, out)
    _print(photos, score if other is not None else None)
    console.print(f"[green]wrote[/] {escape(str(out))}", soft_wrap=True)


def _encoder(checkpoint: Path | None, recipe: str | None) -> "Encoder":
    from training.checkpoint import load_encoder
    from training.encoder import build_encoder
    from training.recipe import load_recipe

    if checkpoint is not None:
        return load_encoder(checkpoint)
    settings = load_recipe(recipe or _SHIPPED_RECIPE)
    encoder = build_encoder(settings.network, settings.image)
    encoder.net.eval()
    return encoder


def _explained(encoder: "Encoder", paths: list[Path], views: "list[RgbImage]") -> "tuple[list[ExplainedPhoto], float]":
    from sightfix.figures.heat_map import ExplainedPhoto
    from training.heat_maps import energy_share, heat_maps

    first, last = views[0][None], views[-1][None]
    maps = heat_maps(encoder, first, last if len(views) == 2 else first)
    sides = [(maps.activation_a, maps.match_a), (maps.activation_b, maps.match_b)]
    photos = [
        ExplainedPhoto(
            name=path.name,
            view=view,
            activation=activation[0],
            match=match[0],
            activation_share=float(energy_share(activation)[0]),
            match_share=float(energy_share(match)[0]),
        )
        for path, view, (activation, match) in zip(paths, views, sides, strict=False)
    ]
    return photos, float(maps.scores[0])


def _print(photos: "list[ExplainedPhoto]", score: float | None) -> None:
    if score is not None:
        console.print(f"score {score:.3f}")
    what = "own descriptor" if score is None else "match"
    for photo in photos:
        console.print(
            f"{escape(photo.name)}: the top 10 % of locations hold {_percent(photo.activation_share)} of the "
            f"activation, {_percent(photo.match_share)} of the {what}",
            soft_wrap=True,
        )


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %" if share == share else "nothing"
