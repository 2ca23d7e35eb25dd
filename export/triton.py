"""A Triton model repository of a bundle, for those who run NVIDIA's Triton Inference Server already."""

import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from export.triton_config import InstanceKind, TritonSettings, config_text
from retrieval.artefact import (
    MANIFEST_NAME,
    SEAL_NAME,
    Manifest,
    kind_of,
    record_files,
    rename_into_place,
    storage_errors,
    verify_files,
    write_flushed,
)
from retrieval.bundle import Bundle, Precision
from retrieval.errors import ArtefactError, ParameterError

CONFIG_NAME: Final = "config.pbtxt"
_KIND: Final = "triton_repository"


class TritonManifest(Manifest):
    """What a repository holds. A plain file beside the models, which Triton, looking for folders, passes over.

    Attributes:
        bundle_fingerprint: of the bundle.
        models: the model of each precision.
    """

    kind: Literal["triton_repository"] = _KIND
    format_version: Literal[1] = 1
    bundle_fingerprint: str
    models: dict[Precision, str]


def write_triton_repository(
    bundle: Bundle,
    folder: Path,
    *,
    precisions: Sequence[Precision] | None = None,
    max_batch: int = 32,
    queue_delay_us: int = 1000,
    instances: int = 1,
    kind: InstanceKind = "auto",
    tensorrt: bool = False,
    engine_cache: str | None = None,
) -> TritonManifest:
    """Write one Triton model for each precision: `<name>-<precision>/config.pbtxt` and `1/model.onnx`.

    A repository that this function wrote, and nobody has changed since, is replaced.

    Args:
        bundle: whose graphs.
        folder: of the repository; what Triton's `--model-repository` is given.
        precisions: of the bundle's graphs; all by default.
        max_batch, queue_delay_us, instances, kind, tensorrt, engine_cache: see `TritonSettings`.

    Raises:
        ParameterError: the folder holds something else, or a setting is outside its domain.
        BundleError: the bundle has no graph of a precision.
        StorageError: the disk refuses; nothing is left behind.
    """
    settings = TritonSettings(max_batch, queue_delay_us, instances, kind, tensorrt, engine_cache)
    _check(settings)
    graphs = {precision: bundle.graph_path(precision) for precision in precisions or bundle.manifest.graphs}
    with storage_errors(folder):
        _check_own(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".tmp-{folder.name}-", dir=folder.parent))
        replaced = temporary.with_name(f"{temporary.name}-replaced")
        try:
            manifest = _write(temporary, bundle, graphs, settings)
            temporary.chmod(0o755)
            if folder.exists():
                folder.rename(replaced)
            rename_into_place(temporary, folder)
        finally:
            if replaced.exists() and not folder.exists():
                replaced.rename(folder)
            for leftover in (temporary, replaced):
                shutil.rmtree(leftover, ignore_errors=True)
    return manifest


def model_name(bundle: Bundle, precision: Precision) -> str:
    """The name of a model in Triton's folders and addresses: letters, digits, `.`, `_` and `-`."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", bundle.name).strip("-.")
    return f"{plain or 'model'}-{precision}"


def _check(settings: TritonSettings) -> None:
    if settings.max_batch < 1 or settings.instances < 1 or settings.queue_delay_us < 0:
        raise ParameterError(
            f"max_batch {settings.max_batch}, instances {settings.instances} or queue_delay_us "
            f"{settings.queue_delay_us} is too small",
            remedy="Give at least 1, 1 and 0",
        )
    if settings.kind not in ("auto", "gpu", "cpu"):
        raise ParameterError(f"the kind {settings.kind!r} is unknown", remedy="Choose auto, gpu or cpu")
    if settings.tensorrt and settings.kind == "cpu":
        raise ParameterError("TensorRT runs on a GPU, and kind is cpu", remedy="Choose auto or gpu")
    if settings.engine_cache is not None and not settings.tensorrt:
        raise ParameterError("an engine cache is TensorRT's, which is not asked for", remedy="Set tensorrt as well")


def _check_own(folder: Path) -> None:
    """Refuse a folder that holds anything but a repository of ours as it was written."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    remedy = "Choose another folder, or remove it"
    if not folder.is_dir() or kind_of(folder) != _KIND:
        raise ParameterError(
            "the folder exists and is no Triton repository that sightfix wrote", where=str(folder), remedy=remedy
        )
    try:
        files = TritonManifest.read(folder).files
        verify_files(folder, files)
    except ArtefactError as error:
        raise ParameterError(
            "the Triton repository was changed after sightfix wrote it",
            where=error.where or str(folder),
            remedy=f"Keep what you changed: {remedy[0].lower()}{remedy[1:]}",
        ) from error
    known = {MANIFEST_NAME, SEAL_NAME, *files}
    added = sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if not path.is_dir() and str(path.relative_to(folder)) not in known
    )
    if added:
        raise ParameterError(
            f"the Triton repository holds {len(added)} files that sightfix did not write, such as {added[0]}",
            where=str(folder),
            remedy=f"Keep them: {remedy[0].lower()}{remedy[1:]}",
        )


def _write(temporary: Path, bundle: Bundle, graphs: dict[Precision, Path], settings: TritonSettings) -> TritonManifest:
    names = []
    for precision, graph in graphs.items():
        name = model_name(bundle, precision)
        version = temporary / name / "1"
        version.mkdir(parents=True)
        shutil.copyfile(graph, version / "model.onnx")
        write_flushed(temporary / name / CONFIG_NAME, config_text(bundle, precision, name, settings).encode())
        names += [f"{name}/{CONFIG_NAME}", f"{name}/1/model.onnx"]
    manifest = TritonManifest(
        files=record_files(temporary, names),
        bundle_fingerprint=bundle.fingerprint,
        models={precision: model_name(bundle, precision) for precision in graphs},
    )
    manifest.write(temporary)
    return manifest
