"""TensorRT plans: `model.plan` beside a manifest that says what it was built from and for, and the engine that runs it.

A plan is kept in the engine cache, or inside a bundle under `engines/`. It is code for one GPU architecture and one
TensorRT: a plan made for another model or machine is never opened. Nothing is allocated while serving.
"""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from retrieval.artefact import MANIFEST_NAME, Manifest, verify_files
from retrieval.bundle import INPUT_NAME, OUTPUT_NAME, Bundle, Precision
from retrieval.engines.compiled import BatchProfiles, EngineKey
from retrieval.engines.cuda import CudaRuntime, open_cuda
from retrieval.engines.engine import EngineDescription
from retrieval.engines.tensorrt_library import TensorRtMachine, TensorRtMessages, load_tensorrt, tensorrt_machine
from retrieval.errors import DeviceError, EngineError, ParameterError, ProviderUnavailableError

_log = logging.getLogger("sightfix.tensorrt")
PLAN_NAME: Final = "model.plan"
BUILT_BY: Final = "tensorrt"
REBUILD: Final = "Build it again: sightfix bundle engine"
_ENGINES_FOLDER: Final = "engines"


class PlanManifest(Manifest):
    """The manifest of a plan.

    Attributes:
        graph_sha256: of the ONNX file it was built from.
        tensorrt_version, architecture: what it runs on, and on nothing else.
        device_name: the GPU it was built on.
        precision: of the graph.
        profiles: batch sizes, as `str(BatchProfiles)`.
        build_seconds: how long the build took.
    """

    kind: Literal["engine"] = "engine"
    format_version: Literal[1] = 1
    graph_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    tensorrt_version: str
    architecture: str
    device_name: str
    precision: Precision
    profiles: str
    build_seconds: float = Field(ge=0)


def plan_key(bundle: Bundle, precision: Precision, profiles: BatchProfiles, machine: TensorRtMachine) -> EngineKey:
    """What a plan for this model and machine depends on.

    Raises:
        BundleError: the bundle has no graph of that precision.
    """
    graph = bundle.manifest.files[bundle.graph_path(precision).name]
    return EngineKey(
        graph_sha256=graph.sha256,
        tensorrt_version=machine.tensorrt_version,
        architecture=machine.architecture,
        precision=precision,
        profiles=profiles,
        built_by=BUILT_BY,
    )


def folder_in_cache(cache: Path, key: EngineKey) -> Path:
    """Where a plan lies in the engine cache."""
    return cache / key.folder


def folder_in_bundle(bundle: Bundle, key: EngineKey) -> Path:
    """Where a plan lies inside its bundle."""
    return bundle.folder / _ENGINES_FOLDER / key.folder.name


def find_plan(bundle: Bundle, precision: Precision, profiles: BatchProfiles, cache: Path) -> Path | None:
    """The plan built for this machine and this graph, precision and profiles.

    Args:
        bundle: whose graph.
        precision: of the graph.
        profiles: batch sizes it must have been built for.
        cache: the engine cache; it is looked up first, then the bundle's own `engines/`.

    Returns:
        the path of a `model.plan`, or None when there is none or no TensorRT or GPU. `open_plan` checks what is in it.

    Raises:
        BundleError: the bundle has no graph of that precision.
    """
    try:
        machine = tensorrt_machine()
    except ProviderUnavailableError:
        return None
    key = plan_key(bundle, precision, profiles, machine)
    for folder in (folder_in_cache(cache, key), folder_in_bundle(bundle, key)):
        if (folder / MANIFEST_NAME).is_file():
            return folder / PLAN_NAME
    return None


def check_plan(path: Path, key: EngineKey) -> PlanManifest:
    """Check that a plan is whole and was built for this model and machine.

    Args:
        path: of the `model.plan`, with its manifest beside it.
        key: what it has to be.

    Raises:
        EngineError: a damaged, truncated or missing file, or a plan for something else; it names file and remedy.
    """
    folder = path.parent
    manifest = PlanManifest.read(folder, EngineError)
    if path.name not in manifest.files:
        raise EngineError("the manifest does not name this file", where=str(path), remedy=REBUILD)
    wanted = {
        "graph_sha256": ("another graph", key.graph_sha256),
        "tensorrt_version": (f"TensorRT {manifest.tensorrt_version}, not {key.tensorrt_version}", key.tensorrt_version),
        "architecture": (f"the GPU architecture {manifest.architecture}, not {key.architecture}", key.architecture),
        "precision": (f"{manifest.precision}, not {key.precision}", key.precision),
        "profiles": (f"the batch sizes {manifest.profiles}, not {key.profiles}", str(key.profiles)),
    }
    for field, (built_for, value) in wanted.items():
        if getattr(manifest, field) != value:
            raise EngineError(f"the plan was built for {built_for}", where=str(path), remedy=REBUILD)
    verify_files(folder, manifest.files, error_type=EngineError)
    return manifest


def open_plan(path: Path, bundle: Bundle, precision: Precision, profiles: BatchProfiles) -> "TensorRtPlanEngine":
    """Open a plan that `build_plan` wrote and `find_plan` found.

    Args:
        path: of the `model.plan`.
        bundle: it was built from.
        precision: of the graph.
        profiles: batch sizes it was built for.

    Raises:
        ProviderUnavailableError: no TensorRT, no CUDA, or no GPU.
        EngineError: the plan is damaged, or was built for another model, machine, precision or batch size.
        DeviceError: the GPU refuses, for example for want of memory.
    """
    machine = tensorrt_machine()
    check_plan(path, plan_key(bundle, precision, profiles, machine))
    return TensorRtPlanEngine(path, bundle, precision, profiles, machine, load_tensorrt(), open_cuda())


class TensorRtPlanEngine:
    """An `Engine` that runs a plan with TensorRT's own runtime. One caller at a time, from any thread.

    Each batch profile has an execution context of its own, for a context that changes its profile forgets its shapes
    and addresses. All memory is taken here, for the largest batch.

    Args:
        path: of the plan, which `check_plan` has accepted.
        bundle: it was built from.
        precision: of the graph.
        profiles: batch sizes it was built for.
        machine: this one.
        trt: the module `tensorrt`.
        cuda: the device's runtime.

    Raises:
        EngineError: TensorRT refuses the plan, or it has other inputs, outputs or profiles than it should.
        DeviceError: the GPU refuses; nothing stays allocated.
    """

    def __init__(
        self,
        path: Path,
        bundle: Bundle,
        precision: Precision,
        profiles: BatchProfiles,
        machine: TensorRtMachine,
        trt: Any,
        cuda: CudaRuntime,
    ) -> None:
        self._description = EngineDescription(
            "tensorrt", precision, f"TensorRT {machine.tensorrt_version}", machine.device_name
        )
        self._path, self._profiles, self._cuda = path, profiles, cuda
        self._image = bundle.image_shape
        self._dim = bundle.descriptor_dim
        self._messages = TensorRtMessages(trt)
        self._runtime: Any = None
        self._engine: Any = None
        self._contexts: list[Any] = []
        self._open = ExitStack()
        with ExitStack() as on_failure:
            on_failure.callback(self.close)
            self._allocate()
            self._engine = self._deserialise(trt)
            check_engine(self._engine, trt, self._image, self._dim, profiles, where=str(path))
            # First of all when closing: nothing may be freed under work that a failed run has left in the stream.
            self._open.callback(_release, cuda.synchronise, self._stream)
            for index in range(len(profiles.profiles)):
                self._contexts.append(self._make_context(trt, index))
            on_failure.pop_all()

    @property
    def description(self) -> EngineDescription:
        """What computes."""
        return self._description

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Describe one batch; see `Engine.run`.

        Raises:
            ParameterError: another size or type than the plan's, or more images than it was built for.
            EngineError: the engine is closed, or TensorRT refuses to run.
            DeviceError: the GPU failed.
        """
        if images.shape[1:] != self._image or images.dtype != np.uint8:
            raise ParameterError(f"images are {images.shape} {images.dtype}, the plan wants (N, *{self._image}) uint8")
        if not self._contexts:
            raise EngineError("the engine is closed", where=str(self._path))
        count = len(images)
        size, context = self._profiles.padded_size(count), self._contexts[self._profiles.choose(count)]
        self._host_images[:count] = images
        self._host_images[count:size] = 0
        self._cuda.copy_to_device(
            self._device_images, self._pinned_images, self._host_images[:size].nbytes, self._stream
        )
        if not context.set_input_shape(INPUT_NAME, (size, *self._image)):
            raise self._refused(f"refuses a batch of {size}")
        if not context.execute_async_v3(self._stream):
            raise self._refused("failed to run")
        self._cuda.copy_to_host(
            self._pinned_descriptors, self._device_descriptors, self._host_descriptors[:count].nbytes, self._stream
        )
        self._cuda.synchronise(self._stream)
        return self._host_descriptors[:count].copy()

    def close(self) -> None:
        """Free contexts, engine, memory and stream, in this order; a second call does nothing."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _deserialise(self, trt: Any) -> Any:
        try:
            plan = self._path.read_bytes()
        except OSError as error:
            raise EngineError(f"the plan cannot be read ({error.strerror})", where=str(self._path)) from error
        self._open.callback(self._forget)
        self._runtime = trt.Runtime(self._messages.logger)
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self._refused("cannot open the plan")
        return engine

    def _forget(self) -> None:
        """Drop what TensorRT holds; an engine needs its runtime for as long as it lives."""
        self._contexts.clear()
        self._engine = None
        self._runtime = None

    def _allocate(self) -> None:
        largest, cuda = self._profiles.max_batch, self._cuda
        image_bytes = largest * int(np.prod(self._image))
        descriptor_bytes = largest * self._dim * np.dtype(np.float32).itemsize
        self._stream = cuda.create_stream()
        self._open.callback(_release, cuda.destroy_stream, self._stream)
        self._device_images = cuda.allocate(image_bytes)
        self._open.callback(_release, cuda.free, self._device_images)
        self._device_descriptors = cuda.allocate(descriptor_bytes)
        self._open.callback(_release, cuda.free, self._device_descriptors)
        images = cuda.allocate_pinned(image_bytes)
        self._open.callback(_release, cuda.free_pinned, images)
        descriptors = cuda.allocate_pinned(descriptor_bytes)
        self._open.callback(_release, cuda.free_pinned, descriptors)
        self._pinned_images, self._pinned_descriptors = images.address, descriptors.address
        self._host_images = images.data.reshape(largest, *self._image)
        self._host_descriptors = descriptors.data.view(np.float32).reshape(largest, self._dim)

    def _make_context(self, trt: Any, index: int) -> Any:
        # With the default strategy the context of the single frame would take the memory of the largest batch.
        strategy = trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise self._refused("cannot make an execution context")
        if not context.set_optimization_profile_async(index, self._stream):
            raise self._refused(f"refuses batch profile {self._profiles.profiles[index]}")
        self._cuda.synchronise(self._stream)
        # Choosing a profile clears shapes and addresses, so these come after it.
        for name, address in ((INPUT_NAME, self._device_images), (OUTPUT_NAME, self._device_descriptors)):
            if not context.set_tensor_address(name, address):
                raise self._refused(f"refuses the memory of {name}")
        return context

    def _refused(self, what: str) -> EngineError:
        return EngineError(
            f"TensorRT {what} ({self._messages.explain()})", where=str(self._path), remedy=REBUILD, code="engine_failed"
        )


def _release(free: Callable[[Any], None], what: Any) -> None:
    """Free one thing; after a lost device nothing can be freed, and closing must go on."""
    try:
        free(what)
    except DeviceError as error:
        _log.warning("closing a TensorRT plan: %s", error)


def check_engine(
    engine: Any, trt: Any, image: tuple[int, int, int], dim: int, profiles: BatchProfiles, *, where: str
) -> None:
    """Check an engine's inputs, outputs and profiles against the bundle's contract.

    Args:
        engine: a deserialised `ICudaEngine`.
        trt: the module `tensorrt`.
        image: (H, W, 3) of the bundle's input.
        dim: D of the bundle's output.
        profiles: batch sizes it must have been built for.
        where: for the error.

    Raises:
        EngineError: it is another engine than it should be.
    """
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = {
        name: (
            engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
            engine.get_tensor_dtype(name),
            tuple(engine.get_tensor_shape(name))[1:],
        )
        for name in names
    }
    if found != {INPUT_NAME: (True, trt.DataType.UINT8, image), OUTPUT_NAME: (False, trt.DataType.FLOAT, (dim,))}:
        raise EngineError(f"the plan has {found}, which is not the bundle's contract", where=where, remedy=REBUILD)
    shapes = [
        [tuple(shape) for shape in engine.get_tensor_profile_shape(INPUT_NAME, index)]
        for index in range(engine.num_optimization_profiles)
    ]
    expected = [[(size, *image) for size in (profile.min, profile.opt, profile.max)] for profile in profiles.profiles]
    if shapes != expected:
        raise EngineError(f"the plan's profiles are {shapes}, not {profiles}", where=where, remedy=REBUILD)
