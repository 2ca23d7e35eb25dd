"""Commands that need an optional part of the installation say which, and how to get it."""

from importlib.util import find_spec
from typing import Final

from retrieval.errors import MissingExtraError

_NAMES: Final = {
    "torch": "PyTorch",
    "timm": "timm",
    "lightning": "Lightning",
    "safetensors": "safetensors",
    "scipy": "SciPy",
    "tensorboard": "TensorBoard",
    "onnx": "ONNX",
    "onnxscript": "ONNX Script",
}
_MODULES: Final = {
    "training": ("torch", "timm", "lightning", "safetensors", "scipy", "tensorboard"),
    "export": ("torch", "timm", "safetensors", "onnx", "onnxscript"),
    "heat maps": ("torch", "timm", "safetensors"),
}
_INSTALL: Final = {"training": "training", "export": "cpu,export", "heat maps": "training"}


def require(what: str) -> None:
    """Check that what a command needs is installed, without importing it.

    Args:
        what: `training`, `export` or `heat maps`.

    Raises:
        MissingExtraError: names what is missing and the command that installs it.
    """
    missing = [_NAMES[module] for module in _MODULES[what] if find_spec(module) is None]
    if missing:
        raise MissingExtraError(
            f"{what} {'need' if what.endswith('s') else 'needs'} {' and '.join(missing)}, "
            f"which {'is' if len(missing) == 1 else 'are'} not installed",
            remedy=f"Run: pip install 'sightfix[{_INSTALL[what]}]'",
        )
