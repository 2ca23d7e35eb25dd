"""The CUDA runtime as an engine needs it: plain and pinned memory, one stream, copies.

`CudaRuntime` is all that our own GPU code asks of CUDA; `CudaBindings` answers with NVIDIA's Python bindings. The
device is always the first visible one: choose another with CUDA_VISIBLE_DEVICES.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import DeviceError, ProviderUnavailableError

_REMEDIES: Final = {
    "cudaErrorMemoryAllocation": "Free GPU memory (nvidia-smi shows who uses it), or use a smaller max_batch",
}


@dataclass(frozen=True, slots=True)
class PinnedMemory:
    """Page-locked host memory: only from such memory are copies asynchronous.

    Attributes:
        address: of its first byte.
        data: (size,) uint8, a view of it; must not be used after it was freed.
    """

    address: int
    data: NDArray[np.uint8]


class CudaRuntime(Protocol):
    """What an engine asks of CUDA. Addresses and streams are plain integers; every method raises DeviceError."""

    def allocate(self, size: int) -> int:
        """Take `size` bytes of device memory."""
        ...

    def free(self, address: int) -> None:
        """Give device memory back."""
        ...

    def allocate_pinned(self, size: int) -> PinnedMemory:
        """Take `size` bytes of page-locked host memory."""
        ...

    def free_pinned(self, memory: PinnedMemory) -> None:
        """Give page-locked memory back."""
        ...

    def create_stream(self) -> int:
        """A new stream, in which work is done in order."""
        ...

    def destroy_stream(self, stream: int) -> None:
        """Give a stream back."""
        ...

    def copy_to_device(self, device: int, host: int, size: int, stream: int) -> None:
        """Enqueue a copy of `size` bytes from pinned host memory."""
        ...

    def copy_to_host(self, host: int, device: int, size: int, stream: int) -> None:
        """Enqueue a copy of `size` bytes into pinned host memory."""
        ...

    def synchronise(self, stream: int) -> None:
        """Wait until everything in the stream is done; errors of that work appear here."""
        ...


class CudaBindings:
    """`CudaRuntime` by the package cuda-bindings.

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


def open_cuda() -> CudaBindings:
    """The CUDA of this machine; whether it has a GPU, `first_gpu` tells.

    Raises:
        ProviderUnavailableError: the bindings are not installed.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise ProviderUnavailableError(
            f"CUDA's Python bindings cannot be loaded ({error})", remedy="Run: pip install 'sightfix[tensorrt]'"
        ) from error
    return CudaBindings(runtime)
