"""Verify everything that needs a GPU, in one go: ``python -m benchmarks.gpu_check [--photos FOLDER] [--out FILE]``.

Prints a line for each item (PASS, FAIL, or SKIPPED and why) and a table of speeds; the exit code is 1 if anything
failed. Without a GPU everything is skipped and the exit code is 0. Takes some minutes, for TensorRT builds engines.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from benchmarks.gpu_describing import Describing, medians_in_turn, working_folder
from benchmarks.gpu_indexes import SIZES, cagra_on_gpu, index_on_gpu, selector_on_gpu
from benchmarks.gpu_outcome import FailedError, Report, SkippedError
from benchmarks.indexing_throughput import PHOTOS
from benchmarks.machine import describe_machine
from retrieval.bundle import Precision, open_bundle
from retrieval.engines.cuda import first_gpu, open_cuda
from retrieval.engines.onnx_runtime import PROVIDER_NAMES
from retrieval.engines.onnx_runtime_gpu import load_linked_tensorrt
from retrieval.engines.tensorrt_library import load_tensorrt
from retrieval.errors import MissingExtraError, ProviderUnavailableError

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("onnxruntime-gpu", "tensorrt-cu13", "tensorrt", "cuda-bindings", "faiss-gpu", "torch")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
FAISS_ROWS, FAISS_QUERIES, FAISS_DIM, FAISS_K = 200_000, 256, 256, 10
TRAINING_TARGET = 1.15

# What an item needs: None, or the reason why it is not there.
Need = Callable[[], str | None]


def gpu_missing() -> str | None:
    """Why there is no GPU."""
    try:
        first_gpu()
    except ProviderUnavailableError as error:
        return f"no GPU: {error}"
    return None


def cuda_provider_missing() -> str | None:
    """Why ONNX Runtime has no CUDA."""
    return _provider_missing("cuda")


def tensorrt_provider_missing() -> str | None:
    """Why ONNX Runtime has no TensorRT: its wheels list the provider, and the libraries come apart."""
    reason = _provider_missing("tensorrt")
    if reason is not None:
        return reason
    import onnxruntime

    try:
        load_linked_tensorrt(Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_tensorrt.so")
    except ProviderUnavailableError as error:
        return str(error)
    return None


def _provider_missing(provider: str) -> str | None:
    try:
        import onnxruntime
    except ImportError:
        return "ONNX Runtime is not installed"
    if PROVIDER_NAMES[provider] in onnxruntime.get_available_providers():  # type: ignore[index]
        return None
    return f"the installed ONNX Runtime has no {PROVIDER_NAMES[provider]} (onnxruntime-gpu is not installed)"  # type: ignore[index]


def native_tensorrt_missing() -> str | None:
    """Why no plan can be built or run."""
    try:
        load_tensorrt()
        open_cuda()
    except (ProviderUnavailableError, MissingExtraError) as error:
        return str(error)
    return None


def faiss_gpu_missing() -> str | None:
    """Why FAISS sees no GPU."""
    import faiss

    return None if hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() else "faiss-gpu is not installed"


def torch_gpu_missing() -> str | None:
    """Why PyTorch sees no GPU. Asked in another process: torch must not meet FAISS and ONNX Runtime in one."""
    script = "import torch; print(torch.cuda.is_available())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    return None if done.stdout.strip() == "True" else "a PyTorch with CUDA is not installed"


def environment() -> str:
    """GPU, driver, and the versions of what runs on it."""
    gpu = first_gpu()
    return f"{gpu.name} ({gpu.architecture}), {_driver()}, {_versions()}"


def _versions() -> str:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found) or "none of the GPU packages"


def _driver() -> str:
    try:
        text = subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "driver unknown (no nvidia-smi)"
    found = re.search(r"Driver Version: (\S+)\s+CUDA Version: (\S+)", text)
    return f"driver {found[1]}, CUDA up to {found[2]}" if found else "driver unknown"


def gpu_tests() -> str:
    """``pytest -m gpu``: each file in its own process, for torch and ONNX Runtime must not meet."""
    files = [path for path in sorted((REPOSITORY / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    if not files:
        raise FailedError("there are no tests marked gpu")
    summaries = []
    for path in files:
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", str(path)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        summary = (done.stdout.strip().splitlines() or ["no output"])[-1]
        summaries.append(f"{path.name}: {summary}")
        if done.returncode != 0:
            raise FailedError("; ".join(summaries))
    if not any("passed" in summary for summary in summaries):
        raise SkippedError("; ".join(summaries))
    return "; ".join(summaries)


def faiss_parity() -> str:
    """Exact search on the GPU against the CPU: the same rows and scores."""
    import faiss

    rng = np.random.default_rng(0)
    rows = rng.standard_normal((FAISS_ROWS + FAISS_QUERIES, FAISS_DIM), np.float32)
    faiss.normalize_L2(rows)
    database, queries = rows[:FAISS_ROWS], rows[FAISS_ROWS:]
    flat = faiss.IndexFlatIP(FAISS_DIM)
    flat.add(database)
    resources = faiss.StandardGpuResources()
    on_gpu = faiss.index_cpu_to_gpu(resources, 0, flat)
    scores, ids = flat.search(queries, FAISS_K)
    gpu_scores, gpu_ids = on_gpu.search(queries, FAISS_K)
    difference, same = float(np.abs(scores - gpu_scores).max()), float((ids == gpu_ids).mean())
    searches = [lambda: flat.search(queries, FAISS_K), lambda: on_gpu.search(queries, FAISS_K)]
    cpu_ms, gpu_ms = medians_in_turn(searches, rounds=5)
    found = (
        f"{same:.4%} of the ranks are the same, scores differ by at most {difference:.1e}; {FAISS_QUERIES} queries in "
        f"{FAISS_ROWS} × {FAISS_DIM}: {gpu_ms:.1f} ms, CPU {cpu_ms:.1f} ms"
    )
    # Equal scores may change places; other sums of fp32 differ in the last digits.
    if not (same >= 0.999 and difference <= 1e-4):
        raise FailedError(found)
    return found


def training_throughput() -> str:
    """``benchmarks.training_throughput --device cuda``, in a process of its own."""
    if not (PHOTOS / "bgu_campus").is_dir():
        raise SkippedError("the campus photos are not beside the checkout (../shared/data)")
    command = [sys.executable, "-m", "benchmarks.training_throughput", "--device", "cuda"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    ratio = re.search(r"ratio of medians ([\d.]+)", done.stdout)
    if done.returncode != 0 or ratio is None:
        raise FailedError(f"exit code {done.returncode}: {(done.stderr.strip().splitlines() or ['no error'])[-1]}")
    found = "; ".join(done.stdout.strip().splitlines()[1:])
    if float(ratio[1]) > TRAINING_TARGET:
        raise FailedError(found)
    return found


def run_checks(report: Report, describing: Describing, *, tell: Callable[[str], None]) -> None:
    """Run every item in order; a need that is missing skips its items."""

    def check(item: str, needs: Sequence[Need], function: Callable[[], str]) -> None:
        def with_needs() -> str:
            for need in (gpu_missing, *needs):
                reason = need()
                if reason is not None:
                    raise SkippedError(reason)
            return function()

        tell(str(report.check(item, with_needs)))

    check("environment", [], environment)
    check("tests marked gpu", [], gpu_tests)
    for precision in PRECISIONS:
        name = f"cuda {precision} against cpu fp32"
        check(name, [cuda_provider_missing], lambda precision=precision: describing.provider("cuda", precision))
    check("describer ÷ bare ONNX Runtime on CUDA", [cuda_provider_missing], describing.overhead)
    for precision in PRECISIONS:
        name = f"TensorRT through ONNX Runtime, {precision}"
        needs = [tensorrt_provider_missing]
        check(name, needs, lambda precision=precision: describing.provider_cache(precision))
    for precision in PRECISIONS:
        name = f"native TensorRT plan, {precision}"
        check(name, [native_tensorrt_missing], lambda precision=precision: describing.native_plan(precision))
    check("FAISS exact search on the GPU", [faiss_gpu_missing], faiss_parity)
    for kind in ("exact", "ivf", "cagra"):
        check(f"selector on the GPU, {kind}", [faiss_gpu_missing], lambda kind=kind: selector_on_gpu(kind))
    for count in SIZES:
        for kind in ("exact", "ivf"):
            name = f"index on the GPU, {kind}, {count} rows"
            check(name, [faiss_gpu_missing], lambda kind=kind, count=count: index_on_gpu(kind, count))
        check(f"index on the GPU, cagra, {count} rows", [faiss_gpu_missing], lambda count=count: cagra_on_gpu(count))
    check("training step on the GPU", [torch_gpu_missing], training_throughput)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of photos to describe; the toy town if left out")
    parser.add_argument("--bundle", type=Path, help="the bundle; the shipped one if left out")
    parser.add_argument("--out", type=Path, help="write the report there too, as Markdown")
    options = parser.parse_args(arguments)
    report = Report()
    with working_folder() as work:
        describing = Describing(open_bundle(options.bundle), options.photos, report, Path(work))
        run_checks(report, describing, tell=lambda line: print(line, flush=True))
    text = report.markdown(describe_machine())
    print(f"\n{text}")
    if options.out is not None:
        options.out.write_text(text)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
