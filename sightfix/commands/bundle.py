"""`sightfix bundle`: look at bundles, check them, compare them."""

import sys
from pathlib import Path
from typing import Annotated

import typer

bundle = typer.Typer(
    name="bundle", help="Show, verify and compare bundles: exported models.", no_args_is_help=True, add_completion=False
)

BundleArgument = Annotated[
    str, typer.Argument(help="Folder of a bundle; the shipped one if left out, which is also called: default")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print as JSON")]


@bundle.command()
def show(source: BundleArgument = "default", json: JsonOption = False) -> None:
    """Print what a bundle is: input, descriptor, precisions, where it comes from, licence, fingerprint."""
    from retrieval.bundle import open_bundle
    from sightfix.bundle_console import bundle_json, print_bundle

    opened = open_bundle(_folder(source))
    if json:
        sys.stdout.write(bundle_json(opened) + "\n")
    else:
        print_bundle(opened)


@bundle.command()
def verify(source: BundleArgument = "default") -> None:
    """Check every file and run every graph; exits 1 if anything is wrong."""
    from retrieval.bundle_inspection import check_bundle
    from sightfix.bundle_console import print_check, print_verdict

    checks = []
    for check in check_bundle(_folder(source)):
        print_check(check)
        checks.append(check)
    print_verdict(checks)
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
    from retrieval.bundle_inspection import compare_bundles, measure_agreement
    from sightfix.bundle_console import print_comparison
    from sightfix.console import progress_bar

    ours, theirs = open_bundle(_folder(first)), open_bundle(_folder(second))
    agreement = None
    if photos is not None:
        paths = _photo_paths(photos, most)
        with progress_bar("Describing", len(paths)) as advance:
            agreement = measure_agreement(ours, theirs, paths, on_progress=advance)
    comparison = compare_bundles(ours, theirs, agreement)
    if json:
        sys.stdout.write(comparison.model_dump_json(indent=2) + "\n")
    else:
        print_comparison(comparison)


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
    from typing import cast

    from export.tensorrt_plan import build_plan
    from retrieval.bundle import Precision, open_bundle
    from retrieval.engines.compiled import default_profiles
    from sightfix.console import console

    opened = open_bundle(_folder(source))
    with console.status("Building the TensorRT plan; this takes minutes") as status:
        plan = build_plan(
            opened,
            cast(Precision, precision),
            default_profiles(max_batch),
            into_bundle=into_bundle,
            on_progress=lambda step, done, total: status.update(
                f"Building the TensorRT plan: {step}, {done} of {total}"
            ),
        )
    console.print(f"[green]built[/] {plan}", soft_wrap=True)
    console.print(f"Next: sightfix serve --provider tensorrt --precision {precision}")


def _folder(source: str) -> Path | None:
    return None if source == "default" else Path(source)


def _photo_paths(spec: str, most: int) -> list[Path]:
    """At most so many photos of a reference database, evenly taken."""
    from retrieval.references import open_references

    paths = [reference.path for reference in open_references(spec)]
    step = max(1.0, len(paths) / most)
    return [paths[int(place * step)] for place in range(min(most, len(paths)))]
