"""The options that say where place indexes are kept, the same for every command."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from index_builder.pushing import PushSettings
    from retrieval.place_index import PlaceIndex

IndexesOption = Annotated[Path, typer.Option(help="Folder of all place indexes")]
StoreOption = Annotated[
    str | None,
    typer.Option(envvar="SIGHTFIX_STORE", help="Engine that holds the indexes instead, such as milvus://host:19530"),
]
StoreTypeOption = Annotated[
    str | None,
    typer.Option(help="Of the index in Milvus, such as IVF_FLAT, HNSW or GPU_CAGRA; by the number of references"),
]
StoreBuildOption = Annotated[
    list[str] | None, typer.Option(help="NAME=VALUE that Milvus builds the index with, such as nlist=4096; repeatable")
]
StoreVectorsOption = Annotated[str, typer.Option(help="How Milvus stores descriptors: fp32 or fp16")]


def push_settings(
    type_: str | None, build: list[str] | None, vectors: str, recall: float, keep: int, *, activate: bool = True
) -> "PushSettings":
    """Settings from the options.

    Raises:
        ParameterError: a type or a way to store that is unknown, or a parameter that is no NAME=VALUE.
    """
    from index_builder.pushing import PushSettings
    from retrieval.errors import ParameterError
    from retrieval.stores.milvus.index_types import check_milvus_type

    if vectors not in ("fp32", "fp16"):
        raise ParameterError(f"Milvus stores no {vectors!r} descriptors", remedy="Choose fp32 or fp16")
    return PushSettings(
        type=None if type_ is None else check_milvus_type(type_),
        build=dict(_named_value(one) for one in build or []),
        stored="fp32" if vectors == "fp32" else "fp16",
        recall=recall,
        activate=activate,
        keep=keep,
    )


def push_shown(index: "PlaceIndex", address: str, settings: "PushSettings") -> None:
    """Publish a version in a Milvus, with a bar, and say what came of it."""
    from index_builder.pushing import push_to
    from sightfix.console import console, progress_bar

    with progress_bar("Writing to Milvus", index.count, "rows") as advance:
        searching = push_to(address, index, settings, on_rows=advance)
    recall = searching.recall
    told = "exact" if recall is None else f"recall@10 {recall.at_10:.1%}, {recall.milliseconds:.2g} ms a query"
    console.print(
        f"[green]published[/] version {index.version} of [bold]{index.name}[/] in {address}: "
        f"{searching.index_type}, {told}" + ("" if settings.activate else "; not current yet")
    )


def _named_value(text: str) -> tuple[str, int | float | str]:
    from retrieval.errors import ParameterError

    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ParameterError(f"--store-build {text!r} is no NAME=VALUE", remedy="Write it as nlist=4096")
    for number in (int, float):
        try:
            return name, number(value)
        except ValueError:
            continue
    return name, value
