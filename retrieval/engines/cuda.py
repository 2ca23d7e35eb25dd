"""NVIDIA's driver and CUDA runtime as an engine needs them: the first GPU, memory, one stream, copies.

The device is always the first visible one: choose another with CUDA_VISIBLE_DEVICES. The driver is asked directly:
`first_gpu` needs neither CUDA nor a Python package.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import DeviceError, ProviderUnavailableError

_LIBRARY: Final = "libcuda.so.1"
_COMPUTE_CAPABILITY: Final = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_NAME_BYTES: Final = 256
_REMEDIES: Final = {
    "cudaErrorMemoryAllocation": "Free GPU memory (nvidia-smi shows who uses it), or use a smaller max_batch"
}


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
    _call_driver(driver, "cuInit", 0)
    _call_driver(driver, "cuDeviceGetCount", ctypes.byref(count))
    if count.value == 0:
        raise ProviderUnavailableError(
            "the NVIDIA driver finds no GPU", remedy="Check nvidia-smi and CUDA_VISIBLE_DEVICES"
        )
    _call_driver(driver, "cuDeviceGet", ctypes.byref(device), 0)
    name = ctypes.create_string_buffer(_NAME_BYTES)
    _call_driver(driver, "cuDeviceGetName", name, _NAME_BYTES, device)
    capability = []
    for attribute in _COMPUTE_CAPABILITY:
        value = ctypes.c_int(0)
        _call_driver(driver, "cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
        capability.append(str(value.value))
    return NvidiaGpu(name.value.decode(errors="replace"), f"sm{''.join(capability)}")


def _call_driver(driver: Any, function: str, *arguments: Any) -> None:
    code = getattr(driver, function)(*arguments)
    if code != 0:
        raise ProviderUnavailableError(
            f"the NVIDIA driver refuses ({function} returned {code})",
            remedy="Check that nvidia-smi lists a GPU; start a container with --gpus all",
        )


@dataclass(frozen=True, slots=True)
class PinnedMemory:
    """Page-locked host memory: only from such memory are copies asynchronous.

    Attributes:
        address: of its first byte.
        data: (size,) uint8, a view of it; must not be used after it was freed.
    """

    address: int
    data: NDArray[np.uint8]


class CudaRuntime:
    """What an engine asks of CUDA, by the package cuda-bindings. Addresses and streams are plain integers.

    Every method raises DeviceError.

    Args:
        runtime: the module `cuda.bindings.runtime`.
    """

    def __init__(self, runtime: ModuleType) -> None:
        self._runtime: Any = runtime

    def allocate(self, size: int) -> int:
        """cudaMalloc."""
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        """cudaFree."""
        self._call("cudaFree", address)

    def allocate_pinned(self, size: int) -> PinnedMemory:
        """cudaMallocHost."""
        address = int(self._call("cudaMallocHost", size))
        return PinnedMemory(address, np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)))

    def free_pinned(self, memory: PinnedMemory) -> None:
        """cudaFreeHost."""
        self._call("cudaFreeHost", memory.address)

    def create_stream(self) -> int:
        """cudaStreamCreateWithFlags, non-blocking."""
        # Work in a blocking stream waits for the default stream, in which ONNX Runtime or FAISS may be busy.
        return int(self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking))

    def destroy_stream(self, stream: int) -> None:
        """cudaStreamDestroy."""
        self._call("cudaStreamDestroy", stream)

    def copy_to_device(self, device: int, host: int, size: int, stream: int) -> None:
        """cudaMemcpyAsync, host to device."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", device, host, size, kind, stream)

    def copy_to_host(self, host: int, device: int, size: int, stream: int) -> None:
        """cudaMemcpyAsync, device to host."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", host, device, size, kind, stream)

    def synchronise(self, stream: int) -> None:
        """cudaStreamSynchronize."""
        self._call("cudaStreamSynchronize", stream)

    def _call(self, function: str, *arguments: Any) -> Any:
        return checked(function, getattr(self._runtime, function)(*arguments))


def checked(function: str, answer: Sequence[Any]) -> Any:
    """The value of a CUDA call: the bindings return (error, values…).

    Args:
        function: that was called.
        answer: what it returned; the error is an enumeration whose value 0 means success.

    Returns:
        None, the value, or the tuple of values.

    Raises:
        DeviceError: CUDA's error, by name.
    """
    error, *values = answer
    if int(error) != 0:
        name = str(getattr(error, "name", error))
        raise DeviceError(f"{function} failed with {name}", remedy=_REMEDIES.get(name))
    if len(values) > 1:
        return tuple(values)
    return values[0] if values else None


def open_cuda() -> CudaRuntime:
    """The CUDA of this machine; `first_gpu` says whether it has a GPU.

    Raises:
        ProviderUnavailableError: the bindings are not installed.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise ProviderUnavailableError(
            f"CUDA's Python bindings cannot be loaded ({error})", remedy="Run: pip install 'sightfix[tensorrt]'"
        ) from error
    return CudaRuntime(runtime)
