"""`sightfix bundle show|verify|diff|engine`: what a bundle is, whether it is whole, and how two differ."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.markup import escape
from rich.table import Table

from retrieval.errors import counted
from retrieval.index.folder import CURRENT_NAME
from sightfix.commands.options import PRECISIONS, check_choice, index_option
from sightfix.console import console, plain_table, print_next, progress_bar

if TYPE_CHECKING:
    from retrieval.bundle import (
        AdaptationReport,
        Bundle,
        BundleManifest,
        DenseOutput,
        Precision,
        RecallChange,
    )
    from retrieval.images import Preprocessing
    from sightfix.inspection.bundles import BundleComparison, Check

_MEGABYTE: Final = 1e6

# Fields that `_print_bundle` puts into words; others, of later versions, are printed as they stand.
_IN_WORDS: Final = frozenset(
    {"kind", "format_version", "created_at", "sightfix_version", "files", "name", "descriptor_dim", "preprocessing"}
    | {"graphs", "weight_storage", "provenance", "parity", "whitening", "precisions", "camera_model_input", "licence"}
    | {"fingerprint", "dense_outputs", "adaptation"}
)
_FITS: Final = {
    "stretch": "stretched to it",
    "crop": "scaled to cover it and cut at the sides",
    "pad": "scaled to fit into it, the rest black",
}
bundle = typer.Typer(
    name="bundle", help="Show, verify and compare bundles: exported models.", no_args_is_help=True, add_completion=False
)
BundleArgument = Annotated[
    str,
    typer.Argument(help="Folder of a bundle, or of a place index that holds one; the shipped one is called: default"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print as JSON")]


@bundle.command()
def show(source: BundleArgument = "default", json: JsonOption = False) -> None:
    """Print what a bundle is: input, descriptor, precisions, where it comes from, licence, fingerprint."""
    from retrieval.bundle import open_bundle

    opened = open_bundle(Path(source))
    if json:
        sys.stdout.write(_bundle_json(opened) + "\n")
    else:
        _print_bundle(opened)


@bundle.command()
def verify(source: BundleArgument = "default") -> None:
    """Check every file and run every graph; exits 1 if anything is wrong."""
    from sightfix.inspection.bundles import check_bundle

    checks = []
    for check in check_bundle(Path(source)):
        _print_check(check)
        checks.append(check)
    _print_verdict(checks)
    if any(check.error for check in checks):
        raise typer.Exit(1)


@bundle.command()
def diff(
    first: Annotated[str, typer.Argument(help="Folder of a bundle, or: default")],
    second: Annotated[str, typer.Argument(help="Folder of another, or: default")],
    photos: Annotated[
        str | None,
        typer.Option(
            help="Describe these photos with both, and compare: a folder, a CSV, or a spec such as csv:refs.csv"
        ),
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="Take so many of them at most, evenly")] = 64,
    json: JsonOption = False,
) -> None:
    """Compare two bundles: what differs, and whether an index of one can be searched with the other."""
    from retrieval.bundle import open_bundle
    from sightfix.inspection.bundles import compare_bundles, measure_agreement

    ours, theirs = open_bundle(Path(first)), open_bundle(Path(second))
    agreement = None
    if photos is not None:
        paths = _photo_paths(photos, most)
        with progress_bar("Describing", len(paths)) as advance:
            agreement = measure_agreement(ours, theirs, paths, on_progress=advance)
    comparison = compare_bundles(ours, theirs, agreement)
    if json:
        sys.stdout.write(comparison.model_dump_json(indent=2) + "\n")
    else:
        _print_comparison(comparison)


@bundle.command()
def engine(
    source: BundleArgument = "default",
    precision: Annotated[str, typer.Option(help="Which of the bundle's graphs: fp32, fp16 or int8")] = "fp16",
    max_batch: Annotated[int, typer.Option(min=1, help="Largest batch to build for")] = 32,
    into_bundle: Annotated[
        bool, typer.Option("--into-bundle", help="Write the plan into the bundle, to travel with it")
    ] = False,
) -> None:
    """Build a TensorRT plan for this machine's GPU ahead of time; `--provider tensorrt` then uses it."""
    from export.tensorrt_plan import build_plan
    from retrieval.bundle import open_bundle
    from retrieval.engines.compiled import default_profiles

    chosen = check_choice("--precision", precision, PRECISIONS)
    opened = open_bundle(Path(source))
    with console.status("Building the TensorRT plan; this takes minutes") as status:
        plan = build_plan(
            opened,
            chosen,
            default_profiles(max_batch),
            into_bundle=into_bundle,
            on_progress=lambda step, done, total: status.update(
                f"Building the TensorRT plan: {step}, {done} of {total}"
            ),
        )
    console.print(f"[green]built[/] {plan}", soft_wrap=True)
    how = ("--provider", "tensorrt", "--precision", precision)
    if (Path(source) / CURRENT_NAME).exists():
        folder = Path(source).absolute() if not Path(source).name else Path(source)
        print_next("serve", *index_option(folder.parent, folder.name), *how)
    elif opened.is_adaptable and opened.manifest.adaptation is None:
        console.print(
            "[yellow]note[/] an index adapts this bundle to its photos, and the plan is not of the adapted one: build "
            "that of the index instead (sightfix bundle engine indexes/NAME), or index without adapting"
        )
        print_next("index", "PHOTOS", "--no-adapt", *_bundle_option(opened))
    else:
        print_next("serve", *how, *_bundle_option(opened))


def _photo_paths(spec: str, most: int) -> list[Path]:
    """At most so many photos of a reference database, evenly taken."""
    from retrieval.index.sampling import evenly_spaced
    from retrieval.references import open_references

    paths = [reference.path for reference in open_references(spec)]
    return [paths[row] for row in evenly_spaced(len(paths), most)]


def _bundle_json(bundle: "Bundle") -> str:
    """The manifest and the folder, as JSON."""
    content = {"folder": str(bundle.folder), **bundle.manifest.model_dump(mode="json")}
    return json.dumps(content, indent=2, ensure_ascii=False)


def _print_bundle(bundle: "Bundle") -> None:
    """What a bundle is, for people."""
    manifest = bundle.manifest
    console.print(f"[bold]{escape(bundle.name)}[/]  a bundle: a model that turns a photo into a descriptor")
    facts = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(bundle):
        facts.add_row(escape(name), escape(value))
    console.print(facts)
    console.print()
    console.print(_precision_table(bundle))
    if manifest.whitening is not None:
        _print_recall("whitened", manifest.whitening.recall)
    for precision, report in manifest.precisions.items():
        _print_recall(precision, report.recall)
    console.print(
        f"\nIt fits place indexes whose manifest states the fingerprint {bundle.fingerprint[:12]}…: those made with "
        "this very model and input, and no others."
    )
    print_next("index", "PHOTOS", *_bundle_option(bundle))


def _bundle_option(bundle: "Bundle") -> list[str]:
    """What names this bundle on the command line; nothing for the shipped one."""
    from retrieval.bundle import default_bundle_folder

    return [] if bundle.folder == default_bundle_folder() else ["--bundle", str(bundle.folder)]


def _facts(bundle: "Bundle") -> Iterator[tuple[str, str]]:
    from sightfix.inspection.bundles import manifest_fields

    manifest = bundle.manifest
    origin = manifest.provenance
    yield "folder", str(bundle.folder)
    yield "descriptor", f"{manifest.descriptor_dim} numbers, float32, unit length"
    yield "input", _input(manifest)
    yield "backbone", f"{origin.backbone}, {origin.aggregation}"
    yield "objective", origin.objective or "none: never trained for places"
    yield "weights", f"{origin.weights} ({origin.weights_licence})"
    yield "trained on", origin.training_data
    for what, recall in origin.recalls.items():
        yield what, f"{100 * recall:.1f} %, while it was trained"
    if manifest.parity is not None:
        parity = manifest.parity
        yield (
            "parity",
            f"worst cosine to {parity.reference}: {parity.min_cosine:.7f} on {counted(parity.images, 'image')}",
        )
    if manifest.whitening is not None:
        whitening = manifest.whitening
        photos = counted(whitening.photos, "photo")
        yield (
            "whitened",
            f"from {whitening.from_dim} to {whitening.dim} numbers (power {whitening.power:g}), fitted on "
            f"{photos} of {whitening.fitted_on}; {100 * whitening.explained:.0f} % of variance kept",
        )
    if manifest.dense_outputs:
        yield "adapts to a place with", ", ".join(_layer(output) for output in manifest.dense_outputs)
    if manifest.adaptation is not None:
        adaptation = manifest.adaptation
        yield "adapted", f"to {counted(adaptation.photos, 'photo')} of {adaptation.fitted_on}, from {_base(adaptation)}"
    yield "licence", manifest.licence
    yield "fingerprint", manifest.fingerprint
    yield "made", f"{manifest.created_at:%Y-%m-%d %H:%M} UTC, by sightfix {manifest.sightfix_version}"
    plans = sorted(path.name for path in (bundle.folder / "engines").glob("*") if path.is_dir())
    if plans:
        yield "TensorRT plans", ", ".join(plans)
    rest = {name: value for name, value in manifest.model_dump(mode="json").items() if name not in _IN_WORDS}
    for name, value in manifest_fields(rest):
        yield name.replace("_", " "), _text_of(value)


def _layer(output: "DenseOutput") -> str:
    weight = "" if output.weight == 1.0 else f", weight {output.weight:g}"
    return f"{output.layer} ({output.channels} channels{weight})"


def _base(adaptation: "AdaptationReport") -> str:
    return f"{adaptation.base_name} ({adaptation.base_fingerprint[:12]}…)"


def _input(manifest: "BundleManifest") -> str:
    preprocessing, inner = manifest.preprocessing, manifest.camera_model_input
    rule = f"{_FITS[preprocessing.fit]}, {preprocessing.filter}"
    size = _size(preprocessing)
    if inner is None:
        return f"{size} RGB; photos of other sizes are {rule}, upright by their EXIF orientation"
    return f"{size} RGB, whole frames of a camera; the graph resizes them to {_size(inner)} ({rule})"


def _size(preprocessing: "Preprocessing") -> str:
    return f"{preprocessing.width} × {preprocessing.height} pixels"


def _precision_table(bundle: "Bundle") -> Table:
    table = plain_table("precision", "file", "MB", "how near it is to fp32", right=("MB",))
    for precision, name in bundle.manifest.graphs.items():
        size = bundle.manifest.files[name].size
        table.add_row(precision, escape(name), f"{size / _MEGABYTE:.1f}", _nearness(bundle.manifest, precision))
    return table


def _nearness(manifest: "BundleManifest", precision: "Precision") -> str:
    if precision == "fp32":
        return "it is fp32" + ("; weights are stored as fp16" if manifest.weight_storage == "fp16" else "")
    report = manifest.precisions.get(precision)
    if report is None:
        return "not stated"
    kept = f"; {counted(len(report.kept_in_fp32), 'layer stays', 'layers stay')} fp32" if report.kept_in_fp32 else ""
    verdict = "[yellow]failed, accepted when it was made[/]" if report.accepted_loss else "[green]passed[/]"
    return (
        f"cosine {report.min_cosine:.5f} at worst, {report.mean_cosine:.5f} on average, "
        f"on {counted(report.images, 'photo')}; at least {report.threshold:g} is wanted: {verdict}{kept}"
    )


def _print_recall(what: str, changes: "Sequence[RecallChange]") -> None:
    for change in changes:
        console.print(
            f"{what}: recall@1 on {escape(change.evaluation_set)} within {change.radius_m:g} m "
            f"{100 * change.before:.1f} → {100 * change.after:.1f} % "
            f"({100 * change.change:+.1f}, 95 % interval {100 * change.low:+.1f} to {100 * change.high:+.1f}; "
            f"{counted(change.queries, 'query')}, chance {100 * change.chance:.1f} %)"
        )


def _print_check(check: "Check") -> None:
    """One line of `verify`."""
    if check.error is None:
        console.print(f"[green]OK[/]      {escape(check.what)}: {escape(check.found)}")
    else:
        console.print(f"[bold red]FAILED[/]  {escape(check.what)}: {escape(str(check.error))}")


def _print_verdict(checks: "Sequence[Check]") -> None:
    """The last line of `verify`."""
    failed = sum(check.error is not None for check in checks)
    if failed:
        console.print(f"[bold red]{failed} of {counted(len(checks), 'check')} failed: do not use this bundle[/]")
    else:
        console.print(f"[green]the bundle is whole[/]: {counted(len(checks), 'check')} passed")


def _print_comparison(comparison: "BundleComparison") -> None:
    """What `diff` found."""
    first, second = comparison.first, comparison.second
    for label, one in (("first", first), ("second", second)):
        console.print(
            f"[dim]{label:<6}[/]  [bold]{escape(one.name)}[/]  {escape(one.folder)}  "
            f"[dim]fingerprint {one.fingerprint[:12]}[/]"
        )
    if comparison.differences:
        table = plain_table("differs", "first", "second")
        for difference in comparison.differences:
            table.add_row(
                escape(difference.field), *(escape(_text_of(v)) for v in (difference.first, difference.second))
            )
        console.print()
        console.print(table)
        console.print()
    else:
        console.print("They state the same in every field.")
    if comparison.agreement is not None:
        agreement = comparison.agreement
        console.print(
            f"Descriptors of the same photo: cosine {agreement.mean_cosine:.6f} on average, "
            f"{agreement.worst_cosine:.6f} at worst ({escape(agreement.worst_photo)}), "
            f"over {counted(agreement.photos, 'photo')}."
        )
    if comparison.comparable:
        console.print("[green]comparable[/]: fingerprints are equal; an index of one can be searched with the other.")
    else:
        console.print(
            "[yellow]not comparable[/]: fingerprints differ; an index of one cannot be searched with the other. "
            "Index the photos again to change the model."
        )


def _text_of(value: Any) -> str:
    """A manifest's value for people: hashes short, files by size, nothing as a dash."""
    if value is None:
        return "–"
    if isinstance(value, dict) and set(value) == {"sha256", "size"}:
        return f"{value['size'] / _MEGABYTE:.3f} MB, SHA-256 {value['sha256'][:12]}"
    if isinstance(value, str):
        is_hash = len(value) == 64 and set(value) <= set("0123456789abcdef")
        return f"{value[:12]}…" if is_hash else value
    return json.dumps(value, ensure_ascii=False)
