"""A GPU made of numpy, and a TensorRT that builds and runs mean colours on it.

The names, arguments and return values are those of TensorRT 10 and 11; what happens is as late as on a device: copies
and kernels wait in their stream until something waits for it, and read memory only then.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

from retrieval.engines.cuda import NvidiaGpu, PinnedMemory
from retrieval.engines.tensorrt_library import TensorRtMachine
from retrieval.errors import DeviceError
from tests.retrieval.engines.colour_bundle import HEIGHT, WIDTH

IMAGE = (HEIGHT, WIDTH, 3)
TOY_GPU = NvidiaGpu("Toy GPU", "sm90")


def toy_machine(trt: Any) -> TensorRtMachine:
    """The given TensorRT on the toy GPU."""
    return TensorRtMachine(trt.__version__, TOY_GPU.architecture, TOY_GPU.name)


class FakeCuda:
    """`CudaRuntime` on numpy. `fail` names the call that fails, and at which of its calls."""

    def __init__(self, fail: tuple[str, int] | None = None) -> None:
        self.fail = fail
        self.calls: dict[str, int] = {}
        self.memory: dict[int, np.ndarray] = {}
        self.pinned: dict[int, np.ndarray] = {}
        self.streams: dict[int, list[Callable[[], None]]] = {}
        self.order: list[str] = []
        self._next = 4096

    @property
    def held(self) -> int:
        """How many things were taken and not given back."""
        return len(self.memory) + len(self.pinned) + len(self.streams)

    def allocate(self, size: int) -> int:
        return self._take("allocate", self.memory, np.full(size, 0xAB, np.uint8))

    def free(self, address: int) -> None:
        self._call("free")
        del self.memory[address]

    def allocate_pinned(self, size: int) -> PinnedMemory:
        data = np.full(size, 0xCD, np.uint8)
        return PinnedMemory(self._take("allocate_pinned", self.pinned, data), data)

    def free_pinned(self, memory: PinnedMemory) -> None:
        self._call("free_pinned")
        del self.pinned[memory.address]

    def create_stream(self) -> int:
        return self._take("create_stream", self.streams, [])

    def destroy_stream(self, stream: int) -> None:
        self._call("destroy_stream")
        del self.streams[stream]

    def copy_to_device(self, device: int, host: int, size: int, stream: int) -> None:
        self._call("copy_to_device")

        def copy() -> None:
            self.memory[device][:size] = self.pinned[host][:size]

        self.streams[stream].append(copy)

    def copy_to_host(self, host: int, device: int, size: int, stream: int) -> None:
        self._call("copy_to_host")

        def copy() -> None:
            self.pinned[host][:size] = self.memory[device][:size]

        self.streams[stream].append(copy)

    def synchronise(self, stream: int) -> None:
        self._call("synchronise")
        while self.streams[stream]:
            self.streams[stream].pop(0)()

    def _call(self, name: str) -> None:
        self.order.append(name)
        self.calls[name] = self.calls.get(name, 0) + 1
        if self.fail == (name, self.calls[name]):
            raise DeviceError(f"{name} failed with cudaErrorMemoryAllocation")

    def _take(self, name: str, shelf: dict[int, Any], thing: Any) -> int:
        self._call(name)
        address, self._next = self._next, self._next + (1 << 20)
        shelf[address] = thing
        return address


class DataType(IntEnum):
    FLOAT = 0
    HALF = 1
    UINT8 = 5


class TensorIOMode(IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    def __init__(self) -> None:
        self.ready = True


class IProgressMonitor:
    def __init__(self) -> None:
        self.ready = True


@dataclass
class FakePlan:
    """What is inside a plan file."""

    image: tuple[int, ...] = IMAGE
    dim: int = 3
    input_type: int = DataType.UINT8
    input_name: str = "images"
    sizes: list[tuple[int, int, int]] = field(default_factory=lambda: [(1, 1, 1), (2, 4, 8)])

    def __bytes__(self) -> bytes:
        return b"PLAN" + json.dumps(self.__dict__).encode()


class Engine:
    """`ICudaEngine`."""

    def __init__(self, trt: "FakeTensorRt", plan: FakePlan) -> None:
        self.trt, self.plan = trt, plan
        self.num_io_tensors = 2
        self.num_optimization_profiles = len(plan.sizes)

    def get_tensor_name(self, index: int) -> str:
        return (self.plan.input_name, "descriptors")[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.OUTPUT if name == "descriptors" else TensorIOMode.INPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType.FLOAT if name == "descriptors" else DataType(self.plan.input_type)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, self.plan.dim) if name == "descriptors" else (-1, *self.plan.image)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert name == self.plan.input_name
        return [(size, *self.plan.image) for size in self.plan.sizes[profile_index]]

    def create_execution_context(self, strategy: str) -> "Context":
        assert strategy == "on profile change"
        return Context(self)


class Context:
    """`IExecutionContext`."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.profile = engine, 0
        self.shape: tuple[int, ...] | None = None
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert stream_handle in self.engine.trt.cuda.streams
        self.profile, self.shape = profile_index, None
        self.addresses.clear()
        return profile_index < len(self.engine.plan.sizes)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return memory in self.engine.trt.cuda.memory

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.plan.sizes[self.profile]
        if not low <= shape[0] <= high:
            return False
        self.shape = shape
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        if self.shape is None or len(self.addresses) != 2 or self.engine.trt.refuses_to_run:
            self.engine.trt.say(Severity.ERROR, "kernel launch failed")
            return False
        memory, shape, addresses = self.engine.trt.cuda.memory, self.shape, dict(self.addresses)
        self.engine.trt.ran.append((self.profile, shape[0]))

        def kernel() -> None:
            images = memory[addresses["images"]][: int(np.prod(shape))].reshape(shape)
            mean = images.astype(np.float32).mean(axis=(1, 2))
            with np.errstate(invalid="ignore"):
                descriptors = mean / np.linalg.norm(mean, axis=1, keepdims=True)
            output = memory[addresses["descriptors"]].view(np.float32).reshape(-1, self.engine.plan.dim)
            output[: shape[0]] = descriptors

        self.engine.trt.cuda.streams[stream_handle].append(kernel)
        return True


class Profile:
    """`IOptimizationProfile`."""

    def set_shape(self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]) -> None:  # noqa: A002
        assert input == "images"
        assert min[1:] == opt[1:] == max[1:]
        self.image, self.sizes = min[1:], (min[0], opt[0], max[0])


class TimingCache:
    """`ITimingCache`: its content is the number of builds that it has seen."""

    def __init__(self, content: bytes) -> None:
        self.device, _, builds = (content or b"sm90 0").partition(b" ")
        self.builds = int(builds)

    def serialize(self) -> bytes:
        return self.device + b" %d" % self.builds


class Config:
    """`IBuilderConfig`."""

    def __init__(self) -> None:
        self.flags = {"tf32"}
        self.pools: dict[str, int] = {}
        self.profiles: list[Profile] = []
        self.timing: TimingCache | None = None
        self.progress_monitor: Any = None

    def set_memory_pool_limit(self, pool: str, pool_size: int) -> None:
        self.pools[pool] = pool_size

    def clear_flag(self, flag: str) -> None:
        self.flags.discard(flag)

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache:
        return TimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        if cache.device != b"sm90":
            return False
        self.timing = cache
        return True


class ParserError:
    """`ParserError`."""

    def __init__(self, node: str, operator: str, text: str) -> None:
        self._said = node, operator, text

    def node_name(self) -> str:
        return self._said[0]

    def node_operator(self) -> str:
        return self._said[1]

    def desc(self) -> str:
        return self._said[2]


class FakeTensorRt:
    """The module `tensorrt`. `parser_errors` and the flags make it refuse."""

    __version__ = "11.4.0.106"
    ILogger, IProgressMonitor, DataType, TensorIOMode = ILogger, IProgressMonitor, DataType, TensorIOMode
    Logger = Severity
    ExecutionContextAllocationStrategy = SimpleNamespace(ON_PROFILE_CHANGE="on profile change")
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    BuilderFlag = SimpleNamespace(TF32="tf32")

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.parser_errors: list[ParserError] = []
        self.refuses_to_build = self.refuses_to_run = False
        self.ran: list[tuple[int, int]] = []
        self.parsed: list[str] = []
        self.configs: list[Config] = []
        self.while_building: Callable[[], None] = lambda: None
        self.logger: Any = None

    def say(self, severity: Severity, text: str) -> None:
        self.logger.log(severity, text)

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        assert logger.ready
        self.logger = logger
        return SimpleNamespace(deserialize_cuda_engine=self._deserialise)

    def Builder(self, logger: Any) -> Any:  # noqa: N802
        assert logger.ready
        self.logger = logger
        return SimpleNamespace(
            create_network=self._create_network,
            create_builder_config=Config,
            create_optimization_profile=Profile,
            build_serialized_network=self._build,
        )

    def OnnxParser(self, network: Any, logger: Any) -> Any:  # noqa: N802
        def parse_from_file(model: str) -> bool:
            self.parsed.append(model)
            return not self.parser_errors

        return SimpleNamespace(
            parse_from_file=parse_from_file,
            num_errors=len(self.parser_errors),
            get_error=self.parser_errors.__getitem__,
        )

    def _create_network(self, flags: int) -> Any:
        assert flags == 1 << 1, "strongly typed"
        return object()

    def _build(self, network: Any, config: Config) -> FakePlan | None:
        self.configs.append(config)
        self.while_building()
        monitor = config.progress_monitor
        if monitor is not None:
            assert monitor.ready
            monitor.phase_start("Building", None, 2)
            for step in range(2):
                if not monitor.step_complete("Building", step):
                    self.refuses_to_build = True
                    break
            monitor.phase_finish("Building")
        if self.refuses_to_build:
            self.say(Severity.INTERNAL_ERROR, "no tactic fits the workspace")
            return None
        assert config.timing is not None
        config.timing.builds += 1
        return FakePlan(config.profiles[0].image, sizes=[profile.sizes for profile in config.profiles])

    def _deserialise(self, plan: bytes) -> Engine | None:
        if plan[:4] != b"PLAN":
            self.say(Severity.ERROR, "magic tag does not match")
            return None
        content = json.loads(plan[4:])
        content["image"] = tuple(content["image"])
        content["sizes"] = [tuple(sizes) for sizes in content["sizes"]]
        return Engine(self, FakePlan(**content))
