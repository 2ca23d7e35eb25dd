"""ONNX Runtime on an NVIDIA GPU: its CUDA and its TensorRT provider.

Input and output stay in buffers on the device, one pair a batch size. The TensorRT provider builds its engine at the
first start, in some minutes, and later starts load it; a plan built beforehand is `retrieval.engines.tensorrt_plan`.
"""

import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from retrieval.bundle import INPUT_NAME, OUTPUT_NAME, Bundle, Precision
from retrieval.engines.compiled import BatchProfile, BatchProfiles, EngineKey
from retrieval.engines.cuda import NvidiaGpu, first_gpu
from retrieval.engines.engine import EngineDescription, EngineRequest
from retrieval.engines.onnx_runtime import (
    PROVIDER_NAMES,
    ProviderWithOptions,
    check_installed,
    check_session,
    load_onnxruntime,
    open_session,
    runtime_name,
)
from retrieval.engines.tensorrt_library import load_linked_tensorrt
from retrieval.errors import DeviceError, ProviderUnavailableError, SightfixError, StorageError, counted

_log = logging.getLogger("sightfix.engines")
_DEVICE: Final = "0"
_PROVIDER_LIBRARY: Final = "libonnxruntime_providers_tensorrt.so"
_TIMING_FOLDER: Final = "timing"


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
        # speed takes the fp16 graph, which has passed its own precision check.
        "use_tf32": "0",
    }
    if gpu_mem_limit is not None:
        options["gpu_mem_limit"] = str(gpu_mem_limit)
    return options


def open_cuda_provider(request: EngineRequest) -> "DeviceBoundEngine":
    """The engine of the provider cuda; batches are padded to the sizes of the request's profiles.

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
        (PROVIDER_NAMES["cuda"], cuda_provider_options(request.gpu_mem_limit)),
        (PROVIDER_NAMES["cpu"], {}),
    ]
    graph = request.bundle.graph_path(request.precision)
    try:
        session = open_session(ort, graph, providers, request.threads)
    except Exception as error:  # see open_session
        raise ProviderUnavailableError(
            f"ONNX Runtime cannot run the graph on CUDA ({error})",
            where=str(graph),
            remedy="Check the GPU driver, CUDA 13 and cuDNN 9, or choose the provider cpu",
        ) from error
    check_session("cuda", request.bundle, session)
    description = EngineDescription("cuda", request.precision, runtime_name(ort), gpu.name)
    sessions = [session] * len(request.profiles.profiles)
    return DeviceBoundEngine(ort, sessions, request.bundle, request.profiles, description)


def preload_cuda(ort: ModuleType) -> None:
    """Load CUDA and cuDNN from NVIDIA's Python packages, where pip has installed them instead of the system."""
    if find_spec("nvidia") is not None and hasattr(ort, "preload_dlls"):
        # What is missing there the system may have; opening the session fails where it does not.
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
                f"the GPU failed to describe {counted(len(images), 'image')} ({error})",
                remedy="Check nvidia-smi; out of memory: use a smaller max_batch or leave it more memory",
            ) from error

    def close(self) -> None:
        """Free sessions and buffers."""
        self._batches = {}


class _BoundBatch:
    """One batch size: a buffer for the images, one for the descriptors, bound to a session."""

    def __init__(self, ort: ModuleType, session: Any, bundle: Bundle, size: int, device: str) -> None:
        make = ort.OrtValue.ortvalue_from_shape_and_type
        self._images = make([size, *bundle.image_shape], np.uint8, device, int(_DEVICE))
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


def tensorrt_provider_options(
    folder: Path, profile: BatchProfile, image: tuple[int, int, int], precision: Precision
) -> dict[str, str]:
    """Options of ONNX Runtime's TensorRT provider for one batch profile.

    One profile, and so one session each: the provider parses several, separated by commas, and builds them into one
    engine, but its execution context stays on the first at run time (onnxruntime#31624, still open).

    Args:
        folder: of the engines of this graph, TensorRT, GPU, precision and set of profiles; absolute.
        profile: the batch sizes.
        image: (H, W, 3) of the bundle's input.
        precision: of the graph.
    """
    options = {
        "device_id": "0",
        "trt_engine_cache_enable": "1",
        # A folder for each profile: the engine's file name would be the same for all of them.
        "trt_engine_cache_path": str(folder / profile_folder(profile)),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder / _TIMING_FOLDER),
        "trt_profile_min_shapes": _shape(profile.min, image),
        "trt_profile_opt_shapes": _shape(profile.opt, image),
        "trt_profile_max_shapes": _shape(profile.max, image),
    }
    # The official wheels link TensorRT 10 (1.31.1: libnvinfer.so.10) and make weakly typed networks: there a graph of
    # fp16 tensors runs in fp16 only with this flag, which also lets TensorRT take fp16 where the graph says fp32; so
    # powers and the sums over them, as in norms, are held in fp32. TensorRT 11 has strongly typed networks only: it
    # does what the graph says, and BuilderFlag.FP16 and INT8 are gone. The native plan is strongly typed on both.
    if precision == "fp16":
        options["trt_fp16_enable"] = "1"
        options["trt_layer_norm_fp32_fallback"] = "1"
    # Likewise for the integers of a QDQ graph; no calibration table, the scales are in the graph.
    if precision == "int8":
        options["trt_int8_enable"] = "1"
    return options


def profile_folder(profile: BatchProfile) -> str:
    """The name of a profile's folder, such as `b2-16-32`."""
    return f"b{str(profile).replace(':', '-')}"


def _shape(count: int, image: tuple[int, int, int]) -> str:
    return f"{INPUT_NAME}:{'x'.join(str(n) for n in (count, *image))}"


def open_tensorrt_provider(request: EngineRequest) -> DeviceBoundEngine:
    """The engine of the provider tensorrt through ONNX Runtime; builds it when the cache has none.

    Raises:
        ProviderUnavailableError: no GPU, no TensorRT, or TensorRT cannot build or load an engine of the graph.
        BundleError: the graph does not have the contract's input and output.
        StorageError: the cache cannot be written.
        MissingExtraError: ONNX Runtime is not installed.
    """
    ort = load_onnxruntime()
    check_installed(ort, "tensorrt")
    gpu = first_gpu()
    preload_cuda(ort)
    version = load_linked_tensorrt(Path(str(ort.__file__)).parent / "capi" / _PROVIDER_LIBRARY)
    precision, profiles = request.precision, request.profiles
    final = (request.cache / provider_key(request, version, gpu, ort.__version__).folder).absolute()

    def open_from(folder: Path) -> DeviceBoundEngine:
        try:
            sessions = [_open_session(ort, request, profile, folder) for profile in profiles.profiles]
        except SightfixError:
            raise
        except Exception as error:  # see open_session
            raise engine_failure(precision, error, cached=final if folder == final else None) from error
        runtime = f"{runtime_name(ort)}, TensorRT {version}"
        description = EngineDescription("tensorrt", precision, runtime, gpu.name)
        return DeviceBoundEngine(ort, sessions, request.bundle, profiles, description)

    if final.is_dir():
        return open_from(final)
    request.on_build(f"TensorRT builds the engine for {gpu.architecture}, {precision} (first start only, some minutes)")
    _log.info("TensorRT %s builds the %s engine for %s, batches %s", version, precision, gpu.architecture, profiles)
    started = time.perf_counter()
    with new_engine_folder(final) as folder:
        engine = open_from(folder)
        # What is left to build is built by running; only a whole engine goes into the cache.
        for size in profiles.sizes:
            engine.run(np.zeros((size, *request.bundle.image_shape), np.uint8))
    _log.info("TensorRT built the engine in %.0f s: %s", time.perf_counter() - started, final)
    return engine


def provider_key(request: EngineRequest, tensorrt: str, gpu: NvidiaGpu, onnxruntime: str) -> EngineKey:
    """What an engine of this provider depends on.

    Raises:
        BundleError: the bundle has no graph of that precision.
    """
    graph = request.bundle.manifest.files[request.bundle.graph_path(request.precision).name]
    built_by = f"onnxruntime-{onnxruntime}"
    return EngineKey(graph.sha256, tensorrt, gpu.architecture, request.precision, request.profiles, built_by)


def _open_session(ort: ModuleType, request: EngineRequest, profile: BatchProfile, folder: Path) -> object:
    options = tensorrt_provider_options(folder, profile, request.bundle.image_shape, request.precision)
    for path in (options["trt_engine_cache_path"], options["trt_timing_cache_path"]):
        make_folder(Path(path))
    providers = [
        (PROVIDER_NAMES["tensorrt"], options),
        (PROVIDER_NAMES["cuda"], cuda_provider_options(request.gpu_mem_limit)),
    ]
    session = open_session(ort, request.bundle.graph_path(request.precision), providers, request.threads)
    check_session("tensorrt", request.bundle, session)
    return session


def engine_failure(precision: Precision, error: Exception, *, cached: Path | None) -> ProviderUnavailableError:
    """The error to raise when TensorRT refuses a graph, or an engine of the cache.

    Args:
        precision: of the graph.
        error: of ONNX Runtime.
        cached: the engine's folder, None when it was being built.
    """
    why = " ".join(str(error).split())
    if cached is not None:
        return ProviderUnavailableError(
            f"TensorRT cannot load the {precision} engine ({why})",
            where=str(cached),
            remedy="Delete this folder to build it again, or choose the provider cuda",
        )
    remedy = "Choose another precision or the provider cuda"
    if precision == "int8":
        remedy = (
            "TensorRT quantises symmetrically only: every zero point must be 0. Export a symmetric int8 graph, or "
            "choose fp16 or the provider cuda"
        )
    return ProviderUnavailableError(f"TensorRT cannot build the {precision} engine ({why})", remedy=remedy)


@contextmanager
def new_engine_folder(final: Path) -> Iterator[Path]:
    """A folder to build in, which becomes `final` when the block succeeds, and disappears when it fails.

    Two processes that build at the same time both get their engine; the first one's stays in the cache.

    Raises:
        StorageError: the cache cannot be written.
    """
    make_folder(final.parent)
    building = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    try:
        yield building
        with suppress(OSError):  # another process was first
            building.rename(final)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Make a folder of the engine cache.

    Raises:
        StorageError: the disk refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"the engine cache cannot be written ({error.strerror})",
            where=str(folder),
            remedy="Point SIGHTFIX_ENGINE_CACHE to a folder that can be written and is kept",
        ) from error
