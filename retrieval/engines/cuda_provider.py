"""ONNX Runtime on an NVIDIA GPU: input and output stay in buffers on the device, one pair a batch size."""

from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from retrieval.bundle import INPUT_NAME, OUTPUT_NAME, Bundle, Precision
from retrieval.engines.batch_profiles import BatchProfiles
from retrieval.engines.engine import EngineDescription
from retrieval.engines.nvidia_driver import first_gpu
from retrieval.engines.onnx_runtime import (
    PROVIDER_NAMES,
    ProviderWithOptions,
    check_installed,
    check_session,
    judge_placement,
    judge_providers,
    load_onnxruntime,
    open_session,
    placement,
    runtime_name,
)
from retrieval.errors import DeviceError, ProviderUnavailableError

_DEVICE: Final = "0"


def cuda_provider_options(gpu_mem_limit: int | None = None) -> dict[str, str]:
    """Options of ONNX Runtime's CUDA provider.

    Args:
        gpu_mem_limit: of its memory arena, bytes; None sets no limit.
    """
    options = {
        "device_id": _DEVICE,
        # The default doubles the arena each time: half of a shared GPU would be taken and never used.
        "arena_extend_strategy": "kSameAsRequested",
        # Searched once for each batch size while warming up; batches are padded, so never again afterwards.
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        # The default rounds fp32 to 10 bits of mantissa: not what the bundle's parity was measured with. Who wants
        # speed takes the fp16 graph, which has passed its own gate.
        "use_tf32": "0",
    }
    if gpu_mem_limit is not None:
        options["gpu_mem_limit"] = str(gpu_mem_limit)
    return options


def open_cuda_provider(
    bundle: Bundle, precision: Precision, profiles: BatchProfiles, threads: int, gpu_mem_limit: int | None = None
) -> "DeviceBoundEngine":
    """The engine of the provider cuda.

    Args:
        bundle: whose graph.
        precision: of the graph.
        profiles: the batch sizes; others are padded to them.
        threads: of the CPU, for what is left to it.
        gpu_mem_limit: of the memory arena, bytes.

    Raises:
        ProviderUnavailableError: no GPU, no CUDA, or ONNX Runtime cannot use it.
        BundleError: the graph does not have the contract's input and output.
        MissingExtraError: ONNX Runtime is not installed.
    """
    ort = load_onnxruntime()
    check_installed(ort, "cuda")
    gpu = first_gpu()
    preload_cuda(ort)
    providers: list[ProviderWithOptions] = [
        (PROVIDER_NAMES["cuda"], cuda_provider_options(gpu_mem_limit)),
        (PROVIDER_NAMES["cpu"], {}),
    ]
    graph = bundle.graph_path(precision)
    try:
        session = open_session(ort, graph, providers, threads)
    except Exception as error:  # see open_session
        raise ProviderUnavailableError(
            f"ONNX Runtime cannot run the graph on CUDA ({error})",
            where=str(graph),
            remedy="Check the GPU driver, CUDA 13 and cuDNN 9, or choose the provider cpu",
        ) from error
    judge_providers("cuda", session.get_providers())
    judge_placement("cuda", placement(session))
    check_session(bundle, session)
    description = EngineDescription("cuda", precision, runtime_name(ort), gpu.name)
    return DeviceBoundEngine(ort, [session] * len(profiles.profiles), bundle, profiles, description)


def preload_cuda(ort: ModuleType) -> None:
    """Load CUDA and cuDNN from NVIDIA's Python packages, where pip has installed them instead of the system."""
    if find_spec("nvidia") is not None and hasattr(ort, "preload_dlls"):
        # What is missing there the system may have; the session tells.
        with suppress(Exception):
            ort.preload_dlls()


class DeviceBoundEngine:
    """An `Engine` whose sessions read and write buffers on the device: one copy in, one copy out, nothing allocated.

    Args:
        ort: the module `onnxruntime`.
        sessions: one for each batch profile; they may be the same.
        bundle: whose graph they run.
        profiles: the batch sizes.
        description: of the engine.
        device: where the buffers lie, as ONNX Runtime calls it.

    Raises:
        DeviceError: there is no memory for the buffers.
    """

    def __init__(
        self,
        ort: ModuleType,
        sessions: Sequence[Any],
        bundle: Bundle,
        profiles: BatchProfiles,
        description: EngineDescription,
        *,
        device: str = "cuda",
    ) -> None:
        self._description = description
        self._profiles = profiles
        try:
            self._batches = {
                size: _BoundBatch(ort, sessions[profiles.choose(size)], bundle, size, device) for size in profiles.sizes
            }
        except Exception as error:  # see open_session
            raise DeviceError(
                f"the GPU has no memory for batches of {profiles.max_batch} ({error})",
                remedy="Free GPU memory (nvidia-smi shows who uses it), or use a smaller max_batch",
            ) from error

    @property
    def description(self) -> EngineDescription:
        """What computes."""
        return self._description

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Describe one batch, padded to one of the profiles' sizes; see `Engine.run`.

        Raises:
            ParameterError: more images than the profiles hold.
            DeviceError: the GPU failed.
        """
        batch = self._batches[self._profiles.padded_size(len(images))]
        try:
            return batch.run(self._profiles.pad(images), len(images))
        except Exception as error:  # see open_session
            raise DeviceError(
                f"the GPU failed to describe {len(images)} images ({error})",
                remedy="Check nvidia-smi; out of memory: use a smaller max_batch or leave it more memory",
            ) from error

    def close(self) -> None:
        """Free sessions and buffers."""
        self._batches = {}


class _BoundBatch:
    """One batch size: a buffer for the images, one for the descriptors, bound to a session."""

    def __init__(self, ort: ModuleType, session: Any, bundle: Bundle, size: int, device: str) -> None:
        image = (bundle.preprocessing.height, bundle.preprocessing.width, 3)
        make = ort.OrtValue.ortvalue_from_shape_and_type
        self._images = make([size, *image], np.uint8, device, int(_DEVICE))
        self._descriptors = make([size, bundle.descriptor_dim], np.float32, device, int(_DEVICE))
        self._session = session
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(INPUT_NAME, self._images)
        self._binding.bind_ortvalue_output(OUTPUT_NAME, self._descriptors)

    def run(self, images: NDArray[np.uint8], count: int) -> NDArray[np.float32]:
        self._images.update_inplace(images)
        self._binding.synchronize_inputs()
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        # A copy: on some devices `numpy` is a view of the buffer, which the next run overwrites.
        return np.array(self._descriptors.numpy()[:count])
