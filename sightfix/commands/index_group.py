"""`sightfix index PHOTOS` builds; `sightfix index versions|verify|diff|…` works on indexes that were built."""

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.markup import escape
from typer.core import TyperGroup

from retrieval.errors import ParameterError, counted
from retrieval.index.folder import DEFAULT_INDEXES
from sightfix.commands.index import bytes_text
from sightfix.commands.index import index as build
from sightfix.commands.options import (
    BatchSizeOption,
    CpuFallbackOption,
    IndexesOption,
    KeepOption,
    MaxUnreadableOption,
    PrecisionOption,
    ProviderOption,
    QueryBundleOption,
    StoreBuildOption,
    StoreOption,
    StoreTypeOption,
    StoreVectorsOption,
    ThreadsOption,
    check_choice,
    make_describer,
    push_settings,
    push_shown,
)
from sightfix.console import console, plain_table, progress_bar

if TYPE_CHECKING:
    from index_builder.calibration.recalibrating import PhotoCheck, Recalibrated, Split
    from index_builder.maintenance.doctor import Diagnosis
    from index_builder.maintenance.versions import Kind, Verdict, VersionDifference, VersionSummary
    from retrieval.index.place_index import PlaceIndex
    from retrieval.index.searchable import PlaceIndexStore

_SHOWN: Final = 10
_SPLITS: Final[dict["Split", str]] = {
    "occasions": "sessions or blocks of time, judged by what was fitted to the others",
    "squares": "squares of 100 m, judged by what was fitted to the others; it says nothing of another day",
    "stretches": "fifths in their order, judged by what was fitted to the others; it says nothing of another place",
}
_KINDS: Final[tuple["Kind", ...]] = ("added", "removed", "moved", "described again")
_HELP = """Index photos, and work on indexes that were built.

sightfix index PHOTOS is short for: sightfix index build PHOTOS."""


class _PhotosOrCommand(TyperGroup):
    """Takes what is not a command for photos to build from."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["build", *args]
        return super().parse_args(ctx, args)


index = typer.Typer(name="index", cls=_PhotosOrCommand, help=_HELP, no_args_is_help=True, add_completion=False)

index.command(name="build")(build)

# Two names: serve, localize and evaluate have --index.
NameOption = Annotated[
    str | None, typer.Option("--name", "--index", help="Of the place index; the only one if left out")
]
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
    from index_builder.maintenance.versions import bytes_on_disk, list_versions

    with _opened(store, indexes) as opened:
        which = _named(opened, name)
        found, together = list_versions(opened, which), bytes_on_disk(opened, which)
    if json:
        sys.stdout.write(versions_json(found))
    else:
        _print_versions(found, together)


@index.command()
def activate(
    version: Annotated[str, typer.Argument(help="Which version, or its beginning")],
    name: NameOption = None,
    indexes: IndexesOption = DEFAULT_INDEXES,
    store: StoreOption = None,
) -> None:
    """Make a version the current one; running servers change to it by themselves."""
    with _opened(store, indexes) as opened:
        which = _named(opened, name)
        chosen = opened.find_version(which, version)
        opened.activate(which, chosen)
    console.print(f"[green]current[/] is {chosen} of [bold]{which}[/]")


@index.command()
def rollback(name: NameOption = None, indexes: IndexesOption = DEFAULT_INDEXES, store: StoreOption = None) -> None:
    """Go back to the version before the current one."""
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

    with _opened(store, indexes) as opened:
        which = _named(opened, name)
        names = opened.versions(which) if all_ else [opened.find_version(which, version)]
        verdicts = [verify_version(opened, which, one, photos=photos) for one in names]
    for verdict in verdicts:
        _print_verdict(verdict, which)
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

    from index_builder.maintenance.versions import as_table, compare_versions, find_version
    from retrieval.artefact import storage_errors

    folder = _folder(indexes, name)
    difference = compare_versions(find_version(folder, before), find_version(folder, after))
    _print_difference(difference)
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

    opened = _open(indexes, name, version)
    with storage_errors(file):
        count = export_index(opened, file)
    console.print(f"[green]wrote[/] {counted(count, 'reference')} to {escape(str(file))}")


@index.command(name="import")
def import_(
    file: Annotated[Path, typer.Argument(help="Parquet file that sightfix index export wrote")],
    name: Annotated[str, typer.Option("--name", "--index", help="Name of the place index")] = "default",
    indexes: IndexesOption = DEFAULT_INDEXES,
    bundle: Annotated[
        Path | None,
        typer.Option(help="Bundle they were described with; the one that the index holds, or the shipped one"),
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Where the photos lie now, if elsewhere")] = None,
    type_: Annotated[str, typer.Option("--type", help="Of the index, as for: sightfix index build")] = "exact",
    keep: KeepOption = 3,
) -> None:
    """Publish a Parquet file as the new version of an index."""
    from index_builder.index_design import IndexDesign
    from index_builder.maintenance.parquet import import_index, stored_as
    from retrieval.bundle import open_bundle
    from retrieval.index.vectors.candidates import INDEX_TYPES

    named = None if bundle is None else open_bundle(bundle)
    design = IndexDesign(type=check_choice("--type", type_, (*INDEX_TYPES, "auto")), storage=stored_as(file))
    manifest = import_index(file, named, indexes, name, design, keep, root=root)
    count = counted(manifest.count, "reference")
    console.print(f"[green]published[/] {count} as [bold]{name}[/], version {manifest.version}")


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
    bundle: QueryBundleOption = None,
    provider: ProviderOption = None,
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    allow_cpu_fallback: CpuFallbackOption = None,
    batch_size: BatchSizeOption = 16,
    max_unreadable: MaxUnreadableOption = 0,
    keep: KeepOption = 3,
) -> None:
    """Fit confidence, radius and NO_MATCH to photos of known position, and publish a version with the new fit."""
    from index_builder.calibration.queries import OutsidePhotos
    from index_builder.calibration.recalibrating import recalibrate
    from index_builder.describing import DescribeSettings
    from retrieval.index.place_index import PlaceIndex
    from sightfix.evaluation_search import describe_photos

    if (photos is None) != forget:
        raise ParameterError(
            "give either photos of known position or --forget",
            remedy="sightfix index calibrate PHOTOS, or: sightfix index calibrate --forget",
        )
    which = _folder(indexes, name).name
    given, describer = None, None
    if photos is not None:
        model = PlaceIndex.open(indexes / which, memory_map=True).open_bundle(bundle)
        describer = make_describer(model, provider, precision, threads, allow_cpu_fallback)
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
    from sightfix.figures.doctor_page import doctor_page

    opened = _open(indexes, name, version)
    settings = DoctorSettings(outlier_m=outlier_m, gap_m=gap_m)
    with progress_bar("Examining", min(opened.count, settings.most_rows)) as advance:
        diagnosis = diagnose(opened, settings, advance)
    _print_diagnosis(opened, diagnosis)
    for path, make in ((html, doctor_page), (json, diagnosis_json)):
        if path is not None:
            with storage_errors(path):
                path.write_text(make(opened, diagnosis), encoding="utf-8")
            console.print(f"[green]wrote[/] {escape(str(path))}")


def _print_versions(found: "Sequence[VersionSummary]", together: int | None) -> None:
    """A table, the current version marked, and what all of them take on the disk, where that is known."""
    table = plain_table("", "version", "references", "type", "bundle", "size", "", right=("references", "size"))
    for one in found:
        manifest = one.manifest
        table.add_row(
            "[green]→[/]" if one.current else "",
            one.version,
            "?" if manifest is None else f"{manifest.count:,}",
            "?" if manifest is None else f"{manifest.index_type} {manifest.storage}",
            "?" if manifest is None else f"{manifest.bundle.name} ({manifest.bundle.fingerprint[:12]})",
            bytes_text(one.bytes),
            "" if one.problem is None else "[red]damaged[/]",
        )
    console.print(table)
    if together is not None and together < sum(one.bytes for one in found):
        console.print(f"together {bytes_text(together)}: what versions share, such as their bundle, is there once")
    for one in found:
        if one.problem is not None:
            console.print(f"[red]damaged[/] {escape(one.problem)}")


def versions_json(found: "Sequence[VersionSummary]") -> str:
    """Versions with their manifests, as JSON."""
    listed = [
        {
            "version": one.version,
            "current": one.current,
            "bytes": one.bytes,
            "problem": one.problem,
            "manifest": None if one.manifest is None else one.manifest.model_dump(mode="json"),
        }
        for one in found
    ]
    return json.dumps(listed, indent=2) + "\n"


def print_recalibrated(done: "Recalibrated") -> None:
    """What the photos show about the index, and which calibration it has now."""
    calibration = done.calibration
    if done.check is not None:
        _print_check(done.check)
    elif calibration is None:
        console.print("[yellow]not calibrated[/] too few references see what references of other sessions see")
    else:
        references = counted(calibration.queries, "reference")
        groups = f"{calibration.groups} {calibration.held_out}"
        console.print(f"calibrated on {references} of {groups}, each held out with its own", highlight=False)
    if done.not_pruned is not None:
        console.print(f"[yellow]old versions remain[/] {escape(done.not_pruned)}")
    console.print(f"[green]published[/] version {done.version} of [bold]{escape(done.name)}[/]")


def _print_check(check: "PhotoCheck") -> None:
    photos, occasions = counted(check.photos, "photo"), counted(check.occasions, "occasion")
    console.print(f"{photos} of {occasions}: {check.right_share:.0%} of the fixes lie within 25 m", highlight=False)
    numbers = ("mean confidence", "calibration error", "68 % radius holds")
    table = plain_table("", *numbers, right=numbers)
    nothing = {"before": "not calibrated", "now, left-out photos": "too few to judge"}
    for name, measured in (("before", check.before), ("now, left-out photos", check.now)):
        if measured is None:
            table.add_row(name, nothing[name])
        else:
            error = f"{measured.calibration_error:.3f}"
            table.add_row(name, f"{measured.stated_share:.0%}", error, f"{measured.radius_share:.0%}")
    if check.error_if_calibrated is not None:
        error = f"{check.error_if_calibrated:.3f}"
        table.add_row("if confidences were right", f"{check.right_share:.0%}", error, "68%")
    console.print(table)
    if check.split is not None:
        console.print(f"[dim]now: {_SPLITS[check.split]}[/]", highlight=False)
    if check.before_held_out == "photos":
        console.print("[dim]before: fitted on photos, too; if these are among them, these numbers are too good[/]")


def _print_verdict(verdict: "Verdict", name: str) -> None:
    """Whether a version is whole, and what to do if it is not."""
    if verdict.problem is not None:
        console.print(f"[red]damaged[/] {verdict.version}: {escape(verdict.problem)}")
        console.print(f"Go back to one that is whole: sightfix index rollback --name {name}")
        return
    console.print(f"[green]whole[/] {verdict.version}: {verdict.checked}")
    if verdict.missing_photos:
        named = ", ".join(verdict.missing)
        gone = counted(verdict.missing_photos, "photo is missing", "photos are missing")
        console.print(f"[yellow]{gone}[/], such as {escape(named)}")


def _print_difference(difference: "VersionDifference") -> None:
    """Counts, and the first changes of each kind."""
    console.print(f"{difference.before} → {difference.after}")
    console.print(
        f"{difference.unchanged:,} unchanged, " + ", ".join(f"{difference.count(kind):,} {kind}" for kind in _KINDS)
    )
    if not difference.comparable:
        console.print("[yellow]described in different ways[/]: only what was added, removed and moved is known")
    for kind in _KINDS:
        changes = [change for change in difference.changes if change.kind == kind]
        for change in changes[:_SHOWN]:
            far = "" if change.metres is None else f", {change.metres:.1f} m"
            alike = "" if change.similarity is None else f", cosine {change.similarity:.4f}"
            console.print(f"  {kind} {escape(change.id)}{far}{alike}")
        if len(changes) > _SHOWN:
            console.print(f"  … and {len(changes) - _SHOWN:,} more {kind}: --csv FILE has all")


def _print_diagnosis(index: "PlaceIndex", diagnosis: "Diagnosis") -> None:
    """Counts, and the strongest suspicions."""
    console.print(f"{counted(diagnosis.count, 'reference')} of {index.name}, version {index.version}")
    if diagnosis.bundle_problem is not None:
        console.print(f"[red]its bundle is damaged[/] {escape(diagnosis.bundle_problem)}")
    if diagnosis.vocabulary is not None:
        console.print(str(diagnosis.vocabulary))
        if diagnosis.vocabulary.refit:
            console.print("[yellow]adapting anew would help[/]: build the index again with --refit")
    if diagnosis.examined < diagnosis.count:
        console.print(f"{diagnosis.examined:,} of them examined for copies and positions")
    _heading(len(diagnosis.jumps), "photo that lies off its session's way", "photos that lie off their session's way")
    for jump in diagnosis.jumps[:_SHOWN]:
        console.print(f"  {escape(_id(index, jump.row))}: {jump.metres:.0f} m from between those before and after it")
    _heading(len(diagnosis.misplaced), "position that look-alikes contradict", "positions that look-alikes contradict")
    for one in diagnosis.misplaced[:_SHOWN]:
        console.print(
            f"  {escape(_id(index, one.row))}: {one.votes} of 10 neighbours lie together {one.metres:.0f} m away, "
            f"alike {one.score_there:.3f} against {one.score_here:.3f} here"
        )
    copies = sum(len(group.rows) for group in diagnosis.copies)
    groups = "of look-alikes in one place, " + counted(copies, "photo")
    _heading(len(diagnosis.copies), f"group {groups}", f"groups {groups}")
    for group in diagnosis.copies[:_SHOWN]:
        console.print(
            f"  {escape(', '.join(_id(index, row) for row in group.rows[:4]))}: at least {group.least_score:.4f}"
        )
    _heading(len(diagnosis.gaps), "stretch without photos", "stretches without photos")
    for gap in diagnosis.gaps[:_SHOWN]:
        between = f"{_id(index, gap.before)} and {_id(index, gap.after)}"
        console.print(f"  {gap.metres:.0f} m in {escape(gap.session)}, between {escape(between)}")
    console.print(
        f"{diagnosis.without_heading:,} without heading, {diagnosis.without_time:,} without time, "
        f"{diagnosis.without_session:,} without session"
    )


def _heading(count: int, one: str, many: str) -> None:
    console.print(f"[bold]{counted(count, one, many)}[/]")


def diagnosis_json(index: "PlaceIndex", diagnosis: "Diagnosis") -> str:
    """Everything, rows as reference ids."""
    findings = asdict(diagnosis)
    for group in findings["copies"]:
        group["references"] = [_id(index, row) for row in group.pop("rows")]
    for one in [*findings["misplaced"], *findings["jumps"]]:
        one["reference"] = _id(index, one.pop("row"))
    for gap in findings["gaps"]:
        gap["before"], gap["after"] = _id(index, gap["before"]), _id(index, gap["after"])
    return json.dumps({"index": index.name, "version": index.version, **findings}, indent=2) + "\n"


def _id(index: "PlaceIndex", row: int) -> str:
    return index.references([row])[0].id


@contextlib.contextmanager
def _opened(store: str | None, indexes: Path) -> "Iterator[PlaceIndexStore]":
    from retrieval.index.stores import open_store

    opened = open_store(store, indexes)
    try:
        yield opened
    finally:
        opened.close()


def _named(store: "PlaceIndexStore", name: str | None) -> str:
    from retrieval.index.folder import check_index_name

    # An index of which no version is current can still be listed, verified and repaired by its name.
    if name is not None and store.versions(check_index_name(name)):
        return name
    return store.find(name, "--name")


def _folder(indexes: Path, name: str | None) -> Path:
    from retrieval.index.folder import check_index_name, find_index, published_versions

    # An index whose CURRENT is gone can still be listed, verified and repaired by its name.
    if name is not None and published_versions(indexes / check_index_name(name)):
        return indexes / name
    return find_index(indexes, name, "--name")


def _open(indexes: Path, name: str | None, version: str | None) -> "PlaceIndex":
    from index_builder.maintenance.versions import find_version
    from retrieval.index.place_index import PlaceIndex

    return PlaceIndex.open(find_version(_folder(indexes, name), version))
