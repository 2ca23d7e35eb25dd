"""`sightfix index`: photos in, a published place index out."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from retrieval.index_folder import DEFAULT_INDEXES
from retrieval.vectors.index_types import INDEX_TYPES
from sightfix.describer_options import (
    CpuFallbackOption,
    PrecisionOption,
    ProviderOption,
    ThreadsOption,
    make_describer,
)
from sightfix.store_options import (
    IndexesOption,
    StoreBuildOption,
    StoreTypeOption,
    StoreVectorsOption,
    push_settings,
    push_shown,
)


def index(
    source: Annotated[
        str, typer.Argument(help="The photos: a folder, a CSV, or a spec such as exif:photos/ or csv:refs.csv")
    ],
    name: Annotated[str, typer.Option(help="Name of the place index")] = "default",
    indexes: IndexesOption = DEFAULT_INDEXES,
    store: Annotated[
        str | None,
        typer.Option(envvar="SIGHTFIX_STORE", help="Publish in this engine, too, such as milvus://host:19530"),
    ] = None,
    store_type: StoreTypeOption = None,
    store_build: StoreBuildOption = None,
    store_vectors: StoreVectorsOption = "fp32",
    bundle: Annotated[Path | None, typer.Option(help="Bundle to describe with; the shipped one if left out")] = None,
    storage: Annotated[str, typer.Option(help="Of the vectors: fp32, fp16 or int8")] = "fp16",
    type_: Annotated[
        str,
        typer.Option("--type", help=f"Of the index: {', '.join(INDEX_TYPES)}, or auto to try and take what fits best"),
    ] = "exact",
    recall: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Of the ten best by exact search, what an index must return")
    ] = 0.95,
    latency_ms: Annotated[float, typer.Option(min=0.0, help="auto: exact search is taken where it is as quick")] = 20.0,
    memory: Annotated[str | None, typer.Option(help="auto: RAM the vectors may take, such as 16G")] = None,
    whiten: Annotated[int, typer.Option(min=0, help="Numbers to whiten descriptors to; 0: not at all")] = 0,
    local_features: Annotated[
        bool | None,
        typer.Option(
            "--local-features/--no-local-features",
            help="Store points of each photo for re-ranking, up to 68 kB a photo; as in the version before if left out",
        ),
    ] = None,
    provider: ProviderOption = None,
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    allow_cpu_fallback: CpuFallbackOption = None,
    batch_size: Annotated[int, typer.Option(min=1, max=1024, help="Photos described at once")] = 16,
    max_unreadable: Annotated[int, typer.Option(min=0, help="Photos that may be left out as undecodable")] = 0,
    keep: Annotated[int, typer.Option(min=1, help="Versions that remain, the new one included")] = 3,
    describe_again: Annotated[
        bool, typer.Option("--describe-again", help="Describe also photos whose content did not change")
    ] = False,
    engine: Annotated[
        str, typer.Option(help="Who describes: local, or ray for a cluster (RAY_ADDRESS, else one on this machine)")
    ] = "local",
) -> None:
    """Describe geo-tagged photos and publish them as a place index."""
    from collections import Counter

    from index_builder.building import BuildSettings, build_index
    from index_builder.describing import DescribeSettings
    from index_builder.part_describing import ENGINES
    from index_builder.vectors.design import IndexDesign
    from retrieval.errors import ParameterError
    from retrieval.index_folder import check_index_name
    from retrieval.place_index import PlaceIndex
    from retrieval.references import open_references
    from retrieval.vectors.exact import STORAGES
    from sightfix.console import console
    from sightfix.index_console import show_choices, show_recall
    from sightfix.indexing_progress import IndexingProgress
    from sightfix.quantities import parse_bytes

    if storage not in STORAGES:
        raise ParameterError(f"storage {storage!r} is unknown", remedy=f"Choose among {', '.join(STORAGES)}")
    if type_ not in (*INDEX_TYPES, "auto"):
        raise ParameterError(f"there is no index type {type_!r}", remedy=f"Choose among {', '.join(INDEX_TYPES)}, auto")
    if engine not in ENGINES:
        raise ParameterError(f"there is no engine {engine!r}", remedy=f"Choose among {', '.join(ENGINES)}")
    design = IndexDesign(
        storage=storage,
        type=type_,  # type: ignore[arg-type]
        recall=recall,
        latency_ms=latency_ms,
        memory_bytes=None if memory is None else parse_bytes(memory),
        whiten=whiten,
        local_features=local_features,
    )
    check_index_name(name)
    push = push_settings(store_type, store_build, store_vectors, recall, keep)
    references = open_references(source)
    describer = make_describer(bundle, provider, precision, threads, allow_cpu_fallback)
    settings = BuildSettings(
        design=design,
        describe=DescribeSettings(batch_size=batch_size, max_unreadable=max_unreadable),
        keep=keep,
        describe_again=describe_again,
        engine=engine,
    )
    with IndexingProgress.shown() as progress:
        built = build_index(references, describer, indexes, name, settings, watch=progress)
    manifest = built.manifest
    show_choices(built.update.choices)
    for photo in built.unreadable:
        console.print(f"[yellow]left out[/] {escape(f'{photo.path}: {photo.reason}')}")
    for photo in built.without_features:
        console.print(f"[yellow]without local features[/] {escape(f'{photo.path}: {photo.reason}')}")
    for reason, count in Counter(skipped.reason for skipped in references.skipped).most_common():
        first = next(skipped.path for skipped in references.skipped if skipped.reason == reason)
        console.print(f"[yellow]left out[/] {count} photos: {reason} (the first: {escape(str(first))})")
    show_recall(manifest)
    if built.update.taken_over:
        console.print(f"{built.update.taken_over} photos did not change and were not described again")
    console.print(f"[green]published[/] {manifest.count} references as [bold]{name}[/], version {manifest.version}")
    where = "" if indexes == DEFAULT_INDEXES else f" --indexes {indexes}"
    if store is not None:
        push_shown(PlaceIndex.open(built.folder), store, push)
        where = f" --store {store}"
    console.print(f"Next: sightfix serve --index {name}{escape(where)}")
