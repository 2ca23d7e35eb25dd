"""Which TensorRT on which GPU: all that decides, beside the model, whether a compiled engine fits this machine."""

import logging
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from retrieval.engines.nvidia_driver import NvidiaGpu, first_gpu
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
    return identify(load_tensorrt(), first_gpu())


def identify(trt: Any, gpu: NvidiaGpu) -> TensorRtMachine:
    """The same of the module `tensorrt` and a GPU that are known already."""
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
