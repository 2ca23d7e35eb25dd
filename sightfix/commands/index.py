"""`sightfix index`: photos in, a published place index out."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from retrieval.index_folder import DEFAULT_INDEXES
from sightfix.describer_options import (
    CpuFallbackOption,
    PrecisionOption,
    ProviderOption,
    ThreadsOption,
    make_describer,
)


def index(
    source: Annotated[
        str, typer.Argument(help="The photos: a folder, a CSV, or a spec such as exif:photos/ or csv:refs.csv")
    ],
    name: Annotated[str, typer.Option(help="Name of the place index")] = "default",
    indexes: Annotated[Path, typer.Option(help="Folder of all place indexes")] = DEFAULT_INDEXES,
    bundle: Annotated[Path | None, typer.Option(help="Bundle to describe with; the shipped one if left out")] = None,
    storage: Annotated[str, typer.Option(help="Of the vectors: fp16 or fp32")] = "fp16",
    provider: ProviderOption = None,
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    allow_cpu_fallback: CpuFallbackOption = None,
    batch_size: Annotated[int, typer.Option(min=1, max=1024, help="Photos described at once")] = 16,
    max_unreadable: Annotated[int, typer.Option(min=0, help="Photos that may be left out as undecodable")] = 0,
    keep: Annotated[int, typer.Option(min=1, help="Versions that remain, the new one included")] = 3,
) -> None:
    """Describe geo-tagged photos and publish them as a place index."""
    from collections import Counter

    from index_builder.building import BuildSettings, build_index
    from index_builder.describing import DescribeSettings
    from retrieval.errors import ParameterError
    from retrieval.index_folder import check_index_name
    from retrieval.references import open_references
    from sightfix.console import console, progress_bar

    if storage not in ("fp16", "fp32"):
        raise ParameterError(f"storage {storage!r} is unknown", remedy="Choose fp16 or fp32")
    check_index_name(name)
    references = open_references(source)
    describer = make_describer(bundle, provider, precision, threads, allow_cpu_fallback)
    settings = BuildSettings(
        storage=storage,  # type: ignore[arg-type]
        describe=DescribeSettings(batch_size=batch_size, max_unreadable=max_unreadable),
        keep=keep,
    )
    with progress_bar("Describing", len(references)) as advance:
        built = build_index(references, describer, indexes, name, settings, on_progress=advance)
    manifest = built.manifest
    for photo in built.unreadable:
        console.print(f"[yellow]left out[/] {escape(str(photo.error))}")
    for reason, count in Counter(skipped.reason for skipped in references.skipped).most_common():
        first = next(skipped.path for skipped in references.skipped if skipped.reason == reason)
        console.print(f"[yellow]left out[/] {count} photos: {reason} (the first: {escape(str(first))})")
    console.print(f"[green]published[/] {manifest.count} references as [bold]{name}[/], version {manifest.version}")
    where = "" if indexes == DEFAULT_INDEXES else f" --indexes {indexes}"
    console.print(f"Next: sightfix serve --index {name}{escape(where)}")
