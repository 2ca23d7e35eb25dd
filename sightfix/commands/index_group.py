"""`sightfix index PHOTOS` builds; `sightfix index versions|verify|diff|…` looks after what was built."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from retrieval.index_folder import DEFAULT_INDEXES
from sightfix.commands.index import index as build
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
    StoreOption,
    StoreTypeOption,
    StoreVectorsOption,
    push_settings,
    push_shown,
)

if TYPE_CHECKING:
    from retrieval.place_index import PlaceIndex
    from retrieval.stores.contract import PlaceIndexStore

_HELP = """Index photos, and look after indexes.

sightfix index PHOTOS is short for: sightfix index build PHOTOS."""


class _PhotosOrCommand(TyperGroup):
    """What is no command are photos to build from."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["build", *args]
        return super().parse_args(ctx, args)


index = typer.Typer(name="index", cls=_PhotosOrCommand, help=_HELP, no_args_is_help=True, add_completion=False)
index.command(name="build")(build)

NameOption = Annotated[str | None, typer.Option(help="Of the place index; the only one if left out")]
VersionOption = Annotated[str | None, typer.Option(help="Which version, or its beginning; the current one if left out")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print as JSON")]


@index.command()
def versions(
    name: NameOption = None,
    indexes: IndexesOption = DEFAULT_INDEXES,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """List the versions of an index."""
    from index_builder.maintenance.versions import list_versions
    from sightfix.maintenance_console import print_versions, versions_json

    with _opened(store, indexes) as opened:
        found = list_versions(opened, _named(opened, name))
    if json:
        sys.stdout.write(versions_json(found))
    else:
        print_versions(found)


@index.command()
def activate(
    version: Annotated[str, typer.Argument(help="Which version, or its beginning")],
    name: NameOption = None,
    indexes: IndexesOption = DEFAULT_INDEXES,
    store: StoreOption = None,
) -> None:
    """Make a version the current one; running servers take it over by themselves."""
    from sightfix.console import console

    with _opened(store, indexes) as opened:
        which = _named(opened, name)
        chosen = opened.find_version(which, version)
        opened.activate(which, chosen)
    console.print(f"[green]current[/] is {chosen} of [bold]{which}[/]")


@index.command()
def rollback(name: NameOption = None, indexes: IndexesOption = DEFAULT_INDEXES, store: StoreOption = None) -> None:
    """Go back to the version before the current one."""
    from sightfix.console import console

    with _opened(store, indexes) as opened:
        which = _named(opened, name)
        was, now = opened.roll_back(which)
    console.print(f"[green]current[/] is {now} of [bold]{which}[/]; it was {was}, which stays")


@index.command()
def prune(
    keep: Annotated[int, typer.Option(min=1, help="Versions that remain, the current one always")],
    name: NameOption = None,
    indexes: IndexesOption = DEFAULT_INDEXES,
    store: StoreOption = None,
) -> None:
    """Remove the oldest versions."""
    from sightfix.console import console

    with _opened(store, indexes) as opened:
        removed = opened.prune(_named(opened, name), keep)
    for version in removed:
        console.print(f"removed {version}")
    if not removed:
        console.print("nothing to remove")


@index.command()
def verify(
    name: NameOption = None,
    indexes: IndexesOption = DEFAULT_INDEXES,
    store: StoreOption = None,
    version: VersionOption = None,
    all_: Annotated[bool, typer.Option("--all", help="Every version")] = False,
    photos: Annotated[bool, typer.Option("--photos", help="Also look whether all photos are still there")] = False,
) -> None:
    """Compare all files with their hashes and ask the index for its own photos; exits 1 if anything is wrong."""
    from index_builder.maintenance.versions import verify_version
    from sightfix.maintenance_console import print_verdict

    with _opened(store, indexes) as opened:
        which = _named(opened, name)
        names = opened.versions(which) if all_ else [opened.find_version(which, version)]
        verdicts = [verify_version(opened, which, one, photos=photos) for one in names]
    for verdict in verdicts:
        print_verdict(verdict, which)
    if any(not verdict.whole or verdict.missing_photos for verdict in verdicts):
        raise typer.Exit(1)


@index.command()
def push(
    store: Annotated[
        str, typer.Option(envvar="SIGHTFIX_STORE", help="Where to, such as milvus://host:19530", show_envvar=True)
    ],
    name: NameOption = None,
    indexes: IndexesOption = DEFAULT_INDEXES,
    version: VersionOption = None,
    store_type: StoreTypeOption = None,
    store_build: StoreBuildOption = None,
    store_vectors: StoreVectorsOption = "fp32",
    recall: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Of the ten best by exact search, what an index must return")
    ] = 0.95,
    keep: Annotated[int, typer.Option(min=1, help="Versions that remain there, the new one included")] = 3,
    activate: Annotated[bool, typer.Option("--activate/--no-activate", help="Whether it becomes current")] = True,
) -> None:
    """Publish a version of an index in Milvus; cut off, the same command goes on."""
    settings = push_settings(store_type, store_build, store_vectors, recall, keep, activate=activate)
    push_shown(_open(indexes, name, version), store, settings)


@index.command()
def diff(
    before: Annotated[str, typer.Argument(help="A version, or its beginning")],
    after: Annotated[str | None, typer.Argument(help="Another; the current one if left out")] = None,
    name: NameOption = None,
    indexes: IndexesOption = DEFAULT_INDEXES,
    csv: Annotated[Path | None, typer.Option(help="Write all changes to this file")] = None,
) -> None:
    """What was added, removed, moved and described again between two versions."""
    import pyarrow.csv

    from index_builder.maintenance.comparing import as_table, compare_versions
    from index_builder.maintenance.versions import find_version
    from retrieval.artefact import storage_errors
    from sightfix.maintenance_console import print_difference

    folder = _folder(indexes, name)
    difference = compare_versions(find_version(folder, before), find_version(folder, after))
    print_difference(difference)
    if csv is not None:
        with storage_errors(csv):
            pyarrow.csv.write_csv(as_table(difference), csv)


@index.command()
def export(
    file: Annotated[Path, typer.Argument(help="Parquet file to write")],
    name: NameOption = None,
    indexes: IndexesOption = DEFAULT_INDEXES,
    version: VersionOption = None,
) -> None:
    """Write references and descriptors to one Parquet file."""
    from index_builder.maintenance.parquet import export_index
    from retrieval.artefact import storage_errors
    from sightfix.console import console

    opened = _open(indexes, name, version)
    with storage_errors(file):
        count = export_index(opened, file)
    console.print(f"[green]written[/] {count} references to {file}")


@index.command(name="import")
def import_(
    file: Annotated[Path, typer.Argument(help="Parquet file that sightfix index export wrote")],
    name: Annotated[str, typer.Option(help="Name of the place index")] = "default",
    indexes: IndexesOption = DEFAULT_INDEXES,
    bundle: Annotated[Path | None, typer.Option(help="Bundle they were described with; the shipped one")] = None,
    root: Annotated[Path | None, typer.Option(help="Where the photos lie now, if elsewhere")] = None,
    type_: Annotated[str, typer.Option("--type", help="Of the index, as for: sightfix index build")] = "exact",
    keep: Annotated[int, typer.Option(min=1, help="Versions that remain, the new one included")] = 3,
) -> None:
    """Publish a Parquet file as the new version of an index."""
    from index_builder.maintenance.parquet import import_index, stored_as
    from index_builder.vectors.design import IndexDesign
    from retrieval.bundle import open_bundle
    from retrieval.errors import ParameterError
    from retrieval.vectors.index_types import INDEX_TYPES
    from sightfix.console import console

    if type_ not in (*INDEX_TYPES, "auto"):
        raise ParameterError(f"there is no index type {type_!r}", remedy=f"Choose among {', '.join(INDEX_TYPES)}, auto")
    design = IndexDesign(type=type_, storage=stored_as(file))  # type: ignore[arg-type]
    manifest = import_index(file, open_bundle(bundle), indexes, name, design, keep, root=root)
    console.print(f"[green]published[/] {manifest.count} references as [bold]{name}[/], version {manifest.version}")


@index.command()
def calibrate(
    photos: Annotated[
        str | None,
        typer.Argument(help="At least 100 photos of known position, like those to come: a folder, a CSV, or a spec"),
    ] = None,
    name: NameOption = None,
    indexes: IndexesOption = DEFAULT_INDEXES,
    forget: Annotated[
        bool, typer.Option("--forget", help="No photos: calibrate on the index's own sessions again")
    ] = False,
    bundle: Annotated[Path | None, typer.Option(help="Bundle that the index was made with; the shipped one")] = None,
    provider: ProviderOption = None,
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    allow_cpu_fallback: CpuFallbackOption = None,
    batch_size: Annotated[int, typer.Option(min=1, max=1024, help="Photos described at once")] = 16,
    max_unreadable: Annotated[int, typer.Option(min=0, help="Photos that may be left out as undecodable")] = 0,
    keep: Annotated[int, typer.Option(min=1, help="Versions that remain, the new one included")] = 3,
) -> None:
    """Fit confidence, radius and NO_MATCH to photos of known position; publishes a version that differs in these."""
    from index_builder.describing import DescribeSettings
    from index_builder.outside_photos import OutsidePhotos
    from index_builder.recalibrating import recalibrate
    from retrieval.errors import ParameterError
    from retrieval.place_index import PlaceIndex
    from sightfix.console import console
    from sightfix.described_photos import describe_photos
    from sightfix.maintenance_console import print_recalibrated

    if (photos is None) != forget:
        raise ParameterError(
            "give either photos of known position or --forget",
            remedy="sightfix index calibrate PHOTOS, or: sightfix index calibrate --forget",
        )
    which = _folder(indexes, name).name
    given, describer = None, None
    if photos is not None:
        describer = make_describer(bundle, provider, precision, threads, allow_cpu_fallback)
        # Before anything is described; once more when it is published.
        PlaceIndex.open(indexes / which, memory_map=True).check_bundle(describer.bundle)
        settings = DescribeSettings(batch_size=batch_size, max_unreadable=max_unreadable)
        described = describe_photos("Describing the photos", photos, describer, settings)
        given = OutsidePhotos.from_references(described.references, described.descriptors)
    with console.status("Calibrating"):
        done = recalibrate(indexes, which, given, describer.bundle if describer else None, keep=keep)
    print_recalibrated(done)


@index.command()
def doctor(
    name: NameOption = None,
    indexes: IndexesOption = DEFAULT_INDEXES,
    version: VersionOption = None,
    html: Annotated[Path | None, typer.Option(help="Write a map and lists to this page")] = None,
    json: Annotated[Path | None, typer.Option(help="Write everything to this file")] = None,
    outlier_m: Annotated[
        float, typer.Option(min=1.0, help="Neighbours further away than twice this contradict")
    ] = 25.0,
    gap_m: Annotated[float, typer.Option(min=1.0, help="A longer way between two photos is a gap")] = 30.0,
) -> None:
    """Find look-alikes, photos whose position the others contradict, and stretches without photos."""
    from index_builder.maintenance.doctor import DoctorSettings, diagnose
    from retrieval.artefact import storage_errors
    from sightfix.console import console, progress_bar
    from sightfix.doctor_page import doctor_page
    from sightfix.maintenance_console import diagnosis_json, print_diagnosis

    opened = _open(indexes, name, version)
    settings = DoctorSettings(outlier_m=outlier_m, gap_m=gap_m)
    with progress_bar("Examining", min(opened.count, settings.most_rows)) as advance:
        diagnosis = diagnose(opened, settings, advance)
    print_diagnosis(opened, diagnosis)
    for path, make in ((html, doctor_page), (json, diagnosis_json)):
        if path is not None:
            with storage_errors(path):
                path.write_text(make(opened, diagnosis), encoding="utf-8")
            console.print(f"[green]written[/] {path}")


@contextlib.contextmanager
def _opened(store: str | None, indexes: Path) -> "Iterator[PlaceIndexStore]":
    from retrieval.stores.opening import open_store

    opened = open_store(store, indexes)
    try:
        yield opened
    finally:
        opened.close()


def _named(store: "PlaceIndexStore", name: str | None) -> str:
    from retrieval.index_folder import check_index_name

    # An index of which no version is current can still be listed, verified and repaired by its name.
    if name is not None and store.versions(check_index_name(name)):
        return name
    return store.find(name)


def _folder(indexes: Path, name: str | None) -> Path:
    from retrieval.index_folder import check_index_name, find_index, published_versions

    # An index whose CURRENT is gone can still be listed, verified and repaired by its name.
    if name is not None and published_versions(indexes / check_index_name(name)):
        return indexes / name
    return find_index(indexes, name)


def _open(indexes: Path, name: str | None, version: str | None) -> "PlaceIndex":
    from index_builder.maintenance.versions import find_version
    from retrieval.place_index import PlaceIndex

    return PlaceIndex.open(find_version(_folder(indexes, name), version))
