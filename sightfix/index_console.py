"""What is said of types of index on the console."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from sightfix.console import console

if TYPE_CHECKING:
    from index_builder.vectors.choosing import Choice
    from index_builder.vectors.sizing import PlannedIndex
    from retrieval.place_index_manifest import PlaceIndexManifest


def show_choices(choices: "Sequence[Choice]") -> None:
    """What ``--type auto`` considered."""
    if not choices:
        return
    table = Table(title="Types of index that were considered", title_justify="left", box=None, pad_edge=False)
    for name in ("type", "recall@10", "ms a query", "memory", "verdict"):
        table.add_column(name, justify="left" if name in ("type", "verdict") else "right")
    for one in choices:
        style = "bold" if one.verdict.startswith("taken") else ""
        table.add_row(
            one.type,
            f"{one.recall:.1%}",
            milliseconds_text(one.latency_ms),
            bytes_text(one.memory_bytes),
            one.verdict,
            style=style,
        )
    console.print(table)


def show_recall(manifest: "PlaceIndexManifest") -> None:
    """How good an approximate index is; nothing of exact search."""
    if manifest.recall is None or manifest.candidates is None:
        return
    recall = manifest.recall
    console.print(
        f"type {manifest.index_type}, effort {manifest.candidates.effort}: recall@1 {recall.at_1:.1%}, "
        f"recall@10 {recall.at_10:.1%} of exact search ({recall.queries} queries), {recall.milliseconds:.2g} ms a query"
    )


def show_plan(planned: "Sequence[PlannedIndex]") -> None:
    """What each type of index would be."""
    table = Table(box=None, pad_edge=False)
    for name in ("type", "stored as", "memory", "disk", "build", "ms a query", ""):
        table.add_column(name, justify="left" if name in ("type", "stored as", "") else "right")
    for one in planned:
        table.add_row(
            one.type,
            one.storage,
            bytes_text(one.memory_bytes),
            bytes_text(one.disk_bytes),
            duration_text(one.build_seconds),
            milliseconds_text(one.latency_ms),
            "" if one.fits else "[red]too large[/]",
        )
    console.print(table)


def bytes_text(count: float) -> str:
    """Such as ``2.05 GB``."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def milliseconds_text(milliseconds: float) -> str:
    """Such as ``0.25``, ``8.1`` or ``6,120``."""
    return f"{milliseconds:,.0f}" if milliseconds >= 10 else f"{milliseconds:.2g}"


def duration_text(seconds: float) -> str:
    """Such as ``12 s``, ``3.4 min`` or ``5.1 h``."""
    if seconds < 90:
        return f"{seconds:.2g} s"
    if seconds < 5400:
        return f"{seconds / 60:.2g} min"
    return f"{seconds / 3600:.3g} h"
