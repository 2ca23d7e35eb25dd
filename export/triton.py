"""A Triton model repository of a bundle, for those who run NVIDIA's Triton Inference Server already."""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from retrieval.artefact import (
    MANIFEST_NAME,
    SEAL_NAME,
    Manifest,
    kind_of,
    new_folder,
    record_files,
    storage_errors,
    verify_files,
    write_flushed,
)
from retrieval.bundle import INPUT_NAME, OUTPUT_NAME, Bundle, Precision
from retrieval.errors import ArtefactError, ParameterError

CONFIG_NAME: Final = "config.pbtxt"
_KIND: Final = "triton_repository"
InstanceKind = Literal["auto", "gpu", "cpu"]
_INSTANCE_KINDS: Final[dict[InstanceKind, str]] = {"auto": "KIND_AUTO", "gpu": "KIND_GPU", "cpu": "KIND_CPU"}


@dataclass(frozen=True)
class TritonSettings:
    """How Triton runs the models.

    Attributes:
        max_batch: images in a batch that Triton makes; larger requests are refused.
        queue_delay_us: how long a request may wait for others to share its batch, microseconds.
        instances: sessions of each model on each device.
        kind: where they run; `auto` is a GPU where there is one.
        tensorrt: let ONNX Runtime run them with TensorRT.
        engine_cache: an existing folder for TensorRT's engines, as the server sees it; without, each start builds anew.
    """

    max_batch: int = 32
    queue_delay_us: int = 1000
    instances: int = 1
    kind: InstanceKind = "auto"
    tensorrt: bool = False
    engine_cache: str | None = None


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

    A repository that this function wrote is replaced, unless it was changed since.

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
    with new_folder(folder) as temporary:
        return _write(temporary, bundle, graphs, settings)


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
            f"the Triton repository holds files that sightfix did not write: {len(added)}, such as {added[0]}",
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
        write_flushed(temporary / name / CONFIG_NAME, _config_text(bundle, precision, name, settings).encode())
        names += [f"{name}/{CONFIG_NAME}", f"{name}/1/model.onnx"]
    manifest = TritonManifest(
        files=record_files(temporary, names),
        bundle_fingerprint=bundle.fingerprint,
        models={precision: model_name(bundle, precision) for precision in graphs},
    )
    manifest.write(temporary)
    return manifest


class Name(str):
    """The name of an enumeration's value, which the text format does not quote."""

    __slots__ = ()


def _config_text(bundle: Bundle, precision: Precision, name: str, settings: TritonSettings) -> str:
    """`config.pbtxt` of one of a bundle's graphs: the message ModelConfig of Triton's model_config.proto as text.

    Args:
        bundle: its sizes; the batch is no part of Triton's `dims`.
        precision: of the graph.
        name: of the model and its folder, which must be the same.
        settings: how it is run.
    """
    image = list(bundle.image_shape)
    config: dict[str, object] = {
        "name": name,
        "backend": "onnxruntime",
        "default_model_filename": "model.onnx",
        "max_batch_size": settings.max_batch,
        "input": [{"name": INPUT_NAME, "data_type": Name("TYPE_UINT8"), "dims": image}],
        "output": [{"name": OUTPUT_NAME, "data_type": Name("TYPE_FP32"), "dims": [bundle.descriptor_dim]}],
        "dynamic_batching": {"max_queue_delay_microseconds": settings.queue_delay_us},
        "instance_group": [{"kind": Name(_INSTANCE_KINDS[settings.kind]), "count": settings.instances}],
    }
    if settings.tensorrt:
        accelerator = {"name": "tensorrt", "parameters": _tensorrt(bundle, precision, name, settings)}
        config["optimization"] = {"execution_accelerators": {"gpu_execution_accelerator": [accelerator]}}
    # The server is ready when this is done, and not before: it builds engines, and takes memory for whole batches.
    config["model_warmup"] = [_warm_up(size, image) for size in sorted({1, settings.max_batch})]
    config["parameters"] = [
        {"key": f"sightfix_{key}", "value": {"string_value": value}}
        for key, value in (
            ("name", bundle.name),
            ("fingerprint", bundle.fingerprint),
            ("precision", precision),
            ("preprocessing", bundle.preprocessing.model_dump_json()),
            ("licence", bundle.manifest.licence),
        )
    ]
    return "\n".join(_lines(config)) + "\n"


def _tensorrt(bundle: Bundle, precision: Precision, name: str, settings: TritonSettings) -> list[object]:
    """ONNX Runtime's TensorRT options, by the names that Triton's backend gives them."""
    options = {"precision_mode": precision.upper()}
    for bound, count in (("min", 1), ("opt", max(1, settings.max_batch // 2)), ("max", settings.max_batch)):
        # One profile for all batches: without it, a batch larger than all before it builds another engine.
        options[f"trt_profile_{bound}_shapes"] = (
            f"{INPUT_NAME}:{'x'.join(str(side) for side in (count, *bundle.image_shape))}"
        )
    if precision == "fp16":
        options["trt_layer_norm_fp32_fallback"] = "1"
    if settings.engine_cache is not None:
        cache = settings.engine_cache.rstrip("/")
        options |= {
            "trt_engine_cache_enable": "1",
            # A folder of its own, which ONNX Runtime makes: engines of two graphs may be given the same file name.
            "trt_engine_cache_path": f"{cache}/{name}-{bundle.fingerprint[:12]}",
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": cache,
        }
    return [{"key": key, "value": value} for key, value in options.items()]


def _warm_up(batch: int, image: list[int]) -> dict[str, object]:
    blank = {"data_type": Name("TYPE_UINT8"), "dims": image, "zero_data": True}
    return {"name": f"{batch} blank", "batch_size": batch, "inputs": [{"key": INPUT_NAME, "value": blank}]}


def _lines(message: dict[str, object], depth: int = 0) -> Iterator[str]:
    """Protocol buffers' text format: nested messages in braces, lists of scalars in brackets."""
    indent = "  " * depth
    for key, value in message.items():
        if isinstance(value, list) and value and not isinstance(value[0], dict):
            yield f"{indent}{key}: [{', '.join(_scalar(item) for item in value)}]"
            continue
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                yield f"{indent}{key} {{"
                yield from _lines(item, depth + 1)
                yield f"{indent}}}"
            else:
                yield f"{indent}{key}: {_scalar(item)}"


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and not isinstance(value, Name):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
