"""`sightfix export`: a checkpoint in, a bundle out."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a checkpoint, such as runs/RECIPE/best")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle")],
    name: Annotated[str | None, typer.Option(help="Of the bundle; the recipe's if left out")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a bundle that is there")] = False,
) -> None:
    """Turn a trained checkpoint into a bundle that index and server use."""
    from sightfix.console import console
    from sightfix.extras import require

    require("export")
    from export.checkpoint_bundle import export_checkpoint

    with console.status("Exporting"):
        bundle = export_checkpoint(checkpoint, out, name=name, replace=replace)
    parity = bundle.manifest.parity
    size_mb = sum(record.size for record in bundle.manifest.files.values()) / 1e6
    close = f", worst cosine to {parity.reference} {parity.min_cosine:.7f}" if parity else ""
    console.print(f"[green]exported[/] {escape(str(out))}: {bundle.name}, {size_mb:.1f} MB{close}")
    console.print(f"Next: sightfix index PHOTOS --bundle {escape(str(out))}")
