import ctypes

import pytest

from retrieval.engines.cuda import NvidiaGpu, ask_driver, first_gpu
from retrieval.errors import ProviderUnavailableError
from tests.retrieval.refusal import refused


class Driver:
    """Answers like libcuda.so.1."""

    def __init__(self, count: int = 1, fails: str = "") -> None:
        self.count, self.fails = count, fails

    def __getattr__(self, function: str) -> object:
        if function == self.fails:
            return lambda *_: 100
        return {
            "cuInit": lambda flags: 0,
            "cuDeviceGetCount": lambda out: self.write(out, self.count),
            "cuDeviceGet": lambda out, index: self.write(out, index),
            "cuDeviceGetName": self.write_name,
            "cuDeviceGetAttribute": lambda out, attribute, device: self.write(out, {75: 12, 76: 0}[attribute]),
        }[function]

    @staticmethod
    def write(out: object, value: int) -> int:
        ctypes.cast(out, ctypes.POINTER(ctypes.c_int))[0] = value
        return 0

    @staticmethod
    def write_name(buffer: ctypes.Array[ctypes.c_char], size: int, device: object) -> int:
        buffer.value = b"NVIDIA RTX PRO 6000"
        return 0


def test_name_and_architecture() -> None:
    assert ask_driver(Driver()) == NvidiaGpu("NVIDIA RTX PRO 6000", "sm120")


def test_no_gpu() -> None:
    text = "the NVIDIA driver finds no GPU. Check nvidia-smi and CUDA_VISIBLE_DEVICES."
    with refused(ProviderUnavailableError, text, "provider_unavailable"):
        ask_driver(Driver(count=0))


def test_a_driver_that_refuses() -> None:
    text = (
        "the NVIDIA driver refuses (cuInit returned 100). "
        "Check that nvidia-smi lists a GPU; start a container with --gpus all."
    )
    with refused(ProviderUnavailableError, text, "provider_unavailable"):
        ask_driver(Driver(fails="cuInit"))


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.mark.skipif(has_driver(), reason="this machine has an NVIDIA driver")
def test_no_driver() -> None:
    with pytest.raises(ProviderUnavailableError, match=r"there is no NVIDIA driver \(libcuda.so.1.*--gpus all"):
        first_gpu()
