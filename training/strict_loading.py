"""Weights into a module, all or none: a missing, unexpected or misshapen tensor is an error that names it."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from retrieval.errors import SightfixError

_TORCH_SUFFIXES: Final = (".pth", ".pt", ".bin")
_WRAPPERS: Final = ("state_dict", "model")
_MOST_LISTED: Final = 8


class WeightsMismatchError(SightfixError):
    """Weights that do not fit the net."""

    default_code = "weights_mismatch"


class WeightsFileError(SightfixError):
    """A file of weights that cannot be read."""

    default_code = "weights_unreadable"


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], *, where: Path, remedy: str | None = None) -> None:
    """Copy every tensor to its place in the module, or change nothing.

    Args:
        module: what receives them.
        tensors: by the names of the module's `state_dict`.
        where: the file they come from, for the error.
        remedy: what the user can do when they do not fit.

    Raises:
        WeightsMismatchError: lists the keys that are missing, unexpected or of another shape.
    """
    places = module.state_dict()
    missing = [name for name in places if name not in tensors]
    unexpected = [name for name in tensors if name not in places]
    misshapen = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(place.shape)}"
        for name, place in places.items()
        if name in tensors and tensors[name].shape != place.shape
    ]
    faults = [
        f"{kind} {_listed(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if names
    ]
    if faults:
        raise WeightsMismatchError(f"the weights do not fit: {'; '.join(faults)}", where=str(where), remedy=remedy)
    module.load_state_dict(dict(tensors), strict=True)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_LISTED
    return ", ".join(names[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pth, .pt or .bin file, on the CPU; a pickle may hold nothing but tensors.

    A dictionary inside `state_dict` or `model`, as training scripts write it, is unpacked.

    Raises:
        WeightsFileError: another kind of file, unreadable, damaged, or not a dictionary of tensors.
    """
    remedy = "Give a .safetensors file, or a .pth, .pt or .bin file that holds nothing but tensors"
    try:
        path.stat()  # for the system's own words; safetensors has others
        if path.suffix == ".safetensors":
            content: object = load_file(path)
        elif path.suffix in _TORCH_SUFFIXES:
            content = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise WeightsFileError(
                f"a {path.suffix or 'nameless'} file is not read as weights", where=str(path), remedy=remedy
            )
    except OSError as error:
        raise WeightsFileError(
            f"the weights cannot be read ({error.strerror or error})", where=str(path), remedy="Check the path"
        ) from error
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise WeightsFileError(
            "the file is damaged or holds more than weights", where=str(path), remedy=remedy
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsFileError("the file is no dictionary of tensors", where=str(path), remedy=remedy)
    return {str(name): value for name, value in content.items()}
