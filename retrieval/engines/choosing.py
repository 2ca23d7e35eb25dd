"""Which provider describes: the one that was asked for, or the best there is. Never silently another one."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from retrieval.bundle import Precision
from retrieval.engines.engine import Engine, EngineRequest, Provider
from retrieval.errors import DeviceError, EngineError, MissingExtraError, ParameterError, ProviderUnavailableError

_log = logging.getLogger("sightfix.engines")
ProviderChoice = Literal["auto", "tensorrt", "cuda", "openvino", "cpu"]
PROVIDER_CHOICES: Final[tuple[ProviderChoice, ...]] = ("auto", "tensorrt", "cuda", "openvino", "cpu")

# What `auto` tries before the provider cpu. OpenVINO only for integers: measured on two cores with the default bundle
# it is as fast as ONNX Runtime in fp32, and with an int8 graph 1.2 to 1.8 times as fast for one image, 1.6 for 16.
_BEST_FIRST: Final[dict[Precision, tuple[Provider, ...]]] = {
    "fp32": ("tensorrt", "cuda"),
    "fp16": ("tensorrt", "cuda"),
    "int8": ("tensorrt", "cuda", "openvino"),
}

_CANNOT_BE_HAD: Final = (ProviderUnavailableError, MissingExtraError, EngineError, DeviceError)


@dataclass(frozen=True, slots=True)
class ChosenEngine:
    """An engine, and why it is not a better one.

    Attributes:
        engine: opened, not yet warm.
        passed_over: for each provider that was tried before and cannot be had, its name and why.
    """

    engine: Engine
    passed_over: tuple[str, ...] = ()


def choose_engine(request: EngineRequest, choice: ProviderChoice, *, allow_cpu_fallback: bool = False) -> ChosenEngine:
    """Open the engine that was asked for.

    `auto` takes the first of tensorrt, cuda, openvino (for an int8 graph) and cpu that can be had, and says why not the
    ones before.

    Args:
        request: what is to be run.
        choice: the provider, or `auto`.
        allow_cpu_fallback: whether the provider cpu may take the place of a named one that cannot be had; it is logged
            as a warning.

    Raises:
        ParameterError: there is no such provider.
        ProviderUnavailableError: the named provider is not available; it says why, and what to do.
        MissingExtraError: its package is not installed.
        EngineError, DeviceError: its compiled engine is damaged, or the GPU refuses.
        BundleError: the bundle has no graph of that precision, or it cannot be loaded.
    """
    if choice not in PROVIDER_CHOICES:
        raise ParameterError(
            f"the provider {choice!r} is unknown", remedy=f"Choose {', '.join(PROVIDER_CHOICES[:-1])} or cpu"
        )
    request.bundle.graph_path(request.precision)  # a missing graph is reported before any provider's error
    chosen = _best(request) if choice == "auto" else _named(request, choice, allow_cpu_fallback)
    _log_choice(chosen, choice)
    return chosen


def _best(request: EngineRequest) -> ChosenEngine:
    passed_over: list[str] = []
    for provider in _BEST_FIRST[request.precision]:
        try:
            return ChosenEngine(_OPEN[provider](request), tuple(passed_over))
        except _CANNOT_BE_HAD as error:
            passed_over.append(f"{provider}: {error.what}")
    return ChosenEngine(_OPEN["cpu"](request), tuple(passed_over))


def _named(request: EngineRequest, provider: Provider, allow_cpu_fallback: bool) -> ChosenEngine:
    try:
        return ChosenEngine(_OPEN[provider](request))
    except _CANNOT_BE_HAD as error:
        if provider == "cpu" or not allow_cpu_fallback:
            raise
        refused = error
    _log.warning("the CPU describes in place of the provider %s: %s", provider, refused)
    return ChosenEngine(_OPEN["cpu"](request), (f"{provider}: {refused.what}",))


def _log_choice(chosen: ChosenEngine, choice: ProviderChoice) -> None:
    what = chosen.engine.description
    _log.info(
        "provider %s (asked for: %s): %s graph, %s, %s%s",
        what.provider,
        choice,
        what.precision,
        what.runtime,
        what.device,
        "".join(f"; not {reason}" for reason in chosen.passed_over),
    )


# Each runtime is imported only where it is used: importing takes long, and may need an extra.
def _open_tensorrt(request: EngineRequest) -> Engine:
    from retrieval.engines.tensorrt_plan import find_plan, open_plan

    # A plan that an operator has built beforehand is TensorRT's own, without ONNX Runtime around it.
    plan = find_plan(request.bundle, request.precision, request.profiles, request.cache)
    if plan is not None:
        return open_plan(plan, request.bundle, request.precision, request.profiles)
    from retrieval.engines.onnx_runtime_gpu import open_tensorrt_provider

    return open_tensorrt_provider(request)


def _open_cuda(request: EngineRequest) -> Engine:
    from retrieval.engines.onnx_runtime_gpu import open_cuda_provider

    return open_cuda_provider(request)


def _open_openvino(request: EngineRequest) -> Engine:
    from retrieval.engines.openvino import OpenVinoEngine

    return OpenVinoEngine(request.bundle, request.precision, request.threads)


def _open_cpu(request: EngineRequest) -> Engine:
    from retrieval.engines.onnx_runtime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(request.bundle, request.precision, request.threads)


_OPEN: Final[dict[Provider, Callable[[EngineRequest], Engine]]] = {
    "tensorrt": _open_tensorrt,
    "cuda": _open_cuda,
    "openvino": _open_openvino,
    "cpu": _open_cpu,
}
