"""The describer's part of gpu_check: is it right on a GPU, how fast, and does a second start build nothing?"""

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_outcome import FailedError, Report, SkippedError, Timing
from export.tensorrt_plan import build_plan
from retrieval.bundle import INPUT_NAME, OUTPUT_NAME, Bundle, Precision
from retrieval.describer import Describer, Descriptors
from retrieval.engines.compiled import default_profiles
from retrieval.engines.onnx_runtime_gpu import cuda_provider_options
from retrieval.engines.tensorrt_plan import open_plan
from retrieval.images import fit_image, read_image

Images = NDArray[np.uint8]

IMAGES, BATCHES, MAX_BATCH = 64, (1, 8, 32), 32
WARM_UPS, ROUNDS = 5, 30
MIN_COSINE: dict[Precision, float] = {"fp32": 0.9999, "fp16": 0.999, "int8": 0.99}
MAX_RATIO = 1.03
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".heic"}


class Describing:
    """What all items on describers share; images and true descriptors are made when first asked for.

    Args:
        bundle: to describe with.
        photos: folder of photos; None draws the toy town.
        report: gets the timings.
        work: an empty folder for engine caches.
    """

    def __init__(self, bundle: Bundle, photos: Path | None, report: Report, work: Path) -> None:
        self.bundle, self.photos, self.report, self.work = bundle, photos, report, work

    @cached_property
    def images(self) -> Images:
        """(64 or more, H, W, 3)."""
        preprocessing = self.bundle.preprocessing
        if self.photos is None:
            from sightfix.toy_town import photographs, plan_queries, town_for

            town = town_for(IMAGES)
            drawn = photographs(town, plan_queries(town, IMAGES))
            return np.stack([fit_image(image, preprocessing) for _, image in drawn])
        paths = (path for path in sorted(self.photos.rglob("*")) if path.suffix.lower() in SUFFIXES)
        images = [read_image(path, preprocessing) for path in islice(paths, IMAGES)]
        if len(images) < IMAGES:
            raise FailedError(f"{self.photos} has {len(images)} photos, {IMAGES} are needed")
        return np.stack(images)

    @cached_property
    def fp32(self) -> Descriptors:
        """Descriptors in fp32 on the CPU."""
        return Describer(self.bundle, provider="cpu", precision="fp32").describe(self.images)

    def need(self, precision: Precision) -> None:
        """Skip the item when the bundle lacks a precision."""
        if precision not in self.bundle.manifest.graphs:
            raise SkippedError(f"the bundle has no {precision} graph")

    def check(self, describe: Callable[[Images], Descriptors], runtime: str, precision: Precision) -> str:
        """Compare with fp32 on the CPU and take the times.

        Raises:
            FailedError: an image's cosine is too low, or a batch is described otherwise than its images one by one.
        """
        pieces = [describe(self.images[start : start + MAX_BATCH]) for start in range(0, len(self.images), MAX_BATCH)]
        worst = worst_cosine(np.concatenate(pieces), self.fp32)
        # Odd sizes are padded: 1 + 2 + 3 + 5 images must come out as they do in a large batch.
        odd = np.concatenate([describe(self.images[a:b]) for a, b in ((0, 1), (1, 3), (3, 6), (6, 11))])
        worst = min(worst, worst_cosine(odd, self.fp32[:11]))
        speeds = []
        for batch in BATCHES:
            images = np.ascontiguousarray(self.images[:batch])
            timing = Timing(runtime, precision, batch, median_ms(lambda images=images: describe(images)))
            self.report.timings.append(timing)
            speeds.append(f"{timing.milliseconds:.2f}")
        found = f"worst cosine {worst:.6f} over {len(self.images)} images; batch 1/8/32: {'/'.join(speeds)} ms"
        # Not `<`: a NaN must not pass.
        if not worst >= MIN_COSINE[precision]:
            raise FailedError(f"{found}; at least {MIN_COSINE[precision]} is wanted")
        return found

    def provider(self, provider: Any, precision: Precision) -> str:
        """A provider that builds nothing, such as cuda."""
        self.need(precision)
        with closing(Describer(self.bundle, provider=provider, precision=precision, max_batch=MAX_BATCH)) as describer:
            describer.warm_up()
            if describer.provider != provider:
                raise FailedError(f"{describer.provider} computes, and {provider} was asked for")
            return self.check(describer.describe, f"{provider}: {describer.description.runtime}", precision)

    def overhead(self) -> str:
        """The describer against ONNX Runtime alone with its buffers on the device, in turn, at each batch size."""
        worst, found = 0.0, []
        with closing(Describer(self.bundle, provider="cuda", max_batch=MAX_BATCH)) as describer:
            describer.warm_up()
            for batch in BATCHES:
                images = np.ascontiguousarray(self.images[:batch])
                bare = bare_cuda_run(self.bundle, images)
                ours_ms, bare_ms = medians_in_turn([lambda images=images: describer.describe(images), bare])
                worst = max(worst, ours_ms / bare_ms)
                found.append(f"{ours_ms:.3f} / {bare_ms:.3f} ms = {ours_ms / bare_ms:.3f}")
        text = f"batch 1, 8, 32: {'; '.join(found)}"
        if worst > MAX_RATIO:
            raise FailedError(f"{text}; at most {MAX_RATIO} is wanted")
        return text

    def provider_cache(self, precision: Precision) -> str:
        """TensorRT through ONNX Runtime: the first start builds, the second must not change a file of the cache."""
        self.need(precision)
        cache = self.work / f"provider-{precision}"

        def start() -> tuple[Describer, float]:
            began = time.perf_counter()
            describer = Describer(
                self.bundle, provider="tensorrt", precision=precision, max_batch=MAX_BATCH, engine_cache=cache
            )
            describer.warm_up()
            return describer, time.perf_counter() - began

        first, built_in = start()
        first.close()
        before = snapshot(cache)
        second, loaded_in = start()
        with closing(second):
            if not second.description.runtime.startswith("ONNX Runtime"):
                raise SkippedError(f"{self.bundle.folder} holds a plan for this machine, which is taken instead")
            changed = difference(before, snapshot(cache))
            judged = self.check(second.describe, f"tensorrt: {second.description.runtime}", precision)
        found = f"first start {built_in:.1f} s, second {loaded_in:.1f} s; {judged}"
        if not before:
            raise FailedError(f"{found}; the cache is empty")
        if changed:
            raise FailedError(f"{found}; the second start changed {', '.join(changed)}")
        return found

    def native_plan(self, precision: Precision) -> str:
        """A plan built beforehand: build, find again, open, describe."""
        self.need(precision)
        cache, profiles = self.work / f"native-{precision}", default_profiles(MAX_BATCH)
        began = time.perf_counter()
        plan = build_plan(self.bundle, precision, profiles, cache=cache)
        built_in = time.perf_counter() - began
        before = snapshot(cache)
        build_plan(self.bundle, precision, profiles, cache=cache)
        open_plan(plan, self.bundle, precision, profiles).close()
        began = time.perf_counter()
        with open_plan(plan, self.bundle, precision, profiles) as engine:
            opened_in = time.perf_counter() - began
            judged = self.check(engine.run, f"native: {engine.description.runtime}", precision)
        found = f"built in {built_in:.1f} s, opened in {opened_in:.2f} s; {judged}"
        changed = difference(before, snapshot(cache))
        if changed:
            raise FailedError(f"{found}; a second build changed {', '.join(changed)}")
        # With a plan in the cache, the provider tensorrt must take it without being told.
        with closing(
            Describer(self.bundle, provider="tensorrt", precision=precision, max_batch=MAX_BATCH, engine_cache=cache)
        ) as describer:
            if not describer.description.runtime.startswith("TensorRT"):
                raise FailedError(f"{found}; the describer runs {describer.description.runtime} instead of the plan")
        return found


def bare_cuda_run(bundle: Bundle, images: Images) -> Callable[[], Descriptors]:
    """ONNX Runtime on CUDA with bound device buffers: the least that a description can cost."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(bundle.graph_path("fp32")), providers=[("CUDAExecutionProvider", cuda_provider_options())]
    )
    device_images = onnxruntime.OrtValue.ortvalue_from_numpy(images, "cuda", 0)
    shape = [len(images), bundle.descriptor_dim]
    device_descriptors = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, "cuda", 0)
    binding = session.io_binding()
    binding.bind_ortvalue_input(INPUT_NAME, device_images)
    binding.bind_ortvalue_output(OUTPUT_NAME, device_descriptors)

    def run() -> Descriptors:
        device_images.update_inplace(images)
        session.run_with_iobinding(binding)
        descriptors: Descriptors = device_descriptors.numpy()
        return descriptors

    return run


def worst_cosine(ours: Descriptors, expected: Descriptors) -> float:
    """The lowest cosine between rows of unit length; NaN if any is."""
    return float((ours.astype(np.float64) * expected).sum(axis=1).min())


def medians_in_turn(functions: list[Callable[[], Any]], rounds: int = ROUNDS) -> list[float]:
    """Median milliseconds of each, called in turn, so that a busy moment hits all alike."""
    for function in functions:
        for _ in range(WARM_UPS):
            function()
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, taken in zip(functions, times, strict=True):
            began = time.perf_counter()
            function()
            taken.append(time.perf_counter() - began)
    return [1000 * statistics.median(taken) for taken in times]


def median_ms(function: Callable[[], Any]) -> float:
    """Median milliseconds of one."""
    return medians_in_turn([function])[0]


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def difference(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> list[str]:
    """Files that appeared, disappeared or changed, sorted."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def working_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for engine caches that is gone afterwards: a first start must find nothing."""
    return tempfile.TemporaryDirectory(prefix="gpu-check-")
