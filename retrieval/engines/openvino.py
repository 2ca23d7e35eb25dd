"""OpenVINO on the CPU, by its own package: ONNX Runtime's OpenVINO build would overwrite ONNX Runtime."""

import sys
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from retrieval.bundle import Bundle, Precision
from retrieval.engines.engine import EngineDescription, TensorContract, check_contract
from retrieval.engines.onnx_runtime import cpu_name
from retrieval.errors import BundleError, MissingExtraError, ProviderUnavailableError
from retrieval.machine import sums_bytes_exactly

_TELEMETRY: Final = "openvino_telemetry"
_TYPES: Final = {"u8": "uint8", "f32": "float32"}


def load_openvino() -> ModuleType:
    """The module `openvino`, without its telemetry.

    Raises:
        MissingExtraError: it is not installed.
    """
    # Importing openvino reports its use to Intel and Google over the network, unless a file in the home folder says
    # no. A server for robots must not: without this module, which it treats as optional, it reports nothing.
    hide = "openvino" not in sys.modules and _TELEMETRY not in sys.modules
    if hide:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("OpenVINO is not installed", remedy="Run: pip install 'sightfix[openvino]'") from error
    finally:
        if hide:
            del sys.modules[_TELEMETRY]
    module: ModuleType = openvino
    return module


def openvino_options(threads: int) -> dict[str, Any]:
    """How OpenVINO compiles a graph for the CPU.

    Args:
        threads: at least 1.
    """
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        # OpenVINO counts the host's cores, not the container's.
        "INFERENCE_NUM_THREADS": threads,
        # Pinned threads of two processes share the first cores while others are idle.
        "ENABLE_CPU_PINNING": False,
        # The default on processors with AMX is bf16, which no precision check covers: measured, it turns an fp32
        # graph's descriptors to a cosine of 0.994 at worst. For the fp16 graph, f32 computes with its fp16 weights and
        # is nearer to fp32 than fp16 arithmetic (0.99998 against 0.9996) and faster on processors without it. What a
        # QDQ graph says is int8 stays int8; this is for the layers between.
        "INFERENCE_PRECISION_HINT": "f32",
    }


class OpenVinoEngine:
    """An `Engine` on the CPU by OpenVINO; the batch size is free.

    Args:
        bundle: whose graph.
        precision: of the graph.
        threads: of the CPU, at least 1.

    Raises:
        BundleError: the graph cannot be loaded, or does not have the contract's input and output.
        MissingExtraError: OpenVINO is not installed.
        ProviderUnavailableError: the graph is int8, and this processor clips its sums.
    """

    def __init__(self, bundle: Bundle, precision: Precision, threads: int) -> None:
        ov = load_openvino()
        if precision == "int8" and not sums_bytes_exactly():
            # Measured with the default bundle on such a processor: a cosine to fp32 of 0.976, at worst 0.943.
            raise ProviderUnavailableError(
                "OpenVINO would clip the sums of an int8 graph on this processor, which has no VNNI, and describe "
                "wrongly",
                remedy="Choose the provider cpu, whose int8 is exact, or the precision fp32",
            )
        path = bundle.graph_path(precision)
        core = ov.Core()
        try:
            model = core.read_model(str(path))
            check_contract(bundle, _contracts(model.inputs), _contracts(model.outputs))
            compiled = core.compile_model(model, "CPU", openvino_options(threads))
        except RuntimeError as error:
            raise BundleError(
                f"OpenVINO cannot load the graph ({_last_line(error)})",
                where=str(path),
                remedy="Export the bundle again, or choose the provider cpu",
            ) from error
        self._compiled: Any = compiled
        self._request: Any = compiled.create_infer_request()
        version = str(ov.get_version()).partition("-")[0]
        # It takes no more threads than it sees cores.
        taken = int(compiled.get_property("INFERENCE_NUM_THREADS"))
        self._description = EngineDescription("openvino", precision, f"OpenVINO {version}", cpu_name(taken))

    @property
    def description(self) -> EngineDescription:
        """What computes."""
        return self._description

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Describe one batch of any size; see `Engine.run`."""
        # The input is read where it lies; the output is a copy, for the request's own is overwritten by the next run.
        descriptors: NDArray[np.float32] = self._request.infer({0: images}, share_inputs=True, share_outputs=False)[0]
        return descriptors

    def close(self) -> None:
        """Free the compiled graph."""
        self._request = None
        self._compiled = None


def _contracts(ports: Any) -> list[TensorContract]:
    return [
        (
            port.get_any_name(),
            _TYPES.get(port.get_element_type().get_type_name(), port.get_element_type().get_type_name()),
            [size.get_length() if size.is_static else -1 for size in list(port.get_partial_shape())[1:]],
        )
        for port in ports
    ]


def _last_line(error: Exception) -> str:
    """OpenVINO's messages begin with the places in its source that they passed through."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
