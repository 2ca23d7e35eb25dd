"""The TensorRT that ONNX Runtime's provider was linked with: which one it is, and loading it from where pip put it."""

import ctypes
import re
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from retrieval.errors import ProviderUnavailableError


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
        # It lies beside; when it does not, the session tells.
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
