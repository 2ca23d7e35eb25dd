"""Read an ONNX file that somebody else has written, with the weights that may lie beside it."""

import re
from pathlib import Path
from typing import Final

import onnx
from onnx import TensorProto
from onnx.external_data_helper import load_external_data_for_model

from export.foreign_settings import ForeignModelError

# Protocol buffers, and so ONNX files without external data, end here.
MAX_BYTES: Final = 2**31 - 1

_LONGEST: Final = 250
_NOT_ONNX: Final = {
    b"version https://git-lfs": ("a Git LFS pointer, not the file itself", "Run git lfs pull"),
    b"PK\x03\x04": ("a zip archive, such as PyTorch writes", "Export the model with torch.onnx.export first"),
    b"\x80\x02": ("a pickle, such as PyTorch writes", "Export the model with torch.onnx.export first"),
    b"<": ("a web page", "Download the file itself, not the page that shows it"),
}


def read_onnx(path: Path, toml: Path) -> onnx.ModelProto:
    """Parse an ONNX file and take in weights that lie in other files.

    Args:
        path: of the file.
        toml: what names it, for error messages.

    Raises:
        ForeignModelError (``foreign_file``): it cannot be read, is no ONNX model, is cut off, or exceeds 2 GB.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _too_large(path)
        data = path.read_bytes()
    except OSError as error:
        raise ForeignModelError(
            f"the model cannot be read ({error.strerror})",
            where=str(path),
            remedy=f"Correct the key onnx in {toml.name}: a path relative to that file",
            code="foreign_file",
        ) from error
    for beginning, (what, remedy) in _NOT_ONNX.items():
        if data.startswith(beginning):
            raise ForeignModelError(
                f"this is {what}, not an ONNX model", where=str(path), remedy=remedy, code="foreign_file"
            )
    try:
        model: onnx.ModelProto = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's own type, which onnx does not name
        raise _no_onnx(path) from error
    if model.ir_version == 0 or not model.graph.node:
        raise _no_onnx(path)
    _check_external_data(model, path, len(data))
    try:
        load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # onnx checks that the files lie beside the model, and raises several types
        raise ForeignModelError(
            f"the weights beside the model cannot be read ({first_line(error)})",
            where=str(path),
            remedy="Copy the model together with the files of weights that its exporter wrote beside it",
            code="foreign_file",
        ) from error
    return model


def _check_external_data(model: onnx.ModelProto, path: Path, size: int) -> None:
    """Are the files of weights there, whole, and small enough to become one file?"""
    ends: dict[str, int] = {}
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        name, length = place.get("location", ""), int(place.get("length", 0))
        size += length
        ends[name] = max(ends.get(name, 0), int(place.get("offset", 0)) + length)
    if size > MAX_BYTES:
        raise _too_large(path)
    for name, end in ends.items():
        beside = path.parent / name
        if not beside.is_file():
            raise ForeignModelError(
                f"its weights lie in {name}, which is missing",
                where=str(path),
                remedy="Copy that file beside the model",
                code="foreign_file",
            )
        if beside.stat().st_size < end:
            raise ForeignModelError(
                f"the file of weights has {beside.stat().st_size} bytes, and the model wants {end}",
                where=str(beside),
                remedy="It was cut off; copy or download it again",
                code="foreign_file",
            )


def _too_large(path: Path) -> ForeignModelError:
    return ForeignModelError(
        "the model has more than 2 GB of weights, which one ONNX file cannot hold",
        where=str(path),
        remedy="Export it in fp16, or take a smaller one",
        code="foreign_file",
    )


def _no_onnx(path: Path) -> ForeignModelError:
    return ForeignModelError(
        "this is not an ONNX model, or it is cut off",
        where=str(path),
        remedy="Copy or download it again, or export it again",
        code="foreign_file",
    )


def first_line(error: BaseException) -> str:
    """What an error of another library says, without its later lines and without where in its code it was raised."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    failed = re.search(r"while running (\w+) node\. Name:'([^']*)'", lines[0])
    if failed:
        return f"{failed[1]} node {failed[2]!r} fails"
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", lines[0])[:_LONGEST].rstrip(". ")
