"""The ONNX file of a foreign model: read, opened as it is, its input and output found and checked against the TOML."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto
from onnx.external_data_helper import load_external_data_for_model

from export.foreign.settings import ForeignInput, ForeignModelError, ForeignSettings, PixelType
from retrieval.bundle.exportable import open_on_cpu

_PIXEL_TYPES: Final[dict[str, PixelType]] = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
}
_FLOATS: Final = ("tensor(float)", "tensor(float16)", "tensor(double)")

# Protocol buffers, and so ONNX files without external data, end here.
MAX_BYTES: Final = 2**31 - 1
_LONGEST: Final = 250
_NOT_ONNX: Final = {
    b"version https://git-lfs": ("a Git LFS pointer, not the file itself", "Run git lfs pull"),
    b"PK\x03\x04": ("a zip archive, such as PyTorch writes", "Export the model with torch.onnx.export first"),
    b"\x80\x02": ("a pickle, such as PyTorch writes", "Export the model with torch.onnx.export first"),
    b"<": ("a web page", "Download the file itself, not the page that shows it"),
}
_KNOWN_DOMAINS: Final = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")


@dataclass(frozen=True)
class ForeignFile:
    """A foreign model that ONNX Runtime has opened.

    Attributes:
        path: of the ONNX file.
        model: with all weights inside, otherwise untouched.
        session: of the file on the CPU.
        input_name: what is fed.
        dtype: of the input.
        output_name: what is the descriptor.
        batch: images that one run takes, where the file fixes that; None where any number is declared.
    """

    path: Path
    model: onnx.ModelProto
    session: Any
    input_name: str
    dtype: PixelType
    output_name: str
    batch: int | None

    def run(self, images: NDArray[Any]) -> NDArray[Any]:
        """What the untouched file returns, one image (or as many as it insists on) at a time.

        Args:
            images: (N, …) as the file wants them.

        Returns:
            (N, …): of each image what it gets without any other beside it.

        Raises:
            ForeignModelError: it does not run, or does not return a row for each image.
        """
        size = self.batch or 1
        rows = []
        for begin in range(0, len(images), size):
            batch = images[begin : begin + size]
            missing = size - len(batch)
            fed = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
            try:
                (returned,) = self.session.run([self.output_name], {self.input_name: fed})
            except Exception as error:  # ONNX Runtime's exceptions share no base class but this
                raise ForeignModelError(
                    f"the file does not run on images of the stated size ({first_line(error)})",
                    where=str(self.path),
                    remedy="Check height, width and layout in [input] against how the model was exported",
                    code="foreign_operator",
                ) from error
            if returned.ndim == 0 or len(returned) != size:
                raise ForeignModelError(
                    f"output {self.output_name!r} has shape {list(returned.shape)} for {size} "
                    f"{'image' if size == 1 else 'images'}, not a row for each image",
                    where=str(self.path),
                    remedy="Name the output that holds one vector an image in [output], or export the model so",
                    code="foreign_values",
                )
            rows.append(returned[: len(batch)])
        if len({row.shape[1:] for row in rows}) > 1:
            shapes = sorted({str(list(row.shape[1:])) for row in rows})
            raise ForeignModelError(
                f"the shape of output {self.output_name!r} depends on what an image shows: {' and '.join(shapes)}",
                where=str(self.path),
                remedy="A descriptor has a fixed length; export the model so, or name another output in [output]",
                code="foreign_values",
            )
        return np.concatenate(rows)


def open_file(toml: Path, settings: ForeignSettings) -> ForeignFile:
    """Open the ONNX file that a TOML names, and choose its input and output.

    Raises:
        ForeignModelError: no ONNX file, damaged, above 2 GB, an operator that ONNX Runtime lacks, or inputs and outputs
            that contradict the TOML.
    """
    path = toml.parent / settings.onnx
    model = _read_onnx(path, toml)
    session = _open_file_session(path, model)
    chosen = _choose_input(session.get_inputs(), settings.input, path, toml)
    batch = _check_input(chosen, settings.input, path, toml)
    output = _choose_output(session.get_outputs(), settings.output.name, path, toml)
    return ForeignFile(path, model, session, chosen.name, _PIXEL_TYPES[chosen.type], output.name, batch)


def first_line(error: BaseException) -> str:
    """What an error of another library says, without its later lines and without where in its code it was raised."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    failed = re.search(r"while running (\w+) node\. Name:'([^']*)'", lines[0])
    if failed:
        return f"{failed[1]} node {failed[2]!r} fails"
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", lines[0])[:_LONGEST].rstrip(". ")


def _read_onnx(path: Path, toml: Path) -> onnx.ModelProto:
    """Parse an ONNX file and load weights that lie in other files.

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
        raise _damaged(
            f"the model cannot be read ({error.strerror})",
            path,
            f"Correct the key onnx in {toml.name}: a path relative to that file",
        ) from error
    for beginning, (what, remedy) in _NOT_ONNX.items():
        if data.startswith(beginning):
            raise _damaged(f"this is {what}, not an ONNX model", path, remedy)
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
        raise _damaged(
            f"the weights beside the model cannot be read ({first_line(error)})",
            path,
            "Copy the model together with the files of weights that its exporter wrote beside it",
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
            raise _damaged(f"its weights lie in {name}, which is missing", path, "Copy that file beside the model")
        if beside.stat().st_size < end:
            raise _damaged(
                f"the file of weights has {beside.stat().st_size} bytes, and the model wants {end}",
                beside,
                "It was cut off; copy or download it again",
            )


def _too_large(path: Path) -> ForeignModelError:
    what = "the model has more than 2 GB of weights, which one ONNX file cannot hold"
    return _damaged(what, path, "Export it in fp16, or take a smaller one")


def _no_onnx(path: Path) -> ForeignModelError:
    return _damaged(
        "this is not an ONNX model, or it is cut off", path, "Copy or download it again, or export it again"
    )


def _damaged(what: str, path: Path, remedy: str) -> ForeignModelError:
    return ForeignModelError(what, where=str(path), remedy=remedy, code="foreign_file")


def _open_file_session(path: Path, model: onnx.ModelProto) -> Any:
    try:
        return open_on_cpu(str(path))
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this
        custom = sorted(
            {f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain not in _KNOWN_DOMAINS}
            - {f"{function.domain}.{function.name}" for function in model.functions}
        )
        if custom:
            raise ForeignModelError(
                f"it uses operators that ONNX Runtime does not have: {', '.join(custom)}",
                where=str(path),
                remedy="Export the model with standard ONNX operators only",
                code="foreign_operator",
            ) from error
        raise ForeignModelError(
            f"ONNX Runtime {onnxruntime.__version__} cannot open it ({first_line(error)})",
            where=str(path),
            remedy="Export it again, with another opset or exporter",
            code="foreign_operator",
        ) from error


def _choose_input(inputs: Sequence[Any], wanted: ForeignInput, path: Path, toml: Path) -> Any:
    listed = _listed(inputs)
    chosen = [value for value in inputs if value.name == (wanted.name or value.name)]
    if wanted.name is not None and not chosen:
        raise _contract(f"the graph has no input {wanted.name!r}; it has {listed}", toml, "Correct [input] name")
    if wanted.name is None and len(inputs) != 1:
        raise _contract(
            f"the graph has {len(inputs)} inputs: {listed}", toml, "Say in [input] name which takes the image"
        )
    if len(inputs) > 1:
        raise _contract(
            f"the graph has inputs besides {wanted.name!r}: {listed}; a bundle's graph is fed images and no more",
            path,
            "Export the model with the others as constants",
        )
    return chosen[0]


def _check_input(chosen: Any, wanted: ForeignInput, path: Path, toml: Path) -> int | None:
    """Type, rank and sizes against the TOML. Returns the batch size if the file fixes it."""
    has = f"input {chosen.name!r} is {_listed([chosen]).partition(' ')[2]}"
    dtype = _PIXEL_TYPES.get(chosen.type)
    if dtype is None:
        raise _contract(has, path, f"Export the model for {', '.join(_PIXEL_TYPES.values())}")
    if wanted.dtype not in (None, dtype):
        raise _contract(f"{has}, and [input] dtype says {wanted.dtype}", toml, f"Set dtype to {dtype!r}")
    if len(chosen.shape) != 4:
        raise _contract(f"{has}, which is no batch of images", path, "Export the model with an input of four sides")
    sizes = {"nchw": (3, wanted.height, wanted.width), "nhwc": (wanted.height, wanted.width, 3)}
    fixed = [side if isinstance(side, int) else None for side in chosen.shape]
    if not _fits(fixed[1:], sizes[wanted.layout]):
        other = "nhwc" if wanted.layout == "nchw" else "nchw"
        remedy = (
            f"Set layout to {other!r}" if _fits(fixed[1:], sizes[other]) else "Correct height, width or layout there"
        )
        said = f"{wanted.height}×{wanted.width} {wanted.layout}"
        raise _contract(f"{has}, and [input] says {said}", toml, remedy)
    _check_normalisation(dtype, wanted, toml)
    return fixed[0]


def _fits(fixed: Sequence[int | None], sizes: Sequence[int]) -> bool:
    return all(has in (None, wants) for has, wants in zip(fixed, sizes, strict=True))


def _check_normalisation(dtype: PixelType, wanted: ForeignInput, toml: Path) -> None:
    """A normalisation is never guessed: a wrong one gives descriptors that look right and find nothing."""
    given = {"scale": wanted.scale, "mean": wanted.mean, "std": wanted.std}
    if dtype == "uint8" and any(value is not None for value in given.values()):
        stated = " and ".join(key for key, value in given.items() if value is not None)
        raise _contract(f"the input takes uint8, and [input] sets {stated}", toml, f"Remove {stated}")
    missing = [key for key, value in given.items() if value is None]
    if dtype != "uint8" and missing:
        raise _contract(
            f"[input] lacks {' and '.join(missing)}, and the net takes {dtype}",
            toml,
            "Say what it was trained with: it sees (x / scale - mean) / std; many take scale = 255, "
            "mean = [0.485, 0.456, 0.406], std = [0.229, 0.224, 0.225]",
        )


def _choose_output(outputs: Sequence[Any], name: str | None, path: Path, toml: Path) -> Any:
    listed = _listed(outputs)
    chosen = [output for output in outputs if output.name == (name or output.name)]
    if name is not None and not chosen:
        raise _contract(f"the graph has no output {name!r}; it has {listed}", toml, "Correct [output] name")
    if len(chosen) != 1:
        raise _contract(
            f"the graph has {len(outputs)} outputs: {listed}", toml, "Say in [output] name which is the descriptor"
        )
    shape = chosen[0].shape
    if chosen[0].type not in _FLOATS or (shape and not _is_vector(shape)):
        raise _contract(
            f"output {_listed(chosen)} is not one vector of floating-point numbers an image",
            path,
            "Name another output in [output], or export the model with its pooling",
        )
    return chosen[0]


def _is_vector(shape: Sequence[int | str | None]) -> bool:
    """Whether (N, D), or (N, D, 1, 1) as a pooling without flattening leaves it."""
    return len(shape) >= 2 and all(side == 1 or not isinstance(side, int) for side in shape[2:])


def _listed(values: Sequence[Any]) -> str:
    """Names with type and shape, such as `image float [1, 3, 224, 224]`."""
    texts = []
    for value in values:
        sides = ", ".join(str(side) if side is not None else "?" for side in value.shape)
        texts.append(f"{value.name} {value.type.removeprefix('tensor(').removesuffix(')')} [{sides}]")
    return "; ".join(texts)


def _contract(what: str, where: Path, remedy: str) -> ForeignModelError:
    return ForeignModelError(what, where=str(where), remedy=remedy, code="foreign_contract")
