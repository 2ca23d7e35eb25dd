"""What the commands that look after indexes print."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from rich.markup import escape
from rich.table import Table

from index_builder.maintenance.comparing import Kind, VersionDifference
from index_builder.maintenance.doctor import Diagnosis
from index_builder.maintenance.versions import Verdict, VersionSummary
from index_builder.recalibrating import PhotoCheck, Recalibrated, Split
from retrieval.place_index import PlaceIndex
from sightfix.console import console
from sightfix.index_console import bytes_text

_SHOWN: Final = 10
_SPLITS: Final[dict[Split, str]] = {
    "occasions": "sessions or blocks of time, judged by what was fitted to the others",
    "squares": "squares of 100 m, judged by what was fitted to the others; it says nothing of another day",
    "stretches": "fifths in their order, judged by what was fitted to the others; it says nothing of another place",
}
_KINDS: Final[tuple[Kind, ...]] = ("added", "removed", "moved", "described again")


def print_versions(found: Sequence[VersionSummary]) -> None:
    """A table, the current version marked."""
    table = Table(box=None, pad_edge=False)
    for name in ("", "version", "references", "type", "bundle", "size", ""):
        table.add_column(name, justify="right" if name in ("references", "size") else "left")
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
    for one in found:
        if one.problem is not None:
            console.print(f"[red]damaged[/] {escape(one.problem)}")


def versions_json(found: Sequence[VersionSummary]) -> str:
    """All there is to know, as JSON."""
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


def print_recalibrated(done: Recalibrated) -> None:
    """What the photos said of the index, and what is in force now."""
    calibration = done.calibration
    if done.check is not None:
        _print_check(done.check)
    elif calibration is None:
        console.print("[yellow]not calibrated[/] too few references see what references of other sessions see")
    else:
        taken = f"{calibration.queries} references of {calibration.groups} {calibration.held_out}"
        console.print(f"calibrated on {taken}, each held out with its own", highlight=False)
    if done.not_pruned is not None:
        console.print(f"[yellow]old versions remain[/] {escape(done.not_pruned)}")
    console.print(f"[green]published[/] version {done.version} of [bold]{escape(done.name)}[/]")


def _print_check(check: PhotoCheck) -> None:
    of = "1 occasion" if check.occasions == 1 else f"{check.occasions} occasions"
    console.print(
        f"{check.photos} photos of {of}: {check.right_share:.0%} of the fixes lie within 25 m", highlight=False
    )
    table = Table(box=None, pad_edge=False)
    for name in ("", "mean confidence", "calibration error", "68 % radius holds"):
        table.add_column(name, justify="right" if name else "left")
    nothing = {"before": "not calibrated", "now, left-out photos": "too few to judge"}
    for name, told in (("before", check.before), ("now, left-out photos", check.now)):
        if told is None:
            table.add_row(name, nothing[name])
        else:
            shares = f"{told.stated_share:.0%}", f"{told.calibration_error:.3f}", f"{told.radius_share:.0%}"
            table.add_row(name, *shares)
    if check.error_if_honest is not None:
        table.add_row("honest confidences", f"{check.right_share:.0%}", f"{check.error_if_honest:.3f}", "68%")
    console.print(table)
    if check.split is not None:
        console.print(f"[dim]now: {_SPLITS[check.split]}[/]", highlight=False)
    if check.before_held_out == "photos":
        console.print("[dim]before: fitted on photos, too; if these are among them, it looks too good[/]")


def print_verdict(verdict: Verdict, name: str) -> None:
    """One line, and what to do."""
    if verdict.problem is not None:
        console.print(f"[red]damaged[/] {verdict.version}: {escape(verdict.problem)}")
        console.print(f"Go back to one that is whole: sightfix index rollback --name {name}")
        return
    console.print(f"[green]whole[/] {verdict.version}: {verdict.checked}")
    if verdict.missing_photos:
        named = ", ".join(verdict.missing)
        console.print(f"[yellow]{verdict.missing_photos} photos are gone[/], such as {escape(named)}")


def print_difference(difference: VersionDifference) -> None:
    """Counts, and the first changes of each kind."""
    console.print(f"{difference.before} → {difference.after}")
    console.print(
        f"{difference.unchanged:,} unchanged, " + ", ".join(f"{difference.count(kind):,} {kind}" for kind in _KINDS)
    )
    if not difference.comparable:
        console.print("[yellow]described in different ways[/]: only what was added, removed and moved can be told")
    for kind in _KINDS:
        changes = [change for change in difference.changes if change.kind == kind]
        for change in changes[:_SHOWN]:
            far = "" if change.metres is None else f", {change.metres:.1f} m"
            alike = "" if change.similarity is None else f", cosine {change.similarity:.4f}"
            console.print(f"  {kind} {escape(change.id)}{far}{alike}")
        if len(changes) > _SHOWN:
            console.print(f"  … and {len(changes) - _SHOWN:,} more {kind}: --csv FILE has all")


def print_diagnosis(index: PlaceIndex, diagnosis: Diagnosis) -> None:
    """Counts, and the strongest suspicions."""
    console.print(f"{diagnosis.count:,} references of {index.name}, version {index.version}")
    if diagnosis.examined < diagnosis.count:
        console.print(f"{diagnosis.examined:,} of them examined for copies and positions")
    console.print(f"[bold]{len(diagnosis.jumps)}[/] photos that lie off their session's way")
    for jump in diagnosis.jumps[:_SHOWN]:
        console.print(f"  {escape(_id(index, jump.row))}: {jump.metres:.0f} m from between those before and after it")
    console.print(f"[bold]{len(diagnosis.misplaced)}[/] positions that look-alikes contradict")
    for one in diagnosis.misplaced[:_SHOWN]:
        console.print(
            f"  {escape(_id(index, one.row))}: {one.votes} of 10 neighbours lie together {one.metres:.0f} m away, "
            f"alike {one.score_there:.3f} against {one.score_here:.3f} here"
        )
    copies = sum(len(group.rows) for group in diagnosis.copies)
    console.print(f"[bold]{len(diagnosis.copies)}[/] groups of look-alikes in one place, {copies} photos")
    for group in diagnosis.copies[:_SHOWN]:
        console.print(
            f"  {escape(', '.join(_id(index, row) for row in group.rows[:4]))}: at least {group.least_score:.4f}"
        )
    console.print(f"[bold]{len(diagnosis.gaps)}[/] stretches without photos")
    for gap in diagnosis.gaps[:_SHOWN]:
        between = f"{_id(index, gap.before)} and {_id(index, gap.after)}"
        console.print(f"  {gap.metres:.0f} m in {escape(gap.session)}, between {escape(between)}")
    console.print(
        f"{diagnosis.without_heading:,} without heading, {diagnosis.without_time:,} without time, "
        f"{diagnosis.without_session:,} without session"
    )


def diagnosis_json(index: PlaceIndex, diagnosis: Diagnosis) -> str:
    """Everything, rows as reference ids."""
    told = asdict(diagnosis)
    for group in told["copies"]:
        group["references"] = [_id(index, row) for row in group.pop("rows")]
    for one in [*told["misplaced"], *told["jumps"]]:
        one["reference"] = _id(index, one.pop("row"))
    for gap in told["gaps"]:
        gap["before"], gap["after"] = _id(index, gap["before"]), _id(index, gap["after"])
    return json.dumps({"index": index.name, "version": index.version, **told}, indent=2) + "\n"


def _id(index: PlaceIndex, row: int) -> str:
    return index.references([row])[0].id
