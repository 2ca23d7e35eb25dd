"""What the NVIDIA driver says of the first GPU. It is asked directly: neither CUDA nor a Python package is needed."""

import ctypes
from dataclasses import dataclass
from typing import Any, Final

from retrieval.errors import ProviderUnavailableError

_LIBRARY: Final = "libcuda.so.1"
_COMPUTE_CAPABILITY: Final = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_NAME_BYTES: Final = 256


@dataclass(frozen=True, slots=True)
class NvidiaGpu:
    """The GPU that a session with device 0 uses.

    Attributes:
        name: such as `NVIDIA H100 80GB HBM3`.
        architecture: such as `sm90`.
    """

    name: str
    architecture: str


def first_gpu() -> NvidiaGpu:
    """The first GPU that CUDA_VISIBLE_DEVICES leaves visible.

    Raises:
        ProviderUnavailableError: no driver, or no GPU.
    """
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise ProviderUnavailableError(
            f"there is no NVIDIA driver ({error})",
            remedy="Use a machine with an NVIDIA GPU; start a container with --gpus all",
        ) from error
    return ask_driver(driver)


def ask_driver(driver: Any) -> NvidiaGpu:
    """Ask an opened driver library.

    Args:
        driver: the library `libcuda.so.1`.

    Raises:
        ProviderUnavailableError: it finds no GPU.
    """
    count, device = ctypes.c_int(0), ctypes.c_int(0)
    _call(driver, "cuInit", 0)
    _call(driver, "cuDeviceGetCount", ctypes.byref(count))
    if count.value == 0:
        raise ProviderUnavailableError(
            "the NVIDIA driver finds no GPU", remedy="Check nvidia-smi and CUDA_VISIBLE_DEVICES"
        )
    _call(driver, "cuDeviceGet", ctypes.byref(device), 0)
    name = ctypes.create_string_buffer(_NAME_BYTES)
    _call(driver, "cuDeviceGetName", name, _NAME_BYTES, device)
    capability = []
    for attribute in _COMPUTE_CAPABILITY:
        value = ctypes.c_int(0)
        _call(driver, "cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
        capability.append(str(value.value))
    return NvidiaGpu(name.value.decode(errors="replace"), f"sm{''.join(capability)}")


def _call(driver: Any, function: str, *arguments: Any) -> None:
    code = getattr(driver, function)(*arguments)
    if code != 0:
        raise ProviderUnavailableError(
            f"the NVIDIA driver refuses ({function} returned {code})",
            remedy="Check that nvidia-smi lists a GPU; start a container with --gpus all",
        )
