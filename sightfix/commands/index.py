"""`sightfix index build` and `sightfix plan`: photos in, a published place index out; and how large it will be."""

import contextlib
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Self

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import TextColumn

from index_builder.update_observer import PhotoRate, UpdateObserver, UpdateStep
from retrieval.errors import ParameterError, counted
from retrieval.index.folder import DEFAULT_INDEXES
from sightfix.commands.options import (
    BatchSizeOption,
    CpuFallbackOption,
    IndexesOption,
    KeepOption,
    MaxUnreadableOption,
    PrecisionOption,
    ProviderOption,
    StoreBuildOption,
    StoreTypeOption,
    StoreVectorsOption,
    ThreadsOption,
    check_choice,
    index_option,
    make_describer,
    push_settings,
    push_shown,
)
from sightfix.console import console, new_progress, parse_bytes, parse_count, plain_table, print_next

if TYPE_CHECKING:
    from index_builder.index_design import Choice, PlannedIndex
    from retrieval.bundle import Bundle
    from retrieval.images import LeftOut
    from retrieval.index.manifest import PlaceIndexManifest

_LINE_EVERY_S: Final = 30.0
_WHAT_FOLLOWS: Final[dict[UpdateStep, str]] = {
    "draft opened": "Listing the photos",
    "adapted": "Planning",
    "planned": "Describing",
    "described": "Writing the index",
    "manifest written": "Checking the index",
}


def index(
    source: Annotated[
        str, typer.Argument(help="The photos: a folder, a CSV, or a spec such as exif:photos/ or csv:refs.csv")
    ],
    name: Annotated[str, typer.Option("--name", "--index", help="Name of the place index")] = "default",
    indexes: IndexesOption = DEFAULT_INDEXES,
    store: Annotated[
        str | None,
        typer.Option(envvar="SIGHTFIX_STORE", help="Publish in this engine, too, such as milvus://host:19530"),
    ] = None,
    store_type: StoreTypeOption = None,
    store_build: StoreBuildOption = None,
    store_vectors: StoreVectorsOption = "fp32",
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle to describe with; that of the version before, or the shipped one")
    ] = None,
    storage: Annotated[str, typer.Option(help="Of the vectors: fp32, fp16 or int8")] = "fp16",
    type_: Annotated[
        str,
        typer.Option(
            "--type",
            help="Of the index: exact, ivf, ivf-int8, ivf-pq, ivf-pq-fast, hnsw, or auto: try and take the best",
        ),
    ] = "exact",
    recall: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Of the ten best by exact search, what an index must return")
    ] = 0.95,
    latency_ms: Annotated[float, typer.Option(min=0.0, help="auto: exact search is taken where it is as quick")] = 20.0,
    memory: Annotated[str | None, typer.Option(help="auto: RAM the vectors may take, such as 16G")] = None,
    adapt: Annotated[
        bool,
        typer.Option("--adapt/--no-adapt", help="Fit the bundle to the photos first; or use it as it is"),
    ] = True,
    refit: Annotated[
        bool, typer.Option("--refit", help="Fit it anew, though the version before is adapted, and describe all again")
    ] = False,
    dim: Annotated[
        int | None, typer.Option("--dim", "--whiten", min=16, help="Numbers of an adapted descriptor; 512 if left out")
    ] = None,
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
    batch_size: BatchSizeOption = 16,
    max_unreadable: MaxUnreadableOption = 0,
    keep: KeepOption = 3,
    describe_again: Annotated[
        bool, typer.Option("--describe-again", help="Describe also photos whose content did not change")
    ] = False,
    engine: Annotated[
        str, typer.Option(help="Who describes: local, or ray for a cluster (RAY_ADDRESS, else one on this machine)")
    ] = "local",
) -> None:
    """Describe geo-tagged photos and publish them as a place index."""
    from index_builder.adapting import adaptation_text, without_adaptation
    from index_builder.describing import DescribeSettings
    from index_builder.index_design import IndexDesign
    from index_builder.update import ENGINES, UpdateSettings, build_index, bundle_for_build
    from retrieval.bundle import open_bundle
    from retrieval.index.folder import check_index_name
    from retrieval.index.place_index import PlaceIndex
    from retrieval.index.vectors.candidates import INDEX_TYPES
    from retrieval.index.vectors.exact import STORAGES
    from retrieval.references import open_references

    design = IndexDesign(
        storage=check_choice("--storage", storage, STORAGES),
        type=check_choice("--type", type_, (*INDEX_TYPES, "auto")),
        recall=recall,
        latency_ms=latency_ms,
        memory_bytes=None if memory is None else parse_bytes(memory),
        local_features=local_features,
    )
    check_index_name(name)
    push = push_settings(store_type, store_build, store_vectors, recall, keep)
    references = open_references(source)
    if not adapt and (refit or dim is not None):
        raise ParameterError("--no-adapt leaves nothing to fit", remedy="Leave out --refit and --dim, or --no-adapt")
    chosen = bundle_for_build(indexes, name, bundle)
    if not adapt and bundle is None:
        chosen = without_adaptation(chosen, open_bundle())
    describer = make_describer(chosen, provider, precision, threads, allow_cpu_fallback)
    settings = UpdateSettings(
        design=design,
        describe=DescribeSettings(batch_size=batch_size, max_unreadable=max_unreadable),
        describe_again=describe_again,
        adapt="again" if refit else "auto" if adapt else "never",
        dim=dim,
        engine=check_choice("--engine", engine, ENGINES),
        keep=keep,
    )
    with IndexingProgress.shown() as progress:
        built = build_index(references, describer, indexes, name, settings, observer=progress)
    manifest = built.manifest
    _print_choices(built.choices)
    for photo in built.unreadable:
        console.print(f"[yellow]left out[/] {escape(f'{photo.path}: {photo.reason}')}")
    for photo in built.without_features:
        console.print(f"[yellow]without local features[/] {escape(f'{photo.path}: {photo.reason}')}")
    for reason, photos in Counter(skipped.reason for skipped in references.skipped).most_common():
        first = next(skipped.path for skipped in references.skipped if skipped.reason == reason)
        console.print(f"[yellow]left out[/] {counted(photos, 'photo')}: {reason} (the first: {escape(str(first))})")
    _print_recall(manifest)
    held = PlaceIndex.open(built.folder, memory_map=True).held_bundle()
    if held is not None and held.manifest.adaptation is not None:
        console.print(adaptation_text(held))
        _print_lost_precisions(chosen, held, source)
    if built.taken_over:
        console.print(f"{counted(built.taken_over, 'unchanged photo')} not described again")
    console.print(
        f"[green]published[/] {counted(manifest.count, 'reference')} as [bold]{name}[/], version {manifest.version}"
    )
    if store is None:
        print_next("serve", *index_option(indexes, name))
    else:
        push_shown(PlaceIndex.open(built.folder), store, push)


def plan(
    references: Annotated[str, typer.Option(help="How many photos, such as 300000 or 50M")],
    dim: Annotated[int, typer.Option(min=1, max=65_536, help="Numbers in a stored descriptor")] = 512,
    memory: Annotated[str | None, typer.Option(help="RAM there is for the index, such as 64G")] = None,
) -> None:
    """Predict memory, disk, building time and latency of each type of index on a machine like this one."""
    from index_builder.index_design import measure_machine, plan_indexes

    rows = parse_count(references)
    limit = None if memory is None else parse_bytes(memory)
    speed = measure_machine(dim)
    console.print(
        f"{counted(rows, 'reference')} of {counted(dim, 'number')}"
        + ("" if limit is None else f", {bytes_text(limit)} of memory")
        + f"; this machine multiplies {speed.multiply_gflops:.0f} GFLOP/s and scans fp16 descriptors at "
        f"{2 / speed.scan_ns['fp16']:.1f} GB/s"
    )
    _print_plan(plan_indexes(rows, dim, speed, limit))
    console.print(
        "Predicted, for a recall@10 of about 95 %; describing the photos comes before and is not in it. "
        "Half the numbers, half of everything: --dim when indexing. Beside approximate types the stored "
        "descriptors stay on the disk; `sightfix index --type auto` measures instead of predicting."
    )


class IndexingProgress(UpdateObserver):
    """Shows what is done, at which rate, how long it will take, and how many photos failed.

    Args:
        errors: where to show it.
    """

    def __init__(self, errors: Console) -> None:
        self._errors = errors
        self.bar = new_progress(errors, TextColumn("[red]{task.fields[failed]}[/]"))
        self._task = self.bar.add_task("Listing the photos", total=None, rate="", failed="")
        self._total = 0
        self._rate: PhotoRate | None = None
        self._printed_at = time.monotonic()

    @classmethod
    @contextlib.contextmanager
    def shown(cls) -> Iterator[Self]:
        """The progress on the standard error stream."""
        progress = cls(Console(stderr=True))
        with progress.bar:
            yield progress

    def reached(self, step: UpdateStep) -> None:
        """Say what comes next."""
        what = _WHAT_FOLLOWS.get(step)
        if what is not None:
            self.bar.update(self._task, description=what, rate="")

    def adapting(self, done: int, total: int) -> None:
        """So many photos are read that the bundle is fitted to."""
        if done == 0:
            self.bar.reset(self._task, total=total, description="Fitting the bundle to the place", rate="", failed="")
        self.bar.update(self._task, completed=done)

    def planned(self, total: int) -> None:
        """The number of photos to describe is known."""
        self._total = total
        self.bar.update(self._task, total=total)

    def local_features(self, done: int, total: int, without: "Sequence[LeftOut]") -> None:
        """The local features of so many photos are written."""
        if done == 1:
            self.bar.reset(self._task, total=total, description="Finding local features", rate="", failed="")
        self.bar.update(self._task, completed=done)

    def described(self, done: int, failed: int) -> None:
        """So many photos are described."""
        if self._rate is None:
            self._rate = PhotoRate()
            self.bar.reset(self._task, total=self._total, completed=done)
        self._rate.update(done)
        rate = self._rate.per_second
        self.bar.update(
            self._task,
            completed=done,
            rate="" if rate is None else f"{rate:.1f} photos/s",
            failed=f"{failed} unreadable" if failed else "",
        )
        if self.bar.disable and rate is not None and time.monotonic() - self._printed_at > _LINE_EVERY_S:
            self._printed_at = time.monotonic()
            left = duration_text((self._total - done) / rate)
            unreadable = f", {failed} unreadable" if failed else ""
            self._errors.print(
                f"described {done:,} of {counted(self._total, 'photo')}, {rate:.1f} photos/s, {left} left{unreadable}",
                soft_wrap=True,
            )

    def not_pruned(self, problem: str) -> None:
        """Old versions could not be removed."""
        self._errors.print(f"[yellow]old versions stay:[/] {escape(problem)}", soft_wrap=True)


def _print_choices(choices: "Sequence[Choice]") -> None:
    """What ``--type auto`` considered."""
    if not choices:
        return
    numbers = ("recall@10", "ms a query", "memory")
    table = plain_table("type", *numbers, "verdict", right=numbers, title="Types of index that were considered")
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


def _print_lost_precisions(given: "Bundle", held: "Bundle", source: str) -> None:
    """Which precisions the adapted bundle lacks, and how to have them; nothing where it has all."""
    lost = [precision for precision in given.manifest.graphs if precision not in held.manifest.graphs]
    if not lost:
        return
    wanted = [word for precision in lost for word in ("--precision", precision)]
    export = shlex.join(["export", str(given.folder), "--adapt", source, *wanted, "--out", "ADAPTED"])
    index = shlex.join(["index", source, "--bundle", "ADAPTED"])
    console.print(
        f"[yellow]note[/] the adapted bundle is fp32 only, without {' and '.join(lost)}. To have them: "
        f"sightfix {escape(export)}, then: sightfix {escape(index)}"
    )


def _print_recall(manifest: "PlaceIndexManifest") -> None:
    """How good an approximate index is; nothing of exact search."""
    if manifest.recall is None or manifest.candidates is None:
        return
    recall = manifest.recall
    console.print(
        f"type {manifest.index_type}, effort {manifest.candidates.effort}: recall@1 {recall.at_1:.1%}, "
        f"recall@10 {recall.at_10:.1%} of exact search ({counted(recall.queries, 'query')}), "
        f"{recall.milliseconds:.2g} ms a query"
    )


def _print_plan(planned: "Sequence[PlannedIndex]") -> None:
    """What each type of index would be."""
    numbers = ("memory", "disk", "build", "ms a query")
    table = plain_table("type", "stored as", *numbers, "", right=numbers)
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
