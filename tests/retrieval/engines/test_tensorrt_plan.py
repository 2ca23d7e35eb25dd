import logging
import sys
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from export.tensorrt_plan import build_plan
from retrieval.bundle import Bundle, open_bundle
from retrieval.engines.compiled import BatchProfile, BatchProfiles, default_profiles
from retrieval.engines.cuda import CudaRuntime, checked, open_cuda
from retrieval.engines.engine import Engine, EngineDescription
from retrieval.engines.tensorrt_library import load_tensorrt
from retrieval.engines.tensorrt_plan import TensorRtPlanEngine, find_plan, open_plan, tensorrt_machine
from retrieval.errors import BundleError, DeviceError, EngineError, ParameterError, ProviderUnavailableError
from tests.places import pattern
from tests.retrieval.engines.colour_bundle import write_colour_bundle
from tests.retrieval.engines.fake_gpu import IMAGE, TOY_GPU, DataType, FakeCuda, FakePlan, FakeTensorRt, toy_machine

PROFILES = default_profiles(8)


@pytest.fixture
def bundle_of_colours(tmp_path: Path) -> Bundle:
    return write_colour_bundle(tmp_path / "bundle")


def open_fake(
    folder: Path, bundle: Bundle, cuda: FakeCuda, plan: bytes | None = None
) -> tuple[TensorRtPlanEngine, FakeTensorRt]:
    trt = FakeTensorRt(cuda)
    path = folder / "model.plan"
    path.write_bytes(bytes(FakePlan()) if plan is None else plan)
    return TensorRtPlanEngine(path, bundle, "fp16", PROFILES, toy_machine(trt), trt, cuda), trt


def random_images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, (count, *IMAGE), dtype=np.uint8)


def mean_colours(images: np.ndarray) -> np.ndarray:
    mean = images.astype(np.float32).mean(axis=(1, 2))
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def test_every_batch_size_is_described_with_the_context_of_its_profile(
    tmp_path: Path, bundle_of_colours: Bundle
) -> None:
    opened, trt = open_fake(tmp_path, bundle_of_colours, FakeCuda())
    engine: Engine = opened
    for count in range(1, 9):
        images = random_images(count, seed=count)
        descriptors = engine.run(images)
        assert descriptors.shape == (count, 3)
        assert descriptors.dtype == np.float32
        np.testing.assert_allclose(descriptors, mean_colours(images), rtol=1e-6)
    assert trt.ran == [(0, 1), (1, 2), (1, 4), (1, 4), (1, 8), (1, 8), (1, 8), (1, 8)]


def test_padding_is_black_whatever_the_batch_before_left(tmp_path: Path, bundle_of_colours: Bundle) -> None:
    cuda = FakeCuda()
    engine, _ = open_fake(tmp_path, bundle_of_colours, cuda)
    engine.run(random_images(8))
    engine.run(random_images(3))
    (device_images,) = [data for data in cuda.memory.values() if data.size == 8 * np.prod(IMAGE)]
    sent = device_images.reshape(8, *IMAGE)
    assert sent[:3].all()
    assert not sent[3:4].any()
    assert sent[4:].all(), "beyond the padded batch nothing is copied"


def test_an_answer_is_not_changed_by_the_next_run(tmp_path: Path, bundle_of_colours: Bundle) -> None:
    engine, _ = open_fake(tmp_path, bundle_of_colours, FakeCuda())
    images = random_images(2)
    first = engine.run(images)
    engine.run(random_images(2, seed=9))
    np.testing.assert_allclose(first, mean_colours(images), rtol=1e-6)


def test_nothing_is_allocated_while_serving(tmp_path: Path, bundle_of_colours: Bundle) -> None:
    cuda = FakeCuda()
    engine, _ = open_fake(tmp_path, bundle_of_colours, cuda)
    # Images and descriptors of the largest batch, each on the device and in pinned memory.
    sizes = sorted(data.size for data in [*cuda.memory.values(), *cuda.pinned.values()])
    assert sizes == [8 * 3 * 4, 8 * 3 * 4, 8 * np.prod(IMAGE), 8 * np.prod(IMAGE)]
    taken = cuda.calls["allocate"], cuda.calls["allocate_pinned"], cuda.calls["create_stream"]
    for count in (1, 8, 5):
        engine.run(random_images(count))
    assert taken == (cuda.calls["allocate"], cuda.calls["allocate_pinned"], cuda.calls["create_stream"])


def test_it_says_what_computes(tmp_path: Path, bundle_of_colours: Bundle) -> None:
    engine, _ = open_fake(tmp_path, bundle_of_colours, FakeCuda())
    assert engine.description == EngineDescription("tensorrt", "fp16", "TensorRT 11.4.0.106", "Toy GPU")


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 20, 16, 3), np.uint8),
        np.zeros((1, *IMAGE), np.float32),
        np.zeros((9, *IMAGE), np.uint8),
        np.zeros((0, *IMAGE), np.uint8),
    ],
)
def test_images_the_plan_was_not_built_for_are_refused(
    tmp_path: Path, bundle_of_colours: Bundle, images: np.ndarray
) -> None:
    engine, trt = open_fake(tmp_path, bundle_of_colours, FakeCuda())
    with pytest.raises(ParameterError):
        engine.run(images)
    assert trt.ran == []


def test_closing_frees_everything_in_order_and_only_once(tmp_path: Path, bundle_of_colours: Bundle) -> None:
    cuda = FakeCuda()
    engine, _ = open_fake(tmp_path, bundle_of_colours, cuda)
    with engine:
        engine.run(random_images(1))
        cuda.order.clear()
    assert cuda.held == 0
    assert cuda.order == ["synchronise", "free_pinned", "free_pinned", "free", "free", "destroy_stream"]
    engine.close()
    assert len(cuda.order) == 6
    with pytest.raises(EngineError, match="the engine is closed"):
        engine.run(random_images(1))


@pytest.mark.parametrize(
    "failure",
    [
        ("create_stream", 1),
        ("allocate", 1),
        ("allocate", 2),
        ("allocate_pinned", 1),
        ("allocate_pinned", 2),
        ("synchronise", 1),
        ("synchronise", 2),
    ],
)
def test_a_failure_while_opening_leaves_nothing_allocated(
    tmp_path: Path, bundle_of_colours: Bundle, failure: tuple[str, int]
) -> None:
    cuda = FakeCuda(fail=failure)
    with pytest.raises(DeviceError, match="cudaErrorMemoryAllocation"):
        open_fake(tmp_path, bundle_of_colours, cuda)
    assert cuda.held == 0


def test_after_a_device_error_everything_else_is_still_freed(
    tmp_path: Path, bundle_of_colours: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    cuda = FakeCuda(fail=("free", 1))
    engine, _ = open_fake(tmp_path, bundle_of_colours, cuda)
    with caplog.at_level(logging.WARNING, logger="sightfix.tensorrt"):
        engine.close()
    assert cuda.held == 1
    assert "free failed with cudaErrorMemoryAllocation" in caplog.text


def test_a_failed_run_says_why_and_the_next_one_works(tmp_path: Path, bundle_of_colours: Bundle) -> None:
    cuda = FakeCuda(fail=("copy_to_host", 1))
    engine, trt = open_fake(tmp_path, bundle_of_colours, cuda)
    with pytest.raises(DeviceError, match="copy_to_host failed with"):
        engine.run(random_images(2))
    trt.refuses_to_run = True
    with pytest.raises(EngineError, match="TensorRT failed to run \\(kernel launch failed\\)") as caught:
        engine.run(random_images(2))
    assert caught.value.code == "engine_failed"
    trt.refuses_to_run = False
    images = random_images(5)
    np.testing.assert_allclose(engine.run(images), mean_colours(images), rtol=1e-6)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (FakePlan(image=(9, 9, 3)), "not the bundle's contract"),
        (FakePlan(dim=4), "not the bundle's contract"),
        (FakePlan(input_type=DataType.FLOAT), "not the bundle's contract"),
        (FakePlan(input_name="pixels"), "not the bundle's contract"),
        (FakePlan(sizes=[(1, 1, 1), (2, 8, 16)]), r"profiles are .* not 1:1:1,2:4:8"),
        (FakePlan(sizes=[(1, 4, 8)]), r"profiles are .* not 1:1:1,2:4:8"),
        (b"PL", r"TensorRT cannot open the plan \(magic tag does not match\)"),
    ],
)
def test_another_plan_than_the_bundles_is_refused(
    tmp_path: Path, bundle_of_colours: Bundle, plan: FakePlan | bytes, said: str
) -> None:
    cuda = FakeCuda()
    with pytest.raises(EngineError, match=said) as caught:
        open_fake(tmp_path, bundle_of_colours, cuda, bytes(plan))
    assert "sightfix bundle engine" in str(caught.value)
    assert str(tmp_path / "model.plan") in str(caught.value)
    assert cuda.held == 0


class FakeError(IntEnum):
    cudaSuccess = 0  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorNoDevice = 100  # noqa: N815


def test_cuda_errors_have_their_name() -> None:
    assert checked("cudaFree", (FakeError.cudaSuccess,)) is None
    assert checked("cudaMalloc", (FakeError.cudaSuccess, 4096)) == 4096
    assert checked("f", (FakeError.cudaSuccess, 1, 2)) == (1, 2)
    with pytest.raises(DeviceError, match=r"cudaMalloc failed with cudaErrorMemoryAllocation\. Free GPU memory"):
        checked("cudaMalloc", (FakeError.cudaErrorMemoryAllocation, None))


def test_each_call_reaches_cuda_with_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple] = []

    def answer(name: str, *values: object) -> Callable[..., tuple]:
        return lambda *arguments: (calls.append((name, *arguments)), (FakeError.cudaSuccess, *values))[1]

    buffer = np.arange(8, dtype=np.uint8)
    runtime = ModuleType("cuda.bindings.runtime")
    runtime.__dict__.update(
        cudaStreamNonBlocking=1,
        cudaMemcpyKind=SimpleNamespace(cudaMemcpyHostToDevice="up", cudaMemcpyDeviceToHost="down"),
        cudaMalloc=answer("malloc", 4096),
        cudaFree=answer("free"),
        cudaMallocHost=answer("malloc host", buffer.ctypes.data),
        cudaFreeHost=answer("free host"),
        cudaStreamCreateWithFlags=answer("stream", 7),
        cudaStreamDestroy=answer("destroy"),
        cudaMemcpyAsync=answer("copy"),
        cudaStreamSynchronize=answer("wait"),
    )
    cuda = CudaRuntime(runtime)
    stream, device, pinned = cuda.create_stream(), cuda.allocate(8), cuda.allocate_pinned(8)
    pinned.data[0] = 99
    assert buffer[0] == 99, "a view, not a copy"
    cuda.copy_to_device(device, pinned.address, 8, stream)
    cuda.copy_to_host(pinned.address, device, 4, stream)
    cuda.synchronise(stream)
    cuda.free_pinned(pinned)
    cuda.free(device)
    cuda.destroy_stream(stream)
    host = buffer.ctypes.data
    assert calls == [
        ("stream", 1),
        ("malloc", 8),
        ("malloc host", 8),
        ("copy", 4096, host, 8, "up", 7),
        ("copy", host, 4096, 4, "down", 7),
        ("wait", 7),
        ("free host", host),
        ("free", 4096),
        ("destroy", 7),
    ]


def test_missing_bindings_have_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    monkeypatch.setitem(sys.modules, "cuda", None)
    with pytest.raises(ProviderUnavailableError, match=r"bindings cannot be loaded.*sightfix\[tensorrt\]"):
        open_cuda()


def test_a_missing_tensorrt_has_a_reason_and_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(ProviderUnavailableError, match=r"TensorRT is not installed.*sightfix\[tensorrt\]"):
        tensorrt_machine()


def test_tensorrt_without_its_libraries_is_no_crash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.11: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(ProviderUnavailableError, match=r"cannot be loaded.*libnvinfer\.so\.11"):
        load_tensorrt()


@pytest.fixture
def fake_machine(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    """A machine with the toy GPU, for what looks the machine up by itself."""
    cuda = FakeCuda()
    trt = FakeTensorRt(cuda)
    for module in ("retrieval.engines.tensorrt_library", "retrieval.engines.tensorrt_plan", "export.tensorrt_plan"):
        monkeypatch.setattr(f"{module}.load_tensorrt", lambda: trt)
    monkeypatch.setattr("retrieval.engines.tensorrt_library.first_gpu", lambda: TOY_GPU)
    monkeypatch.setattr("retrieval.engines.tensorrt_plan.open_cuda", lambda: cuda)
    return trt


def test_a_plan_is_found_opened_and_run(tmp_path: Path, bundle_of_colours: Bundle, fake_machine: FakeTensorRt) -> None:
    cache = tmp_path / "cache"
    assert find_plan(bundle_of_colours, "fp16", PROFILES, cache) is None
    built = build_plan(bundle_of_colours, "fp16", PROFILES, cache=cache)
    assert find_plan(bundle_of_colours, "fp16", PROFILES, cache) == built
    images = random_images(3)
    with open_plan(built, bundle_of_colours, "fp16", PROFILES) as engine:
        np.testing.assert_allclose(engine.run(images), mean_colours(images), rtol=1e-6)


def test_no_plan_is_found_for_anything_else(
    tmp_path: Path, bundle_of_colours: Bundle, fake_machine: FakeTensorRt
) -> None:
    cache = tmp_path / "cache"
    build_plan(bundle_of_colours, "fp16", PROFILES, cache=cache)
    assert find_plan(bundle_of_colours, "fp32", PROFILES, cache) is None
    assert find_plan(bundle_of_colours, "fp16", default_profiles(16), cache) is None
    assert find_plan(open_bundle(), "fp32", PROFILES, cache) is None
    fake_machine.__version__ = "11.5.0.1"
    assert find_plan(bundle_of_colours, "fp16", PROFILES, cache) is None
    with pytest.raises(BundleError, match="the bundle has no int8 graph"):
        find_plan(bundle_of_colours, "int8", PROFILES, cache)


def test_a_plan_inside_the_bundle_is_found_without_a_cache(
    tmp_path: Path, bundle_of_colours: Bundle, fake_machine: FakeTensorRt
) -> None:
    built = build_plan(bundle_of_colours, "fp16", PROFILES, cache=tmp_path / "cache", into_bundle=True)
    assert built.parent.parent == bundle_of_colours.folder / "engines"
    assert built.parent.name == "sm90-trt11.4.0.106-fp16-b1-1-1_2-4-8-tensorrt"
    assert find_plan(bundle_of_colours, "fp16", PROFILES, tmp_path / "nothing here") == built
    assert open_bundle(bundle_of_colours.folder).fingerprint == bundle_of_colours.fingerprint


def test_without_a_gpu_there_is_no_plan(tmp_path: Path, bundle_of_colours: Bundle) -> None:
    if _has_gpu():
        pytest.skip("there is a GPU")
    assert find_plan(bundle_of_colours, "fp16", PROFILES, tmp_path) is None


def test_a_plan_for_another_model_or_machine_is_not_opened(
    tmp_path: Path, bundle_of_colours: Bundle, fake_machine: FakeTensorRt
) -> None:
    built = build_plan(bundle_of_colours, "fp16", PROFILES, cache=tmp_path / "cache")
    with pytest.raises(EngineError, match="built for another graph"):
        open_plan(built, bundle_of_colours, "fp32", PROFILES)
    other = BatchProfiles((BatchProfile(1, 8, 8),))
    with pytest.raises(EngineError, match="the batch sizes 1:1:1,2:4:8, not 1:8:8"):
        open_plan(built, bundle_of_colours, "fp16", other)
    fake_machine.__version__ = "11.5.0.1"
    with pytest.raises(EngineError, match=r"TensorRT 11\.4\.0\.106, not 11\.5\.0\.1\. Build it again") as caught:
        open_plan(built, bundle_of_colours, "fp16", PROFILES)
    assert caught.value.code == "engine_damaged"
    assert caught.value.where == str(built)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "foreign manifest"])
def test_a_damaged_plan_is_not_opened(
    tmp_path: Path, bundle_of_colours: Bundle, fake_machine: FakeTensorRt, damage: str
) -> None:
    built = build_plan(bundle_of_colours, "fp16", PROFILES, cache=tmp_path / "cache")
    content = built.read_bytes()
    if damage == "flipped":
        built.write_bytes(content[:-1] + b"~")
    elif damage == "truncated":
        built.write_bytes(content[:-1])
    elif damage == "missing":
        built.unlink()
    else:
        manifest = bundle_of_colours.folder / "manifest.json"
        (built.parent / "manifest.json").write_bytes(manifest.read_bytes())
    with pytest.raises(EngineError) as caught:
        open_plan(built, bundle_of_colours, "fp16", PROFILES)
    assert str(built.parent) in str(caught.value)
    assert fake_machine.cuda.held == 0


def _has_gpu() -> bool:
    try:
        tensorrt_machine()
    except ProviderUnavailableError:
        return False
    return True


@pytest.mark.gpu
@pytest.mark.skipif(not _has_gpu(), reason="needs TensorRT and a CUDA device")
def test_on_a_gpu_a_plan_describes_as_the_graph_does(tmp_path: Path, bundle_of_colours: Bundle) -> None:
    """The mean colour: its graph casts first, so TensorRT takes its uint8 input."""
    built = build_plan(bundle_of_colours, "fp32", PROFILES, cache=tmp_path / "cache")
    changed = built.stat().st_mtime_ns
    assert build_plan(bundle_of_colours, "fp32", PROFILES, cache=tmp_path / "cache").stat().st_mtime_ns == changed
    size = (IMAGE[1], IMAGE[0])
    images = np.stack([np.asarray(pattern(seed, size)) for seed in range(8)])
    with open_plan(built, bundle_of_colours, "fp32", PROFILES) as engine:
        for count in (1, 2, 3, 8, 1):
            np.testing.assert_allclose(engine.run(images[:count]), mean_colours(images[:count]), atol=1e-5)
