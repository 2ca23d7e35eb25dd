"""The TensorRT of this machine: the Python package for plans, and the library that ONNX Runtime's provider links."""

import ctypes
import logging
import re
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from retrieval.engines.cuda import first_gpu
from retrieval.errors import ProviderUnavailableError

_log = logging.getLogger("sightfix.tensorrt")
_INSTALL: Final = "Run: pip install 'sightfix[tensorrt]'"

# TensorRT says the cause of a failure in the messages before it.
_KEPT_MESSAGES: Final = 5


@dataclass(frozen=True, slots=True)
class TensorRtMachine:
    """A TensorRT and the GPU that it runs on.

    Attributes:
        tensorrt_version: such as `11.4.0.106`.
        architecture: of the GPU, such as `sm90`.
        device_name: of the GPU, such as `NVIDIA H100 80GB HBM3`.
    """

    tensorrt_version: str
    architecture: str
    device_name: str


def tensorrt_machine() -> TensorRtMachine:
    """The TensorRT and the GPU of this machine.

    Raises:
        ProviderUnavailableError: no `tensorrt` package, no driver, or no GPU; it says which.
    """
    trt, gpu = load_tensorrt(), first_gpu()
    return TensorRtMachine(str(trt.__version__), gpu.architecture, gpu.name)


def load_tensorrt() -> Any:
    """The module `tensorrt`; imported here only, for it takes a second and a gigabyte.

    Raises:
        ProviderUnavailableError: it is not installed, or its libraries cannot be loaded.
    """
    try:
        import tensorrt
    except ModuleNotFoundError as error:
        raise ProviderUnavailableError(f"TensorRT is not installed ({error})", remedy=_INSTALL) from error
    except Exception as error:  # the bindings raise several types when a shared library is missing
        raise ProviderUnavailableError(
            f"TensorRT cannot be loaded ({error})",
            remedy="Install tensorrt-cu13 in one version with its libraries, beside a driver for CUDA 13",
        ) from error
    return tensorrt


class TensorRtMessages:
    """What TensorRT logs: all of it to our log, the last errors and warnings kept to explain a failure.

    Args:
        trt: the module `tensorrt`.
    """

    def __init__(self, trt: Any) -> None:
        self.logger = _make_logger(trt, self)
        self._kept: deque[str] = deque(maxlen=_KEPT_MESSAGES)

    def add(self, level: int, text: str) -> None:
        """Log one message; called from any of TensorRT's threads."""
        if level >= logging.ERROR:
            self._kept.append(text.strip())
        _log.log(level, text)

    def explain(self) -> str:
        """The last errors in one line; TensorRT's own words."""
        return "; ".join(self._kept) if self._kept else "TensorRT gave no reason"


def _make_logger(trt: Any, messages: TensorRtMessages) -> Any:
    levels = {
        trt.Logger.INTERNAL_ERROR: logging.ERROR,
        trt.Logger.ERROR: logging.ERROR,
        trt.Logger.WARNING: logging.WARNING,
        # What TensorRT calls information is hundreds of lines a build.
        trt.Logger.INFO: logging.DEBUG,
        trt.Logger.VERBOSE: logging.NOTSET,
    }

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            level = levels.get(severity, logging.DEBUG)
            if level:
                messages.add(level, msg)

    return Logger()


def linked_tensorrt(library: Path) -> str:
    """The TensorRT library that ONNX Runtime's provider was linked with, such as `libnvinfer.so.10`.

    Args:
        library: the provider's shared library.

    Raises:
        ProviderUnavailableError: there is no such file, or it names none.
    """
    try:
        found = re.search(rb"libnvinfer\.so\.\d+", library.read_bytes())
    except OSError as error:
        raise ProviderUnavailableError(
            f"ONNX Runtime's TensorRT provider cannot be read ({error.strerror})", where=str(library)
        ) from error
    if found is None:
        raise ProviderUnavailableError("ONNX Runtime's TensorRT provider names no TensorRT", where=str(library))
    return found[0].decode()


def load_linked_tensorrt(library: Path) -> str:
    """Load the TensorRT that ONNX Runtime's provider wants, and say its version, such as `10.13.3`.

    It is loaded here, for pip installs it where the system's loader does not look. Another major version beside it, as
    the newest `tensorrt` package may be, is of no use to the provider.

    Raises:
        ProviderUnavailableError: it is not installed.
    """
    soname = linked_tensorrt(library)
    major = soname.rpartition(".")[2]
    package = find_spec("tensorrt_libs")
    folders = [] if package is None else [Path(folder) for folder in package.submodule_search_locations or ()]
    for candidate in (soname, *(str(folder / soname) for folder in folders)):
        try:
            loaded = ctypes.CDLL(candidate, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        parser = soname.replace("nvinfer", "nvonnxparser")
        # It lies beside; when it does not, opening the session fails.
        with suppress(OSError):
            ctypes.CDLL(str(Path(candidate).with_name(parser)), mode=ctypes.RTLD_GLOBAL)
        return version_text(int(loaded.getInferLibVersion()))
    raise ProviderUnavailableError(
        f"ONNX Runtime's TensorRT provider needs {soname}, which is not installed",
        remedy=f"Run: pip install 'tensorrt-cu13>={major},<{int(major) + 1}', or choose the provider cuda",
    )


def version_text(number: int) -> str:
    """The version that TensorRT 10 and later give as a number: 101303 → `10.13.3`."""
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
