"""The text of a Triton `config.pbtxt`: the message ModelConfig of the published model_config.proto, in text format."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from retrieval.bundle import INPUT_NAME, OUTPUT_NAME, Bundle, Precision

InstanceKind = Literal["auto", "gpu", "cpu"]

_KINDS: Final[dict[InstanceKind, str]] = {"auto": "KIND_AUTO", "gpu": "KIND_GPU", "cpu": "KIND_CPU"}


class Name(str):
    """The name of an enumeration's value, which the text format does not quote."""

    __slots__ = ()


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


def config_text(bundle: Bundle, precision: Precision, name: str, settings: TritonSettings) -> str:
    """`config.pbtxt` of one of a bundle's graphs.

    Args:
        bundle: its sizes; the batch is no part of Triton's `dims`.
        precision: of the graph.
        name: of the model and its folder, which must be the same.
        settings: how it is run.
    """
    image = [bundle.preprocessing.height, bundle.preprocessing.width, 3]
    config: dict[str, object] = {
        "name": name,
        "backend": "onnxruntime",
        "default_model_filename": "model.onnx",
        "max_batch_size": settings.max_batch,
        "input": [{"name": INPUT_NAME, "data_type": Name("TYPE_UINT8"), "dims": image}],
        "output": [{"name": OUTPUT_NAME, "data_type": Name("TYPE_FP32"), "dims": [bundle.descriptor_dim]}],
        "dynamic_batching": {"max_queue_delay_microseconds": settings.queue_delay_us},
        "instance_group": [{"kind": Name(_KINDS[settings.kind]), "count": settings.instances}],
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
    image = (bundle.preprocessing.height, bundle.preprocessing.width, 3)
    for bound, count in (("min", 1), ("opt", max(1, settings.max_batch // 2)), ("max", settings.max_batch)):
        # One profile for all batches: without it, a batch larger than all before it builds another engine.
        options[f"trt_profile_{bound}_shapes"] = f"{INPUT_NAME}:{'x'.join(str(side) for side in (count, *image))}"
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
