"""Options that several commands have, and what they stand for: a describer, an index store, evaluation sets.

Those of the describer are environment variables too, so that a container's provider holds for all commands in it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeVar, cast

import typer

from retrieval.errors import ParameterError
from retrieval.index.folder import DEFAULT_INDEXES
from sightfix.console import console, print_next, progress_bar

if TYPE_CHECKING:
    from index_builder.push import PushSettings
    from retrieval.bundle import Bundle, Precision
    from retrieval.describer import Describer
    from retrieval.engines.choosing import ProviderChoice
    from retrieval.evaluation.eval_set import EvalSet
    from retrieval.index.place_index import PlaceIndex

_Choice = TypeVar("_Choice", bound=str)
PRECISIONS: Final[tuple["Precision", ...]] = ("fp32", "fp16", "int8")
ProviderOption = Annotated[
    str | None,
    typer.Option(envvar="SIGHTFIX_PROVIDER", help="Where to compute: auto, tensorrt, cuda, openvino or cpu"),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(envvar="SIGHTFIX_PRECISION", help="Of the bundle's graphs: fp32, fp16 or int8, fp32 if left out"),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(envvar="SIGHTFIX_THREADS", min=1, help="Threads of the model on the CPU; every core if left out"),
]
CpuFallbackOption = Annotated[
    bool | None,
    typer.Option(
        "--allow-cpu-fallback",
        envvar="SIGHTFIX_ALLOW_CPU_FALLBACK",
        help="Compute on the CPU, with a warning, when the provider cannot be had",
    ),
]
IndexesOption = Annotated[Path, typer.Option(help="Folder of all place indexes")]
QueryBundleOption = Annotated[
    Path | None,
    typer.Option(help="Bundle the index was made with, or a place index that holds it; the one that the index holds"),
]
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
BatchSizeOption = Annotated[int, typer.Option(min=1, max=1024, help="Photos described at once")]
MaxUnreadableOption = Annotated[int, typer.Option(min=0, help="Photos that may be left out as undecodable")]
KeepOption = Annotated[int, typer.Option(min=1, help="Versions that remain, the new one included")]


def check_choice(option: str, value: str, choices: Sequence[_Choice]) -> _Choice:
    """The value of an option that has only a few.

    Raises:
        ParameterError: another value.
    """
    for choice in choices:
        if choice == value:
            return choice
    raise ParameterError(f"{option} {value!r} is unknown", remedy=f"Choose among {', '.join(choices)}")


def make_describer(
    bundle: "Bundle",
    provider: str | None,
    precision: str | None,
    threads: int | None,
    allow_cpu_fallback: bool | None,
    *,
    default_provider: "ProviderChoice" = "auto",
) -> "Describer":
    """Open a describer as the command line asks for.

    Args:
        bundle: of the model.
        provider: where to compute; None is `default_provider`.
        precision: which of the bundle's graphs; None is fp32.
        threads: of the CPU; None takes every core.
        allow_cpu_fallback: whether the CPU may take the place of the provider.
        default_provider: `auto`, or what suits the command better.

    Raises:
        SightfixError: see `Describer`.
    """
    from retrieval.describer import Describer

    return Describer(
        bundle,
        provider=cast("ProviderChoice", provider or default_provider),
        precision=check_choice("--precision", precision or "fp32", PRECISIONS),
        threads=threads,
        allow_cpu_fallback=bool(allow_cpu_fallback),
        # Not on stdout, where the answer may be JSON.
        on_build=lambda what: typer.echo(f"wait: {what}", err=True),
    )


def push_settings(
    type_: str | None, build: list[str] | None, vectors: str, recall: float, keep: int, *, activate: bool = True
) -> "PushSettings":
    """Settings of publishing in Milvus, from the options.

    Raises:
        ParameterError: a type or a way to store that is unknown, or a parameter that is not NAME=VALUE.
    """
    from index_builder.push import PushSettings
    from retrieval.index.milvus.collection import check_milvus_type

    return PushSettings(
        type=None if type_ is None else check_milvus_type(type_),
        build=dict(_named_value(one) for one in build or []),
        stored=check_choice("--store-vectors", vectors, ("fp32", "fp16")),
        recall=recall,
        activate=activate,
        keep=keep,
    )


def push_shown(index: "PlaceIndex", address: str, settings: "PushSettings") -> None:
    """Publish a version in Milvus with a progress bar, and print the result and what comes next."""
    from index_builder.push import push_to
    from retrieval.bundle import open_bundle

    with progress_bar("Writing to Milvus", index.count, "rows") as advance:
        searching = push_to(address, index, settings, on_rows=advance)
    recall = searching.recall
    quality = "exact" if recall is None else f"recall@10 {recall.at_10:.1%}, {recall.milliseconds:.2g} ms a query"
    console.print(
        f"[green]published[/] version {index.version} of [bold]{index.name}[/] in {address}: "
        f"{searching.index_type}, {quality}" + ("" if settings.activate else "; not current yet")
    )
    if settings.activate:
        is_shipped = index.manifest.bundle.fingerprint == open_bundle().fingerprint
        # Milvus holds no bundles; where the version holds none, the user knows what it was described with.
        holder = [] if is_shipped else ["--bundle", str(index.bundle_holder or "FOLDER")]
        print_next("serve", "--index", index.name, "--store", address, *holder)


def index_option(indexes: Path, name: str) -> list[str]:
    """What names a place index on the command line of a server."""
    return ["--index", name, *([] if indexes == DEFAULT_INDEXES else ["--indexes", str(indexes)])]


def _named_value(text: str) -> tuple[str, int | float | str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ParameterError(f"--store-build {text!r} is not NAME=VALUE", remedy="Write it as nlist=4096")
    for number in (int, float):
        try:
            return name, number(value)
        except ValueError:
            continue
    return name, value


def open_eval_sets(names: Sequence[str], databases: Sequence[str], queries: Sequence[str]) -> "list[EvalSet]":
    """Open evaluation sets as the command line names them.

    Args:
        names: of the sets, for people.
        databases: a spec of the photos to find for each.
        queries: a spec of the photos to localize for each.

    Raises:
        ParameterError: not the same number of each.
        ReferenceDataError: a spec cannot be read.
    """
    from retrieval.evaluation.eval_set import EvalSet
    from retrieval.references import open_references

    if not len(names) == len(databases) == len(queries):
        raise ParameterError(
            f"there are {len(names)} --eval, {len(databases)} --eval-database and {len(queries)} --eval-queries",
            remedy="Give the three for each evaluation set, in the same order",
        )
    return [
        EvalSet(name, tuple(open_references(database)), tuple(open_references(asked)))
        for name, database, asked in zip(names, databases, queries, strict=True)
    ]
