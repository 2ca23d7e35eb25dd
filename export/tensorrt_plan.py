"""Build a TensorRT plan ahead of time: one graph of a bundle, made ready for this machine's GPU.

The network is strongly typed: every layer computes in the types that the ONNX graph states, so the plan is what passed
the bundle's precision check (an fp16 graph becomes an fp16 plan whose norms stay in fp32). TensorRT 11 knows nothing
else; 10 has to be asked. Needs TensorRT and a GPU, and neither PyTorch nor onnx.
"""

import contextlib
import errno
import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from retrieval.artefact import record_files, rename_into_place, storage_errors, write_flushed
from retrieval.bundle import INPUT_NAME, Bundle, Precision
from retrieval.engines.compiled import BatchProfiles, EngineKey, default_engine_cache, default_profiles
from retrieval.engines.tensorrt_library import TensorRtMachine, TensorRtMessages, load_tensorrt, tensorrt_machine
from retrieval.engines.tensorrt_plan import (
    PLAN_NAME,
    PlanManifest,
    check_plan,
    folder_in_bundle,
    folder_in_cache,
    plan_key,
)
from retrieval.errors import EngineError

# Phase, steps done, steps in all. TensorRT's phases are nested; the names are its own.
OnProgress = Callable[[str, int, int], None]

# GPU memory that TensorRT may use for one layer while building and running.
_WORKSPACE_BYTES: Final = 4 << 30
_log = logging.getLogger("sightfix.tensorrt")


def build_plan(
    bundle: Bundle,
    precision: Precision,
    profiles: BatchProfiles | None = None,
    *,
    cache: Path | None = None,
    into_bundle: bool = False,
    on_progress: OnProgress | None = None,
) -> Path:
    """Build a plan for this machine, or find that it is there already.

    Args:
        bundle: whose graph.
        precision: which of its graphs; the plan computes in the same types.
        profiles: batch sizes to build for; `default_profiles()` if left out.
        cache: the engine cache; `default_engine_cache()` if left out. Timing caches lie there too.
        into_bundle: whether the plan is written into the bundle instead, to travel with it.
        on_progress: called for every step, from TensorRT's threads; what it raises cancels the build.

    Returns:
        the path of the `model.plan`.

    Raises:
        ProviderUnavailableError: no TensorRT, no driver, or no GPU.
        BundleError: the bundle has no graph of that precision.
        EngineError: TensorRT cannot parse or build the graph; nothing is written.
        StorageError: the disk refuses; nothing is left behind.
    """
    profiles, cache = profiles or default_profiles(), cache or default_engine_cache()
    return _PlanBuild(bundle, precision, profiles, cache, on_progress).run(into_bundle)


class _PlanBuild:
    """One call of `build_plan`, with the module and the machine it uses."""

    def __init__(
        self,
        bundle: Bundle,
        precision: Precision,
        profiles: BatchProfiles,
        cache: Path,
        on_progress: OnProgress | None,
    ) -> None:
        self._trt, self._machine = load_tensorrt(), tensorrt_machine()
        self._bundle, self._cache, self._on_progress = bundle, cache, on_progress
        self._graph = bundle.graph_path(precision)
        self._key: EngineKey = plan_key(bundle, precision, profiles, self._machine)
        self._messages = TensorRtMessages(self._trt)

    def run(self, into_bundle: bool) -> Path:
        """Build unless a whole plan is there; a damaged one is replaced."""
        folder = folder_in_bundle(self._bundle, self._key) if into_bundle else folder_in_cache(self._cache, self._key)
        if folder.exists():
            try:
                check_plan(folder / PLAN_NAME, self._key)
            except EngineError as error:
                _log.warning("%s It is built again.", error)
            else:
                return folder / PLAN_NAME
        with storage_errors(folder):
            # Before minutes of work: can anything be written there?
            folder.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder.parent))
            try:
                began = time.monotonic()
                plan = self._compile()
                self._write(temporary, plan, time.monotonic() - began)
                publish_plan(temporary, folder, self._key)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return folder / PLAN_NAME

    def _compile(self) -> bytes:
        trt = self._trt
        builder = trt.Builder(self._messages.logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        self._parse(network)
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE_BYTES)
        # On by default, and it rounds fp32 factors to ten bits: not what the bundle's precision check measured.
        config.clear_flag(trt.BuilderFlag.TF32)
        self._add_profiles(builder, config)
        timing_path = timing_cache_path(self._cache, self._machine)
        timing = attach_timing_cache(config, timing_path)
        monitor = _make_monitor(trt, self._on_progress) if self._on_progress else None
        if monitor is not None:
            config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        if monitor is not None and monitor.raised is not None:
            raise monitor.raised
        if plan is None:
            raise self._refused(
                "cannot build a plan from the graph", "Free GPU memory, or build for smaller batches", "plan_not_built"
            )
        save_timing_cache(timing, timing_path)
        return bytes(plan)

    def _parse(self, network: Any) -> None:
        parser = self._trt.OnnxParser(network, self._messages.logger)
        if parser.parse_from_file(str(self._graph)):
            return
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        said = "; ".join(f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors)
        remedy = "Export the bundle again with this version of sightfix"
        if "UINT8" in said:
            remedy = f"The graph must cast {INPUT_NAME} to float before anything else. {remedy}"
        raise self._refused(f"cannot read the graph: {said}", remedy, "graph_not_supported")

    def _add_profiles(self, builder: Any, config: Any) -> None:
        image = self._bundle.image_shape
        for sizes in self._key.profiles.profiles:
            profile = builder.create_optimization_profile()
            profile.set_shape(INPUT_NAME, (sizes.min, *image), (sizes.opt, *image), (sizes.max, *image))
            if config.add_optimization_profile(profile) < 0:
                raise self._refused(f"refuses the batch profile {sizes}", "Build for other batch sizes", "bad_profile")

    def _write(self, temporary: Path, plan: bytes, seconds: float) -> None:
        write_flushed(temporary / PLAN_NAME, plan)
        key = self._key
        PlanManifest(
            files=record_files(temporary, [PLAN_NAME]),
            graph_sha256=key.graph_sha256,
            tensorrt_version=key.tensorrt_version,
            architecture=key.architecture,
            device_name=self._machine.device_name,
            precision=key.precision,
            profiles=str(key.profiles),
            build_seconds=round(seconds, 3),
        ).write(temporary)
        temporary.chmod(0o755)

    def _refused(self, what: str, remedy: str, code: str) -> EngineError:
        return EngineError(
            f"TensorRT {self._machine.tensorrt_version} {what} ({self._messages.explain()})",
            where=str(self._graph),
            remedy=remedy,
            code=code,
        )


def publish_plan(temporary: Path, folder: Path, key: EngineKey) -> None:
    """Give a finished plan folder its name; another process may have been faster, or a damaged plan may lie there.

    Args:
        temporary: the finished folder, beside `folder`.
        folder: its final place.
        key: what the plan is.

    Raises:
        OSError: the disk refuses.
    """
    if folder.exists():
        try:
            check_plan(folder / PLAN_NAME, key)
        except EngineError:
            # Renamed before it is deleted: no reader sees half a folder. Another process may have renamed it already.
            with contextlib.suppress(FileNotFoundError):
                folder.rename(temporary / "damaged")
            shutil.rmtree(temporary / "damaged", ignore_errors=True)
        else:
            return
    try:
        rename_into_place(temporary, folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        check_plan(folder / PLAN_NAME, key)


def timing_cache_path(cache: Path, machine: TensorRtMachine) -> Path:
    """The file of layer timings that all builds of one TensorRT on one GPU architecture share."""
    return cache / "timing-caches" / f"{machine.architecture}-trt{machine.tensorrt_version}.bin"


def attach_timing_cache(config: Any, path: Path) -> Any:
    """Give a builder configuration the timings of earlier builds, or none when they are missing or do not fit.

    Returns:
        the `ITimingCache` in use; it must live until the build is done.
    """
    known = path.read_bytes() if path.is_file() else b""
    for content in (known, b""):
        timing = config.create_timing_cache(content)
        if timing is not None and config.set_timing_cache(timing, False):
            return timing
        _log.warning("%s: these timings are not for this TensorRT and GPU; they are measured again", path)
    return None


def save_timing_cache(timing: Any, path: Path) -> None:
    """Keep the timings for the next build. They save time only: a disk that refuses is logged and no more."""
    if timing is None:
        return
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
            temporary = Path(file.name)
            file.write(bytes(timing.serialize()))
        temporary.replace(path)
    except OSError as error:
        _log.warning("%s: the timings were not kept (%s)", path, error.strerror)
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _make_monitor(trt: Any, on_progress: OnProgress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.raised: BaseException | None = None
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            self._report(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._report(phase_name, step + 1)
            return self.raised is None

        def phase_finish(self, phase_name: str) -> None:
            self._report(phase_name, self._steps.get(phase_name, 0))

        def _report(self, phase_name: str, done: int) -> None:
            # An exception must not reach C++, which would end the process. It is raised when the build has stopped.
            if self.raised is not None:
                return
            try:
                on_progress(phase_name, done, self._steps.get(phase_name, done))
            except BaseException as error:
                self.raised = error

    return Monitor()
