"""The TOML that says how a foreign model wants its images: typed, nothing unknown, nothing guessed."""

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from retrieval.bundle import Provenance
from retrieval.errors import SightfixError
from retrieval.images import Preprocessing

PixelType = Literal["float32", "float16", "uint8"]
ThreeNumbers = Annotated[list[float], Field(min_length=3, max_length=3)]
_TABLES: Final = ("input", "output", "resize", "provenance")


class ForeignModelError(SightfixError):
    """A foreign model, or the TOML that describes it, that cannot become a bundle.

    Codes: ``foreign_settings`` (the TOML), ``foreign_file`` (no or a damaged ONNX file, or too large),
    ``foreign_contract`` (its inputs or outputs do not fit), ``foreign_operator`` (ONNX Runtime cannot run it),
    ``foreign_batch`` (it describes one image at a time only), ``foreign_values`` (what it returns is no descriptor).
    """

    default_code = "foreign_model"


class ForeignTable(BaseModel):
    """Base of the tables: immutable, nothing unknown, and no silent conversion (a text is no number)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ForeignInput(ForeignTable):
    """`[input]`: what the graph is fed. It sees (x / scale - mean) / std of 8-bit values x.

    Attributes:
        name: of the graph's input; may be left out where there is one.
        layout: `nchw` (PyTorch) or `nhwc` (TensorFlow).
        channels: `rgb`, or `bgr` as OpenCV and Caffe have it.
        dtype: of the input; the file's by default. Stated, it must be the file's.
        height, width: of the images, pixels.
        scale: what 8-bit values are divided by first: 255, or 1 for nets that want 0 to 255.
        mean, std: of each channel, in the order in which the net sees them. Required but for uint8.
    """

    name: str | None = Field(default=None, min_length=1)
    layout: Literal["nchw", "nhwc"] = "nchw"
    channels: Literal["rgb", "bgr"] = "rgb"
    dtype: PixelType | None = None
    height: int = Field(ge=16, le=4096)
    width: int = Field(ge=16, le=4096)
    scale: float | None = Field(default=None, gt=0)
    mean: ThreeNumbers | None = None
    std: ThreeNumbers | None = None

    @model_validator(mode="after")
    def _check_normalisation(self) -> Self:
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"input.std is {self.std}: it must be above 0")
        return self


class ForeignOutput(ForeignTable):
    """`[output]`: what of the graph is the descriptor.

    Attributes:
        name: of the graph's output; may be left out where there is one.
        normalise: append an L2 norm. It does no harm where the descriptor has unit length already.
    """

    name: str | None = Field(default=None, min_length=1)
    normalise: bool = True


class ForeignResize(ForeignTable):
    """`[resize]`: how photos become images of that size; see `Preprocessing`."""

    fit: Literal["stretch", "crop", "pad"] = "stretch"
    filter: Literal["bilinear", "bicubic"] = "bicubic"


class ForeignProvenance(ForeignTable):
    """`[provenance]`: where the model comes from; see `Provenance`.

    Attributes:
        backbone, aggregation: of the network, in words.
        objective: what it was trained for; left out means: never trained for places.
        weights: name and version, or address, of the weights.
        weights_licence: of the weights.
        training_data: the photos it was trained on.
        licence: of the bundle; that of the weights by default.
    """

    backbone: str = Field(min_length=1)
    aggregation: str = Field(min_length=1)
    objective: str | None = Field(default=None, min_length=1)
    weights: str = Field(min_length=1)
    weights_licence: str = Field(min_length=1)
    training_data: str = Field(min_length=1)
    licence: str | None = Field(default=None, min_length=1)


class ForeignSettings(ForeignTable):
    """The whole TOML.

    Attributes:
        name: of the bundle, for people.
        onnx: the file, relative to the TOML.
    """

    name: str = Field(min_length=1)
    onnx: str = Field(min_length=1)
    input: ForeignInput
    output: ForeignOutput = ForeignOutput()
    resize: ForeignResize = ForeignResize()
    provenance: ForeignProvenance

    def preprocessing(self) -> Preprocessing:
        """From a photo to the bundle's input."""
        size, resize = self.input, self.resize
        return Preprocessing(height=size.height, width=size.width, fit=resize.fit, filter=resize.filter)

    def bundle_provenance(self) -> Provenance:
        """What the bundle states of the model's origin."""
        return Provenance.model_validate(self.provenance.model_dump(exclude={"licence"}))

    def licence(self) -> str:
        """The bundle's licence."""
        return self.provenance.licence or self.provenance.weights_licence


def read_settings(toml: Path) -> ForeignSettings:
    """Read the TOML of a foreign model.

    Raises:
        ForeignModelError (``foreign_settings``): no such file, no valid TOML (names the line), an unknown key (lists
            the valid ones), a missing key, or a value of another type or outside its domain.
    """
    where = str(toml)
    try:
        content = tomllib.loads(toml.read_text(encoding="utf-8"))
    except OSError as error:
        raise _refused(
            f"the file cannot be read ({error.strerror})", where, "Give the TOML that describes the model"
        ) from error
    except UnicodeDecodeError as error:
        remedy = "Give the TOML that describes the model" + (", not the model" if toml.suffix == ".onnx" else "")
        raise _refused("this is not UTF-8 text", where, remedy) from error
    except tomllib.TOMLDecodeError as error:
        remedy = "Correct that line; texts stand in quotes"
        raise _refused(f"this is not valid TOML: {error}", where, remedy) from error
    try:
        return ForeignSettings.model_validate(content)
    except ValidationError as error:
        # A misspelt key is reported as unknown and as missing; the former says what to do.
        faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
        raise _explained(faults[0], where) from error


def _refused(what: str, where: str, remedy: str | None) -> ForeignModelError:
    return ForeignModelError(what, where=where, remedy=remedy, code="foreign_settings")


def valid_keys(table: str | None = None) -> tuple[str, ...]:
    """The keys of a table, or of the file's top."""
    model = ForeignSettings if table is None else ForeignSettings.model_fields[table].annotation
    assert isinstance(model, type)
    assert issubclass(model, BaseModel)
    return tuple(f"[{key}]" if table is None and key in _TABLES else key for key in model.model_fields)


def _explained(fault: ErrorDetails, where: str) -> ForeignModelError:
    """Pydantic's first complaint in our words."""
    path = [str(part) for part in fault["loc"]]
    # Below a key of a table, pydantic names members of unions and places in lists.
    path = path[: 2 if path and path[0] in _TABLES else 1]
    key = ".".join(path)
    table = path[0] if len(path) == 2 else None
    if fault["type"] == "extra_forbidden":
        keys = valid_keys(table)
        near = difflib.get_close_matches(path[-1], keys, n=1)
        suggestion = f"Did you mean {near[0]}? " if near else ""
        of = f" of [{table}]" if table else ""
        return _refused(f"unknown key {key}", where, f"{suggestion}The keys{of} are {', '.join(keys)}")
    if fault["type"] == "missing":
        thing = f"table [{key}]" if key in _TABLES else f"key {key}"
        keys = valid_keys(key if key in _TABLES else table)
        return _refused(
            f"the {thing} is missing",
            where,
            f"Add it; {'its' if key in _TABLES else 'the'} "
            f"keys{f' of [{table}]' if table else ''} are {', '.join(keys)}",
        )
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return _refused(message, where, "Correct it")
    return _refused(f"{key} is {fault['input']!r}: {message[0].lower()}{message[1:]}", where, "Correct that key")
