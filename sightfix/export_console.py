"""What `sightfix export` prints about the bundle it made."""

from rich.markup import escape
from rich.table import Table

from retrieval.bundle import Bundle, RecallChange
from sightfix.console import console


def print_bundle_made(bundle: Bundle) -> None:
    """Say what was written, how near it is to the truth, and what whitening and precisions do to recall."""
    manifest = bundle.manifest
    size_mb = sum(record.size for record in manifest.files.values()) / 1e6
    console.print(
        f"[green]exported[/] {escape(str(bundle.folder))}: {escape(bundle.name)}, "
        f"{bundle.descriptor_dim} numbers a descriptor, {size_mb:.1f} MB"
    )
    if manifest.parity is not None:
        parity = manifest.parity
        console.print(f"  fp32: worst cosine to {escape(parity.reference)} {parity.min_cosine:.7f}")
    for precision, report in manifest.precisions.items():
        kept = f", {len(report.kept_in_fp32)} layers kept in fp32" if report.kept_in_fp32 else ""
        verdict = "[yellow]below its gate, accepted[/]" if report.accepted_loss else "passed its gate"
        console.print(
            f"  {precision}: worst cosine to fp32 {report.min_cosine:.5f} on {report.images} photos{kept}; {verdict}"
        )
    if manifest.whitening is not None:
        whitening = manifest.whitening
        console.print(
            f"  whitened: {whitening.from_dim} → {whitening.dim} numbers, fitted on {whitening.photos} photos of "
            f"{escape(whitening.fitted_on)}, {100 * whitening.explained:.0f} % of the variance kept"
        )
        _print_recall("whitened", "raw", whitening.recall)
    for precision, report in manifest.precisions.items():
        _print_recall(precision, "fp32", report.recall)


def _print_recall(after: str, before: str, changes: tuple[RecallChange, ...]) -> None:
    if not changes:
        return
    table = Table(title=f"Recall@1: {before} and {after}", title_justify="left", box=None, padding=(0, 2))
    for column in ("evaluation set", "queries", "chance", before, after, "change, 95 % interval"):
        table.add_column(column, justify="left" if column == "evaluation set" else "right")
    for change in changes:
        table.add_row(
            f"{escape(change.evaluation_set)}, {change.radius_m:g} m",
            str(change.queries),
            f"{100 * change.chance:.1f}",
            f"{100 * change.before:.1f}",
            f"{100 * change.after:.1f}",
            f"{100 * change.change:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}]",
        )
    console.print(table)
