"""ONNX Runtime: its sessions, what really computes in them, and the engine of the provider cpu."""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from retrieval.bundle import INPUT_NAME, OUTPUT_NAME, Bundle, Precision
from retrieval.engines.engine import EngineDescription, Provider, TensorContract, check_contract
from retrieval.errors import BundleError, MissingExtraError, ProviderUnavailableError, counted
from retrieval.machine import sums_bytes_exactly

_log = logging.getLogger("sightfix.engines")
NO_TELEMETRY: Final = "ORT_DISABLE_TELEMETRY"

PROVIDER_NAMES: Final[dict[Provider, str]] = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}

# On a CPU larger batches gain nothing and cost memory. Measured with the default bundle on two cores: in pieces of 4
# the process stays at 220 MB after all batch sizes; whole batches of 32 leave it at 1 GB and take 10 % more CPU time.
_SMALLEST_PIECE: Final = 4

# ONNX Runtime's name of a provider, and its options.
ProviderWithOptions = tuple[str, Mapping[str, str]]

_TYPES: Final = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}

# ONNX Runtime itself puts these on the CPU: they compute shapes, a few integers, and copying those would cost more.
_SHAPE_ARITHMETIC: Final = frozenset(
    {"Add", "Cast", "Concat", "Constant", "Div", "Expand", "Gather", "Mul", "Range", "Shape", "Slice", "Squeeze", "Sub"}
    | {"Unsqueeze"}
)


def load_onnxruntime() -> ModuleType:
    """The module `onnxruntime`, without its telemetry.

    Raises:
        MissingExtraError: it is not installed.
    """
    # From 1.29 on the wheels for Linux report each session to Microsoft: name and hash of the model, machine, package.
    # Only this variable, set before the import, keeps them from it, and from writing to the user's cache folder.
    os.environ.setdefault(NO_TELEMETRY, "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(
            "ONNX Runtime is not installed", remedy="Run: pip install 'sightfix[cpu]' (or [gpu] beside CUDA)"
        ) from error
    module: ModuleType = onnxruntime
    return module


def keep_int8_exact(options: Any) -> None:
    """Have a session compute an int8 graph as it is written on processors that would clip its sums.

    ONNX Runtime then rewrites signed weights as unsigned ones, whose products it sums in 32 bits. Nothing is gained
    where sums are exact, and the fast instructions for them would be lost: there, nothing is set.

    Args:
        options: onnxruntime.SessionOptions.
    """
    if not sums_bytes_exactly():
        options.add_session_config_entry("session.x64quantprecision", "1")


def check_installed(ort: ModuleType, provider: Provider) -> None:
    """Check that the installed ONNX Runtime was built with a provider; only opening a session shows whether it works.

    Raises:
        ProviderUnavailableError: it was not.
    """
    if PROVIDER_NAMES[provider] not in ort.get_available_providers():
        raise ProviderUnavailableError(
            f"the installed ONNX Runtime {ort.__version__} was built without the provider {provider}",
            remedy="Install sightfix[gpu] in an environment without sightfix[cpu], on a machine with an NVIDIA GPU",
        )


def open_session(ort: ModuleType, graph: Path, providers: Sequence[ProviderWithOptions], threads: int) -> Any:
    """A session on the given providers, with the given number of threads.

    Args:
        ort: the module `onnxruntime`.
        graph: the ONNX file.
        providers: the wanted one first.
        threads: of the CPU.

    Raises:
        Exception: whatever ONNX Runtime raises; its exceptions share no other base class.
    """
    options = ort.SessionOptions()
    # Never 0: ONNX Runtime would count the host's cores, not the container's, and pin threads to cores it may not use.
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that spin while idle steal the cores from image decoding.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    keep_int8_exact(options)
    # The CPU arena stays on: without it a batch takes half as much CPU time again. It keeps the memory of every batch
    # size it has seen, up to 1 GB for 1 to 32 images of the default bundle; so OnnxRuntimeEngine runs small pieces.
    # Without enable_fallback=0 a failing provider is replaced in the middle of a request, with a line on stdout.
    return ort.InferenceSession(str(graph), options, providers=list(providers), enable_fallback=0)


def check_providers(wanted: Provider, got: Sequence[str]) -> None:
    """Refuse a session that computes elsewhere than asked for: ONNX Runtime falls back without an error.

    Args:
        wanted: what was asked for.
        got: `session.get_providers()`.

    Raises:
        ProviderUnavailableError: another provider comes first.
    """
    name = PROVIDER_NAMES[wanted]
    if not got or got[0] != name:
        raise ProviderUnavailableError(
            f"ONNX Runtime fell back from {name} to {got[0] if got else 'nothing'}",
            remedy="Check the GPU driver, CUDA 13 and cuDNN 9 (and TensorRT for tensorrt), or choose the provider cpu",
        )


def placement(session: Any) -> dict[str, Counter[str]]:
    """Which provider computes which nodes: their operators and how many of each; empty where ONNX Runtime cannot say.

    Args:
        session: of `open_session`.
    """
    ask = getattr(session, "get_provider_graph_assignment_info", None)
    placed: dict[str, Counter[str]] = {}
    for subgraph in ask() if ask is not None else ():
        placed.setdefault(subgraph.ep_name, Counter()).update(node.op_type for node in subgraph.get_nodes())
    return placed


def check_placement(wanted: Provider, placed: Mapping[str, Counter[str]]) -> None:
    """Refuse a session in which the wanted provider computes nothing; log what others compute.

    Args:
        wanted: what was asked for.
        placed: of `placement`; nothing is checked when it is empty.

    Raises:
        ProviderUnavailableError: not one node is computed by it.
    """
    if not placed:
        return
    name = PROVIDER_NAMES[wanted]
    total = sum(nodes.total() for nodes in placed.values())
    own = placed.get(name, Counter[str]()).total()
    if own == 0:
        raise ProviderUnavailableError(
            f"{name} computes none of the graph's {total} nodes, {' and '.join(sorted(placed))} would",
            remedy="Choose another provider or precision",
        )
    others = {other: nodes for other, nodes in placed.items() if other != name}
    if others:
        left = "; ".join(f"{other}: {', '.join(sorted(nodes))}" for other, nodes in sorted(others.items()))
        heavy = any(set(nodes) - _SHAPE_ARITHMETIC for nodes in others.values())
        _log.log(logging.WARNING if heavy else logging.INFO, "%s computes %d of %d nodes; %s", name, own, total, left)


class OnnxRuntimeEngine:
    """An `Engine` on the CPU.

    Args:
        bundle: whose graph.
        precision: of the graph.
        threads: of the CPU, at least 1.

    Raises:
        BundleError: the graph cannot be loaded, or does not have the contract's input and output.
        MissingExtraError: ONNX Runtime is not installed.
    """

    def __init__(self, bundle: Bundle, precision: Precision, threads: int) -> None:
        ort = load_onnxruntime()
        path = bundle.graph_path(precision)
        try:
            session = open_session(ort, path, [(PROVIDER_NAMES["cpu"], {})], threads)
        except Exception as error:  # see open_session
            raise BundleError(
                f"ONNX Runtime cannot load the graph ({error})", where=str(path), remedy="Export the bundle again"
            ) from error
        check_session("cpu", bundle, session)
        self._session: Any = session
        # With many cores, an image for each.
        self._piece = max(_SMALLEST_PIECE, threads)
        self._description = EngineDescription("cpu", precision, runtime_name(ort), cpu_name(threads))

    @property
    def description(self) -> EngineDescription:
        """What computes."""
        return self._description

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Describe one batch of any size, a few images at a time; see `Engine.run`."""
        pieces: list[NDArray[np.float32]] = [
            self._session.run([OUTPUT_NAME], {INPUT_NAME: images[start : start + self._piece]})[0]
            for start in range(0, max(len(images), 1), self._piece)
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def close(self) -> None:
        """Free the session."""
        self._session = None


def check_session(wanted: Provider, bundle: Bundle, session: Any) -> None:
    """Check that a session computes where it should, with the input and output of the bundle's contract.

    Args:
        wanted: the provider that was asked for.
        bundle: whose graph.
        session: of `open_session`.

    Raises:
        ProviderUnavailableError: another provider would compute.
        BundleError: another input or output.
    """
    check_providers(wanted, session.get_providers())
    check_placement(wanted, placement(session))
    check_contract(bundle, _contracts(session.get_inputs()), _contracts(session.get_outputs()))


def _contracts(tensors: Sequence[Any]) -> list[TensorContract]:
    return [(tensor.name, _TYPES.get(tensor.type, tensor.type), tensor.shape[1:]) for tensor in tensors]


def runtime_name(ort: ModuleType) -> str:
    """Such as `ONNX Runtime 1.32.0`."""
    return f"ONNX Runtime {ort.__version__}"


def cpu_name(threads: int) -> str:
    """Such as `CPU, 2 threads`."""
    return f"CPU, {counted(threads, 'thread')}"
